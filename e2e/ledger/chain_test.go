package ledger

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Addresses in the namespace, where nobody else is. They lie below the ports
// that the kernel gives to connections: a client that dials a port of those
// while its server is down may meet itself.
const (
	polkuAddress  = "127.0.0.1:10051"
	polkuOperator = "127.0.0.1:10061"
	polkuHTTP     = "127.0.0.1:10081"
	ahtiAddress   = "127.0.0.1:10052"
	ahtiHTTP      = "127.0.0.1:10082"
	postgresPort  = 10432
	natsPort      = 10222 // of the first server; its peers and its HTTP are 100 and 200 above
)

const (
	natsServer = "nats-server"
	natsNodes  = 3
	// patience is how long anything may take to come back, and how long the chain
	// may make no progress at all.
	patience = 2 * time.Minute
)

// chain is everything that runs.
type chain struct {
	t        *testing.T
	settings settings
	began    time.Time
	dir      string
	books    []book

	polku, ahti *process
	sources     []*process
	nodes       []*process // of the NATS cluster; none for the embedded log
	postgres    *process   // nil for SQLite

	polkuDisk, ahtiDisk disk
	story               []string
	noticed             map[fault]int
	stopLooking         chan struct{}
}

func (c *chain) path(elements ...string) string {
	return filepath.Join(append([]string{c.dir}, elements...)...)
}

// tell adds a line to the story of the run.
func (c *chain) tell(format string, values ...any) {
	line := fmt.Sprintf("%7.1f s  %8d acked  ", time.Since(c.began).Seconds(), c.acked()) + fmt.Sprintf(format, values...)
	c.story = append(c.story, line)
	if testing.Verbose() {
		fmt.Println(line)
	}
}

// startChain starts the servers and the sources, and stops them when the test
// ends.
func startChain(t *testing.T, s settings) *chain {
	dir, err := os.MkdirTemp("", "ledger-")
	require.NoError(t, err)
	require.NoError(t, os.Chmod(dir, 0o711)) //nolint:gosec // the database server is another user
	c := &chain{t: t, settings: s, began: time.Now(), dir: dir, noticed: map[fault]int{}, stopLooking: make(chan struct{})}
	begin := time.Now().Truncate(time.Second)
	for i := range s.sources {
		c.books = append(c.books, book{
			Seed: s.seed, Source: fmt.Sprintf("node-%d", i+1), Begin: begin, Events: (s.events + s.sources - 1 - i) / s.sources,
		})
	}
	t.Cleanup(func() {
		for _, p := range c.processes() {
			if p.done != nil && !p.finished() {
				_ = p.stop(os.Kill, patience) // whatever failed was told
			}
		}
		if t.Failed() {
			t.Logf("logs are kept in %s; repeat with SEED=%d EVENTS=%d KILLS=%d", dir, s.seed, s.events, s.kills)
			return
		}
		for _, d := range []disk{c.polkuDisk, c.ahtiDisk} {
			require.NoError(t, syscall.Unmount(d.dir, 0))
		}
		require.NoError(t, os.RemoveAll(dir))
	})

	// The reserve that polku keeps free, its log, and as much again.
	c.polkuDisk, err = mountDisk(c.path("polku"), 128<<20+2*s.logBytes+64<<20)
	require.NoError(t, err)
	c.ahtiDisk, err = mountDisk(c.path("ahti"), 128<<20+int64(s.events)*bytesPerEvent)
	require.NoError(t, err)

	if s.nats {
		c.startNATS()
	}
	if s.postgres {
		c.startPostgres()
	}
	c.ahti = c.start(&process{
		name: "ahti", command: c.ahtiCommand, metrics: "http://" + ahtiHTTP + "/metrics", ready: "http://" + ahtiHTTP + "/readyz",
	})
	c.polku = c.start(&process{
		name: "polku", command: c.polkuCommand, metrics: "http://" + polkuHTTP + "/metrics", ready: "http://" + polkuHTTP + "/readyz",
	})
	c.awaitReady(c.ahti)
	c.awaitReady(c.polku)
	// While a cluster chooses a leader it does not start, and is started again.
	c.polku.excuse(s.nats)
	c.openGate(0)
	for _, b := range c.books {
		c.sources = append(c.sources, c.start(&process{name: b.Source, finite: true, command: func() *exec.Cmd { return c.sourceCommand(b) }}))
	}
	for _, p := range c.processes() {
		go c.look(p)
	}
	return c
}

func (c *chain) processes() []*process {
	var all []*process
	for _, p := range append(append([]*process{c.polku, c.ahti, c.postgres}, c.nodes...), c.sources...) {
		if p != nil {
			all = append(all, p)
		}
	}
	return all
}

func (c *chain) start(p *process) *process {
	require.NoError(c.t, p.start(c.path(p.name+".log")))
	return p
}

// look watches a process until the run ends.
func (c *chain) look(p *process) {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			p.observe()
		case <-c.stopLooking:
			return
		}
	}
}

func (c *chain) binary(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(os.Getenv(binariesVariable), name), args...)
	cmd.Dir = c.dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	return cmd
}

func (c *chain) polkuCommand() *exec.Cmd {
	args := []string{
		"--listen", polkuAddress, "--operator-listen", polkuOperator, "--http-listen", polkuHTTP, "--ahti", ahtiAddress,
		"--log-max-bytes", strconv.FormatInt(c.settings.logBytes, 10),
		"--log-retention", "1s", // what is delivered goes at once: nothing but the cursor tells what was
	}
	if c.settings.nats {
		var urls []string
		for i := range natsNodes {
			urls = append(urls, fmt.Sprintf("nats://127.0.0.1:%d", natsPort+i))
		}
		args = append(args, "--nats-url", strings.Join(urls, ","), "--nats-replicas", strconv.Itoa(natsNodes))
	} else {
		args = append(args, "--data-dir", filepath.Join(c.polkuDisk.dir, "data"))
	}
	return c.binary("polku", args...)
}

func (c *chain) ahtiCommand() *exec.Cmd {
	args := []string{"--listen", ahtiAddress, "--telemetry-listen", ahtiHTTP, "--http-listen", ""}
	if c.settings.postgres {
		args = append(args, "--store", c.postgresURL())
	} else {
		args = append(args, "--data-dir", c.ahtiData())
	}
	return c.binary("ahti", args...)
}

func (c *chain) ahtiData() string { return filepath.Join(c.ahtiDisk.dir, "data") }

func (c *chain) sourceCommand(b book) *exec.Cmd {
	order, err := json.Marshal(sourceOrder{Book: b, Gateway: polkuAddress, Journal: c.journal(b), Gate: c.gate(b)})
	if err != nil {
		panic(err) // text and numbers can be encoded
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), sourceVariable+"="+string(order))
	return cmd
}

func (c *chain) journal(b book) string { return c.path(b.Source + ".acked") }
func (c *chain) gate(b book) string    { return c.path(b.Source + ".gate") }

// openGate lets the sources send so many events together.
func (c *chain) openGate(events int) {
	for _, b := range c.books {
		share := min(b.Events, (events+len(c.books)-1)/len(c.books))
		// Renamed, so that nobody reads half of it.
		require.NoError(c.t, os.WriteFile(c.gate(b)+".new", []byte(strconv.Itoa(share)), 0o600))
		require.NoError(c.t, os.Rename(c.gate(b)+".new", c.gate(b)))
	}
}

// acked is how many events the sources have had acknowledged.
func (c *chain) acked() int {
	events := 0
	for _, b := range c.books {
		if info, err := os.Stat(c.journal(b)); err == nil {
			events += int(info.Size()) / (len(b.id(0)) + 1)
		}
	}
	return events
}

// await waits until something is true, for as long as the chain gets anywhere.
func (c *chain) await(what string, is func() bool) {
	c.t.Helper()
	progress, since := -1.0, time.Now()
	for !is() {
		stored := c.ahti.total("ahti_events_ingested_total") + c.ahti.total("ahti_events_duplicate_total")
		if now := float64(c.acked()) + stored; now != progress {
			progress, since = now, time.Now()
		}
		if time.Since(since) > patience {
			require.FailNow(c.t, "the chain stands still", "it waits until %s\n%s\n%s", what, strings.Join(c.story, "\n"), c.state())
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (c *chain) awaitReady(p *process) {
	c.t.Helper()
	require.Eventually(c.t, func() bool { return answers(p.ready) }, patience, 20*time.Millisecond,
		"%s does not get ready; see %s", p.name, c.path(p.name+".log"))
}

// state tells what stands still.
func (c *chain) state() string {
	var text strings.Builder
	for _, p := range c.processes() {
		fmt.Fprintf(&text, "%s: ended %t, faults %q, last log:\n%s", p.name, p.finished(), p.faults, c.logEnd(p.name))
	}
	return text.String()
}

// logEnd is the last part of a log.
func (c *chain) logEnd(name string) string {
	const lines = 8
	log, err := os.ReadFile(c.path(name + ".log"))
	if err != nil {
		return err.Error()
	}
	all := strings.SplitAfter(string(log), "\n")
	return "  " + strings.Join(all[max(0, len(all)-1-lines):], "  ") + "\n"
}

func (c *chain) startNATS() {
	var routes []string
	for i := range natsNodes {
		routes = append(routes, fmt.Sprintf("nats://127.0.0.1:%d", natsPort+100+i))
	}
	for i := range natsNodes {
		name := fmt.Sprintf("nats-%d", i+1)
		config := fmt.Sprintf(`server_name: %s
listen: "127.0.0.1:%d"
http: "127.0.0.1:%d"
jetstream { store_dir: %q, sync_interval: always }
cluster { name: ledger, listen: "127.0.0.1:%d", routes: [%s] }
`, name, natsPort+i, natsPort+200+i, c.path(name), natsPort+100+i, `"`+strings.Join(routes, `", "`)+`"`)
		file := c.path(name + ".conf")
		require.NoError(c.t, os.WriteFile(file, []byte(config), 0o600))
		c.nodes = append(c.nodes, c.start(&process{
			name: name, ready: fmt.Sprintf("http://127.0.0.1:%d/healthz", natsPort+200+i),
			command: func() *exec.Cmd { return c.binary(natsServer, "--config", file) },
		}))
	}
	for _, n := range c.nodes {
		c.awaitReady(n)
	}
}

func (c *chain) postgresURL() string {
	return fmt.Sprintf("postgres://postgres@127.0.0.1:%d/postgres?sslmode=disable", postgresPort)
}

func (c *chain) startPostgres() {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	require.NoError(c.t, err)
	require.NotEmpty(c.t, found, "PostgreSQL is not installed: apt-get install postgresql")
	programs := found[len(found)-1]
	// The server refuses to run as root.
	account, err := user.Lookup("postgres")
	require.NoError(c.t, err)
	uid, err := strconv.Atoi(account.Uid)
	require.NoError(c.t, err)
	gid, err := strconv.Atoi(account.Gid)
	require.NoError(c.t, err)
	data := filepath.Join(c.ahtiDisk.dir, "postgres")
	require.NoError(c.t, os.Mkdir(data, 0o700))
	require.NoError(c.t, os.Chown(data, uid, gid))
	command := func(name string, args ...string) *exec.Cmd {
		cmd := exec.Command(filepath.Join(programs, name), args...)
		cmd.Dir, cmd.Env = "/", []string{"LC_ALL=C"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
		return cmd
	}
	out, err := command("initdb", "--pgdata", data, "--auth", "trust", "--username", "postgres", "--encoding", "UTF8").CombinedOutput()
	require.NoError(c.t, err, "%s", out)
	c.postgres = c.start(&process{name: "postgres", command: func() *exec.Cmd {
		return command("postgres", "-D", data, "-p", strconv.Itoa(postgresPort), "-c", "listen_addresses=127.0.0.1",
			"-c", "unix_socket_directories=", "-c", "dynamic_shared_memory_type=mmap", "-c", "max_wal_size=256MB")
	}})
	// After a kill it does not start until its last children have gone.
	c.postgres.excuse(true)
	c.awaitPostgres()
}

func (c *chain) awaitPostgres() {
	c.t.Helper()
	db, err := sql.Open("pgx", c.postgresURL())
	require.NoError(c.t, err)
	require.Eventually(c.t, func() bool { return db.PingContext(c.t.Context()) == nil }, patience, 50*time.Millisecond, "PostgreSQL does not start")
	require.NoError(c.t, db.Close())
}
