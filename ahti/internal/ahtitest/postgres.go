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
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/yairfalse/tapio/ahti/internal/store"
)

// Postgres is a private PostgreSQL server, reached by a socket in its directory.
type Postgres struct {
	dir, bin  string
	account   *syscall.Credential // PostgreSQL refuses to run as root
	databases atomic.Int64
}

// StartPostgres starts a server. Options are settings, such as "fsync=off".
func StartPostgres(options ...string) (*Postgres, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil || len(found) == 0 {
		return nil, errors.New("PostgreSQL is not installed (/usr/lib/postgresql/*/bin): install the package postgresql")
	}
	p := &Postgres{bin: filepath.Dir(found[len(found)-1])}
	if p.dir, err = os.MkdirTemp("/tmp", "ahti-pg"); err != nil {
		return nil, fmt.Errorf("make a directory for PostgreSQL: %w", err)
	}
	if os.Geteuid() == 0 {
		if err := p.becomePostgres(); err != nil {
			return nil, err
		}
	}
	if err := p.run("initdb", "-D", p.dir+"/data", "-A", "trust", "-U", "ahti", "--no-sync", "-E", "UTF8", "--locale", "C.UTF-8"); err != nil {
		return nil, err
	}
	settings := "-c listen_addresses= -k " + p.dir
	for _, o := range options {
		settings += " -c " + o
	}
	return p, p.run("pg_ctl", "-D", p.dir+"/data", "-l", p.dir+"/log", "-w", "-t", "60", "-o", settings, "start")
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
	// To a file: the server inherits it and would hold a pipe open.
	out, err := os.CreateTemp(p.dir, name)
	if err != nil {
		return err
	}
	cmd.Stdout, cmd.Stderr = out, out
	err = cmd.Run()
	if err != nil {
		said, _ := os.ReadFile(out.Name()) // what it says helps, if it can be read
		err = fmt.Errorf("%s: %w: %s", name, err, said)
	}
	return errors.Join(err, out.Close())
}

// Stop ends the server at once and removes its files.
func (p *Postgres) Stop() error {
	return errors.Join(p.run("pg_ctl", "-D", p.dir+"/data", "-m", "immediate", "-w", "stop"), os.RemoveAll(p.dir))
}

// Restart ends the server as a crash does and starts it again.
func (p *Postgres) Restart() error {
	return p.run("pg_ctl", "-D", p.dir+"/data", "-m", "immediate", "-w", "-t", "60", "-l", p.dir+"/log", "restart")
}

// Database makes an empty database and returns its URL.
func (p *Postgres) Database(t testing.TB) string {
	t.Helper()
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

// Stores runs a test over SQLite and over PostgreSQL. p is nil when there is
// none; reason says why.
func Stores(t *testing.T, p *Postgres, reason error, test func(t *testing.T, config store.Config)) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) { test(t, store.Config{Dir: t.TempDir()}) })
	t.Run("postgres", func(t *testing.T) {
		if p == nil {
			t.Skip(reason)
		}
		test(t, store.Config{URL: p.Database(t)})
	})
}
