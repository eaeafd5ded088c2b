package journal

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

const (
	// startTimeout is how long the embedded server may read its files: it checks
	// what a crash left.
	startTimeout = 2 * time.Minute
	// embeddedPayload is the largest message that the embedded server takes.
	embeddedPayload = 2 << 20
	// embeddedMemory bounds what JetStream may keep in memory: no stream of ours
	// does.
	embeddedMemory = 16 << 20
	// embeddedStore is more than any disk: the log has its own limits.
	embeddedStore = 1 << 50
)

// embedded is a NATS server in this process, without any port. It can be
// replaced by a new one on the same files; connections then go to the new one.
type embedded struct {
	dir  string
	log  *slog.Logger
	lock *os.File

	mu     sync.Mutex
	server *server.Server
}

func openEmbedded(dir string, log *slog.Logger) (*embedded, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create the directory of the log: %w: set --data-dir to one that can be written", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the log: %w: set --data-dir to a directory that can be written", err)
	}
	e := &embedded{dir: dir, log: log, lock: lock}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		err = fmt.Errorf("lock the log in %s: %w: another polku has it; give each its own --data-dir", dir, err)
		return nil, errors.Join(err, lock.Close())
	}
	if err := e.start(); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return e, nil
}

// start starts a server. The caller holds mu, or is the only one.
func (e *embedded) start() error {
	s, err := server.NewServer(&server.Options{
		ServerName:         "polku",
		DontListen:         true,
		NoSigs:             true,
		JetStream:          true,
		StoreDir:           e.dir,
		SyncAlways:         true, // before the ack, or an ack would mean little
		MaxPayload:         embeddedPayload,
		JetStreamMaxMemory: embeddedMemory,
		JetStreamMaxStore:  embeddedStore,
	})
	if err != nil {
		return fmt.Errorf("prepare the embedded log in %s: %w", e.dir, err)
	}
	s.SetLogger(serverLog{e.log.With("component", "nats")}, false, false)
	s.Start()
	if !s.ReadyForConnections(startTimeout) || !s.JetStreamEnabled() {
		s.Shutdown()
		return fmt.Errorf("start the embedded log in %s: not ready after %s: its own log above tells why", e.dir, startTimeout)
	}
	e.server = s
	return nil
}

// restart replaces the server by a new one that reads the files anew.
func (e *embedded) restart() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.server.Shutdown()
	e.server.WaitForShutdown()
	return e.start()
}

// InProcessConn connects to the server that runs now.
func (e *embedded) InProcessConn() (net.Conn, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.server.InProcessConn()
}

// works reports whether JetStream takes messages. After its disk failed it does
// not, for good, and does not answer either.
func (e *embedded) works() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.server.JetStreamEnabled() && e.server.Healthz(nil).StatusCode == http.StatusOK
}

// free is how many bytes the disk of the log has left for this process.
func (e *embedded) free() (int64, error) {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(e.dir, &fs); err != nil {
		return 0, fmt.Errorf("read the free space of %s: %w", e.dir, err)
	}
	return int64(fs.Bavail) * fs.Bsize, nil
}

func (e *embedded) close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.server.Shutdown()
	e.server.WaitForShutdown()
	return e.lock.Close()
}

// serverLog hands what the server logs to ours. Its notices are about itself.
type serverLog struct{ log *slog.Logger }

// Noticef implements server.Logger.
func (l serverLog) Noticef(format string, v ...any) { l.log.Debug(sprint(format, v)) }

// Warnf implements server.Logger.
func (l serverLog) Warnf(format string, v ...any) { l.log.Warn(sprint(format, v)) }

// Fatalf implements server.Logger.
func (l serverLog) Fatalf(format string, v ...any) { l.log.Error(sprint(format, v)) }

// Errorf implements server.Logger.
func (l serverLog) Errorf(format string, v ...any) { l.log.Error(sprint(format, v)) }

// Debugf implements server.Logger.
func (l serverLog) Debugf(format string, v ...any) { l.log.Debug(sprint(format, v)) }

// Tracef implements server.Logger.
func (l serverLog) Tracef(format string, v ...any) { l.log.Debug(sprint(format, v)) }

func sprint(format string, v []any) string { return strings.TrimSpace(fmt.Sprintf(format, v...)) }
