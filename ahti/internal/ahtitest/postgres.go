// Package ahtitest is what tests of several packages need: a PostgreSQL server
// of their own, and events as a cluster makes them.
package ahtitest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/yairfalse/tapio/ahti/internal/store"
)

// Postgres is a private PostgreSQL server, reached by a socket in its directory.
// It starts when the first test asks for a database.
type Postgres struct {
	options   []string
	once      sync.Once
	err       error // why it does not run
	dir, bin  string
	account   *syscall.Credential // PostgreSQL refuses to run as root
	databases atomic.Int64

	cmd   *exec.Cmd
	ended chan struct{} // closed at its end
}

// NewPostgres prepares a server. Options are settings, such as "fsync=off".
func NewPostgres(options ...string) *Postgres { return &Postgres{options: options} }

// errMissing is why a test is skipped; other failures are failures.
var errMissing = errors.New("PostgreSQL is not installed (/usr/lib/postgresql/*/bin): install the package postgresql")

func (p *Postgres) init() error {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil || len(found) == 0 {
		return errMissing
	}
	p.bin = filepath.Dir(found[len(found)-1])
	if p.dir, err = os.MkdirTemp("/tmp", "ahti-pg"); err != nil {
		return fmt.Errorf("make a directory for PostgreSQL: %w", err)
	}
	if os.Geteuid() == 0 {
		if err := p.becomePostgres(); err != nil {
			return err
		}
	}
	if err := p.run("initdb", "-D", p.dir+"/data", "-A", "trust", "-U", "ahti", "--no-sync", "-E", "UTF8", "--locale", "C.UTF-8"); err != nil {
		return err
	}
	return p.Start()
}

// Start starts the server, which Database does the first time, and waits until it
// answers. It ends with this process, however that ends.
func (p *Postgres) Start() error {
	args := []string{"-D", p.dir + "/data", "-c", "listen_addresses=", "-k", p.dir}
	for _, o := range p.options {
		args = append(args, "-c", o)
	}
	p.cmd = exec.Command(filepath.Join(p.bin, "postgres"), args...)
	p.cmd.Dir = p.dir
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: p.account, Pdeathsig: syscall.SIGQUIT}
	started := make(chan error, 1)
	p.ended = make(chan struct{})
	go func() {
		// The signal comes at the end of the thread that started the process.
		runtime.LockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait() // 0 or not depends on what its children were doing
			close(p.ended)
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start PostgreSQL: %w", err)
	}
	for deadline := time.Now().Add(time.Minute); ; {
		c, err := pgx.Connect(context.Background(), p.url("postgres"))
		if err == nil {
			return c.Close(context.Background())
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("wait for PostgreSQL: %w", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Crash ends the server without order, and waits for its end.
func (p *Postgres) Crash() error {
	if err := p.cmd.Process.Signal(syscall.SIGQUIT); err != nil {
		return fmt.Errorf("end PostgreSQL: %w", err)
	}
	<-p.ended
	return nil
}

func (p *Postgres) becomePostgres() error {
	u, err := user.Lookup("postgres")
	if err != nil {
		return fmt.Errorf("run PostgreSQL as somebody who is not root: %w", err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return err
	}
	p.account = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return os.Chown(p.dir, int(uid), int(gid))
}

func (p *Postgres) run(name string, args ...string) error {
	cmd := exec.Command(filepath.Join(p.bin, name), args...)
	cmd.Dir = p.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: p.account}
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, said)
	}
	return nil
}

// Stop ends the server, if it was started, and removes its files.
func (p *Postgres) Stop() error {
	if p.cmd == nil {
		return os.RemoveAll(p.dir)
	}
	return errors.Join(p.Crash(), os.RemoveAll(p.dir))
}

// Database makes an empty database and returns its URL.
func (p *Postgres) Database(t testing.TB) string {
	t.Helper()
	if p.once.Do(func() { p.err = p.init() }); errors.Is(p.err, errMissing) {
		t.Skip(p.err)
	} else if p.err != nil {
		t.Fatal(p.err)
	}
	name := fmt.Sprintf("test%d", p.databases.Add(1))
	ctx := context.Background()
	c, err := pgx.Connect(ctx, p.url("postgres"))
	if err == nil {
		_, err = c.Exec(ctx, "CREATE DATABASE "+name)
		err = errors.Join(err, c.Close(ctx))
	}
	if err != nil {
		t.Fatal(err)
	}
	return p.url(name)
}

func (p *Postgres) url(database string) string {
	return "postgres:///" + database + "?" + url.Values{"host": {p.dir}, "user": {"ahti"}, "sslmode": {"disable"}}.Encode()
}

// Stores runs a test over SQLite and over PostgreSQL.
func Stores(t *testing.T, p *Postgres, test func(t *testing.T, config store.Config)) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) { test(t, store.Config{Dir: t.TempDir()}) })
	t.Run("postgres", func(t *testing.T) { test(t, store.Config{URL: p.Database(t)}) })
}
