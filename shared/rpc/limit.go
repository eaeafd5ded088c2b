package rpc

import (
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
)

// reservedFiles are left for everything that is no connection: logs, stores,
// other servers.
const reservedFiles = 256

// affordable lowers a number of connections to what the process may open.
func affordable(connections int, log *slog.Logger) (int, error) {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return 0, fmt.Errorf("read the limit of open files: %w", err)
	}
	if files.Cur <= 2*reservedFiles {
		return 0, fmt.Errorf("the limit of open files is %d: allow at least %d (ulimit -n)", files.Cur, 4*reservedFiles)
	}
	if most := files.Cur - reservedFiles; uint64(connections) > most {
		log.Info("the limit of open files lowers the limit of connections", "connections", most, "files", files.Cur)
		return int(most), nil
	}
	return connections, nil
}

// limited is a listener that closes connections beyond a number at once. The
// client learns of it and tries again later; one that waits in the backlog
// learns nothing.
type limited struct {
	net.Listener
	most    int64
	open    atomic.Int64
	metrics *metrics
}

// Accept returns the next connection that there is room for.
func (l *limited) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.open.Add(1) > l.most {
			l.open.Add(-1)
			l.metrics.refused.Inc()
			_ = conn.Close() // nothing was sent that could be lost
			continue
		}
		l.metrics.connections.Inc()
		return &counted{Conn: conn, closed: sync.OnceFunc(func() {
			l.open.Add(-1)
			l.metrics.connections.Dec()
		})}, nil
	}
}

// counted tells once that it is closed.
type counted struct {
	net.Conn
	closed func()
}

// Close closes the connection and makes room.
func (c *counted) Close() error {
	defer c.closed()
	return c.Conn.Close()
}
