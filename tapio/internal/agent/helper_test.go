package agent

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The tests break things for real, each in a process of its own: this test
// binary again, told by the environment what to do. So the process that must
// be named in the event is known, and nothing else is needed in a small VM.
const helperVariable = "TAPIO_TEST_HELPER"

func TestMain(m *testing.M) {
	if name := os.Getenv(helperVariable); name != "" {
		h := helpers()[name]
		if h == nil {
			fatal("no helper %q", name)
		}
		h(bufio.NewScanner(os.Stdin))
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// helper does its work; each line of in is something that the test asks for.
type helper func(in *bufio.Scanner)

func helpers() map[string]helper {
	return map[string]helper{
		"exit":          func(*bufio.Scanner) { os.Exit(3) },
		"segfault":      func(*bufio.Scanner) { kill(unix.SIGSEGV) },
		"wait":          func(in *bufio.Scanner) { say("ready"); in.Scan() },
		"leader-first":  leaderFirst,
		"allocate":      allocate,
		"refused":       refused,
		"refused-burst": refusedBurst,
		"reset":         reset,
		"path":          path,
		"no-port":       noPort,
		"worker":        worker,
		"master":        master,
		"think":         think,
		"container":     containerInit,
		"stay":          stay,
		"agent":         unprivilegedAgent,
	}
}

func fatal(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
	os.Exit(99)
}

func must(err error) {
	if err != nil {
		_, file, line, _ := runtime.Caller(1)
		fatal("%s:%d: %v", file, line, err)
	}
}

// say tells the test something.
func say(format string, args ...any) { fmt.Printf(format+"\n", args...) }

func kill(signal unix.Signal) {
	// The runtime catches SIGSEGV; the default action is what is wanted.
	type sigaction struct {
		handler, flags, restorer, mask uint64
	}
	var act sigaction
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(signal), uintptr(unsafe.Pointer(&act)), 0, 8, 0, 0)
	if errno != 0 {
		fatal("sigaction: %v", errno)
	}
	must(unix.Kill(os.Getpid(), signal))
	select {}
}

// leaderFirst ends the main thread and, later, the process from another one.
func leaderFirst(*bufio.Scanner) {
	runtime.GOMAXPROCS(4) // the main thread takes its processor with it
	go func() {
		runtime.LockOSThread()
		task := fmt.Sprintf("/proc/self/task/%d/stat", os.Getpid())
		for {
			stat, err := os.ReadFile(task)
			if err != nil || strings.Contains(string(stat), ") Z ") {
				break
			}
			runtime.Gosched()
		}
		_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, 4, 0, 0)
	}()
	if unix.Gettid() != os.Getpid() {
		fatal("not on the main thread")
	}
	_, _, _ = unix.RawSyscall(unix.SYS_EXIT, 0, 0, 0)
}

//nolint:gochecknoinits // leaderFirst needs the main thread, and only init runs on it for sure
func init() { runtime.LockOSThread() }

// sharedMemory is what allocate uses of it before it goes on with its own.
const sharedMemory = 12 << 20

// allocate uses memory until it is stopped.
func allocate(in *bufio.Scanner) {
	in.Scan() // wait until we are in the right cgroup
	const chunk = 1 << 20
	for i := 0; ; i++ {
		kind := unix.MAP_PRIVATE
		if i < sharedMemory/chunk {
			kind = unix.MAP_SHARED
		}
		b, err := unix.Mmap(-1, 0, chunk, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|kind)
		must(err)
		for j := 0; j < chunk; j += 4096 {
			b[j] = 1
		}
	}
}

// refused connects to the addresses that it is told, where nobody listens.
func refused(in *bufio.Scanner) {
	for in.Scan() {
		c, err := net.Dial("tcp", in.Text())
		if err == nil {
			_ = c.Close()
			fatal("somebody listens on %s", in.Text())
		}
		say("%v", err)
	}
}

// refusedBurst makes as many refused connects as it is told, as fast as it can,
// whenever it is told.
func refusedBurst(in *bufio.Scanner) {
	address := &unix.SockaddrInet4{Port: 1, Addr: [4]byte{127, 0, 0, 1}}
	for in.Scan() {
		n, err := strconv.Atoi(in.Text())
		must(err)
		for range n {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			must(err)
			if err := unix.Connect(fd, address); err != unix.ECONNREFUSED {
				fatal("connect: %v", err)
			}
			must(unix.Close(fd))
		}
		say("done")
	}
}

// reset makes connections of which one side is cut off by the other:
// "client" or "server" is the side that is cut off.
func reset(in *bufio.Scanner) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	_, port, err := net.SplitHostPort(l.Addr().String())
	must(err)
	say("%s", port)
	for in.Scan() {
		c, err := net.Dial("tcp", l.Addr().String())
		must(err)
		s, err := l.Accept()
		must(err)
		victim, cutter := c, s
		if in.Text() == "server" {
			victim, cutter = s, c
		}
		_, err = victim.Write([]byte("hello"))
		must(err)
		_, err = cutter.Read(make([]byte, 16))
		must(err)
		cut(cutter)
		_, err = victim.Read(make([]byte, 1))
		must(victim.Close())
		say("%v", err)
	}
}

// cut closes a connection with a reset instead of a farewell.
func cut(c net.Conn) {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		fatal("%T is not TCP", c)
	}
	must(tcp.SetLinger(0))
	must(tcp.Close())
}

// think talks for three seconds over new connections and old ones to a server
// that takes 12 ms to answer: the acknowledgement travels with the answer, and
// the kernel's round-trip time is that of the application.
func think(*bufio.Scanner) {
	must(setUp("lo"))
	l, err := net.Listen("tcp", "127.0.0.1:8000")
	must(err)
	go func() {
		for {
			c, err := l.Accept()
			must(err)
			go func() {
				buf := make([]byte, 16)
				for {
					n, err := c.Read(buf)
					if err != nil {
						must(c.Close())
						return
					}
					time.Sleep(12 * time.Millisecond)
					_, err = c.Write(buf[:n])
					must(err)
				}
			}()
		}
	}()
	end := time.Now().Add(3 * time.Second)
	done := make(chan struct{})
	for range 6 {
		go func() {
			c, err := net.Dial("tcp", l.Addr().String())
			must(err)
			buf := []byte("a question")
			for time.Now().Before(end) {
				_, err := c.Write(buf)
				must(err)
				_, err = c.Read(buf)
				must(err)
			}
			must(c.Close())
			done <- struct{}{}
		}()
	}
	for range 6 {
		<-done
	}
	// Enough handshakes to learn from that nothing is wrong with the path.
	for range 64 {
		c, err := net.Dial("tcp", l.Addr().String())
		must(err)
		must(c.Close())
	}
	say("done")
}

// containerInit is process 1 of a pid namespace. It starts another process,
// tells its pid as the host sees it, and leaves it behind.
func containerInit(in *bufio.Scanner) {
	if os.Getpid() != 1 {
		fatal("not process 1 of a namespace")
	}
	self, err := os.Executable()
	must(err)
	child := exec.Command(self)
	child.Env = append(os.Environ(), helperVariable+"=stay")
	out, err := child.StdoutPipe()
	must(err)
	must(child.Start())
	if !bufio.NewScanner(out).Scan() {
		fatal("the child did not start")
	}
	say("ready")
	in.Scan()
}

// stay stays until it is killed.
func stay(*bufio.Scanner) {
	say("ready")
	for {
		_ = unix.Pause() // a signal that is handled
	}
}

// master listens and leaves it to a worker to accept, as servers with workers do;
// then it connects to that and cuts the connection off.
func master(in *bufio.Scanner) {
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	must(err)
	file, err := l.File()
	must(err)
	self, err := os.Executable()
	must(err)
	child := exec.Command(self)
	child.Env = append(os.Environ(), helperVariable+"=worker")
	child.ExtraFiles = []*os.File{file}
	out, err := child.StdoutPipe()
	must(err)
	must(child.Start())
	heard := bufio.NewScanner(out)
	c, err := net.Dial("tcp", l.Addr().String())
	must(err)
	_, err = c.Write([]byte("hello"))
	must(err)
	heard.Scan() // it has read
	cut(c)
	say("%d", child.Process.Pid)
	in.Scan()
	must(child.Wait())
}

func worker(*bufio.Scanner) {
	l, err := net.FileListener(os.NewFile(3, "listener"))
	must(err)
	c, err := l.Accept()
	must(err)
	_, err = c.Read(make([]byte, 16))
	must(err)
	say("read")
	_, _ = c.Read(make([]byte, 1)) // is reset
	must(c.Close())
}

// noPort uses up the only local port of its network namespace.
func noPort(in *bufio.Scanner) {
	must(setUp("lo"))
	l, err := net.Listen("tcp", "127.0.0.1:80")
	must(err)
	must(os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("40000 40000"), 0))
	first, err := net.Dial("tcp", l.Addr().String())
	must(err)
	_, err = net.Dial("tcp", l.Addr().String())
	say("%v", err)
	in.Scan()
	must(first.Close())
}

// The far ends of the path, all behind one TUN device.
const (
	nearEnd     = "198.51.100.1"
	farEnd      = "198.51.100.2" // answers after the delay
	blackHole   = "198.51.100.3" // never answers
	unreachable = "198.51.100.4" // somebody on the way says that there is no way
	echoPort    = "7"
)

// path is a network path in a namespace of its own, as slow and lossy as the
// test wants it: delay D, drop on|off; and connections over it: connect ADDR
// TIMEOUT, kernel-timeout ADDR, chat (a long-lived connection that exchanges a
// byte all the time), send (one that only writes), hang-up.
func path(in *bufio.Scanner) {
	must(setUp("lo"))
	p := openPath()
	go serveEcho(net.JoinHostPort(nearEnd, echoPort))
	say("ready")
	var conn net.Conn
	for in.Scan() {
		words := strings.Fields(in.Text())
		switch words[0] {
		case "delay":
			d, err := time.ParseDuration(words[1])
			must(err)
			p.delay.Store(int64(d))
		case "drop":
			p.drop.Store(words[1] == "on")
		case "connect":
			timeout, err := time.ParseDuration(words[2])
			must(err)
			_, err = net.DialTimeout("tcp", words[1], timeout)
			say("%v", err)
		case "kernel-timeout":
			say("%v", kernelTimeout(words[1]))
		case "chat":
			conn = chat()
			say("%s", conn.LocalAddr())
		case "send":
			_, err := conn.Write(make([]byte, 4096))
			must(err)
		case "hang-up":
			must(conn.Close())
		}
	}
}

// chat exchanges one byte after the other until the connection is closed.
func chat() net.Conn {
	var c net.Conn
	var err error
	for { // the echo server may not listen yet
		if c, err = net.Dial("tcp", net.JoinHostPort(farEnd, echoPort)); err == nil {
			break
		}
	}
	go func() {
		b := []byte{1}
		for {
			if _, err := c.Write(b); err != nil {
				return
			}
			if _, err := c.Read(b); err != nil {
				return
			}
			time.Sleep(20 * time.Millisecond) // a talk, not a flood
		}
	}()
	return c
}

func serveEcho(address string) {
	l, err := net.Listen("tcp", address)
	must(err)
	for {
		c, err := l.Accept()
		must(err)
		go func() {
			defer func() { _ = c.Close() }() // the client sees what went wrong
			buf := make([]byte, 4096)
			for {
				n, err := c.Read(buf)
				if err != nil {
					return
				}
				if _, err := c.Write(buf[:n]); err != nil {
					return
				}
			}
		}()
	}
}

// kernelTimeout connects with as few attempts as the kernel allows.
func kernelTimeout(address string) error {
	to, err := netip.ParseAddrPort(address)
	must(err)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(err)
	defer func() { must(unix.Close(fd)) }()
	must(unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_SYNCNT, 1))
	return unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
}

// tunPath reflects every packet that is sent to the far end: with the two
// addresses exchanged it comes back to the near end, where the echo server is.
// The checksums stay right, for they are sums.
type tunPath struct {
	file  *os.File
	delay atomic.Int64 // ns, each way
	drop  atomic.Bool
	queue chan packet
}

type packet struct {
	bytes []byte
	due   time.Time
}

func openPath() *tunPath {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(err)
	ifr, err := unix.NewIfreq("tun0")
	must(err)
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	must(unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr))
	must(unix.SetNonblock(fd, true))

	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	must(err)
	defer func() { must(unix.Close(s)) }()
	near := netip.MustParseAddr(nearEnd).As4()
	must(ifr.SetInet4Addr(near[:]))
	must(unix.IoctlIfreq(s, unix.SIOCSIFADDR, ifr))
	must(ifr.SetInet4Addr([]byte{255, 255, 255, 0}))
	must(unix.IoctlIfreq(s, unix.SIOCSIFNETMASK, ifr))
	must(setUp("tun0"))

	p := &tunPath{file: os.NewFile(uintptr(fd), "tun"), queue: make(chan packet, 4096)}
	go p.read()
	go p.write()
	return p
}

func setUp(device string) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { must(unix.Close(s)) }()
	ifr, err := unix.NewIfreq(device)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, ifr)
}

func (p *tunPath) read() {
	for {
		b := make([]byte, 65536)
		n, err := p.file.Read(b)
		must(err)
		b = b[:n]
		if len(b) < 20 || b[0]>>4 != 4 {
			continue
		}
		src, dst := netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		switch dst.String() {
		case blackHole:
			continue
		case unreachable:
			b = hostUnreachable(b, src)
		default:
			if p.drop.Load() {
				continue
			}
			copy(b[12:16], dst.AsSlice())
			copy(b[16:20], src.AsSlice())
		}
		p.queue <- packet{b, time.Now().Add(time.Duration(p.delay.Load()))}
	}
}

// write keeps the order of the packets also when the delay falls.
func (p *tunPath) write() {
	for pkt := range p.queue {
		time.Sleep(time.Until(pkt.due))
		_, err := p.file.Write(pkt.bytes)
		must(err)
	}
}

// hostUnreachable is the ICMP message that a router sends back.
func hostUnreachable(original []byte, to netip.Addr) []byte {
	quoted := original[:min(len(original), 28)]
	b := make([]byte, 28+len(quoted))
	b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_ICMP
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	copy(b[12:], netip.MustParseAddr(farEnd).AsSlice())
	copy(b[16:], to.AsSlice())
	binary.BigEndian.PutUint16(b[10:], checksum(b[:20]))
	b[20], b[21] = 3, 1
	copy(b[28:], quoted)
	binary.BigEndian.PutUint16(b[22:], checksum(b[20:]))
	return b
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
