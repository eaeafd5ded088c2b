package tcp

import (
	"net"
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/yairfalse/tapio/bpf"
)

// BenchmarkPrograms makes healthy loopback connections, each with one request
// and one answer, and reports what every program cost by the kernel's own
// statistics: ns a run and runs a connection. The floor is a program that does
// nothing at the same place: what measuring itself costs.
func BenchmarkPrograms(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root: BPF run-time statistics are for CAP_SYS_ADMIN")
	}
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	require.NoError(b, err)
	defer func() { assert.NoError(b, stats.Close()) }()
	shared, err := bpf.NewShared()
	require.NoError(b, err)
	defer func() { assert.NoError(b, shared.Close()) }()
	signal, err := Attach(shared, Options{})
	require.NoError(b, err)
	defer func() { assert.NoError(b, signal.Close()) }()

	floor, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "floor", Type: ebpf.Tracing, AttachType: ebpf.AttachTraceRawTp, AttachTo: "inet_sock_set_state", License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	require.NoError(b, err)
	defer func() { assert.NoError(b, floor.Close()) }()
	attached, err := link.AttachTracing(link.TracingOptions{Program: floor})
	require.NoError(b, err)
	defer func() { assert.NoError(b, attached.Close()) }()

	server, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(b, err)
	defer func() { assert.NoError(b, server.Close()) }()
	go func() {
		for {
			c, err := server.Accept()
			if err != nil {
				return
			}
			answer(c)
		}
	}()
	buf := make([]byte, 16)
	for b.Loop() {
		c, err := net.Dial("tcp", server.Addr().String())
		require.NoError(b, err)
		_, err = c.Write([]byte("ping"))
		require.NoError(b, err)
		_, err = c.Read(buf)
		require.NoError(b, err)
		require.NoError(b, c.Close())
	}
	for name, p := range map[string]*ebpf.Program{
		"floor": floor, "set_state": signal.Program("set_state"), "probe": signal.Program("probe"),
		"received": signal.Program("received"),
	} {
		s, err := p.Stats()
		require.NoError(b, err)
		b.ReportMetric(float64(s.Runtime.Nanoseconds())/float64(s.RunCount), name+"-ns/run")
		b.ReportMetric(float64(s.RunCount)/float64(b.N), name+"-runs/conn")
	}
}

// answer lets the client close first and keeps ephemeral ports from running out.
func answer(c net.Conn) {
	defer func() { _ = c.Close() }() // the client sees what went wrong
	buf := make([]byte, 16)
	if _, err := c.Read(buf); err != nil {
		return
	}
	if _, err := c.Write([]byte("pong")); err != nil {
		return
	}
	_, _ = c.Read(buf)
}
