package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
)

const (
	// postgresReaders is how many queries run at a time.
	postgresReaders = 8
	// connectTimeout is how long to wait for the server.
	connectTimeout = 10 * time.Second
	// connectEvery is how often a server that cannot be reached is tried.
	connectEvery = 500 * time.Millisecond
)

// openPostgres connects to any server that speaks the protocol: nothing beyond
// plain SQL is used.
func (s *Store) openPostgres(ctx context.Context, url string) error {
	config, err := pgx.ParseConfig(url)
	if err != nil {
		// pgx hides the password in its message.
		return fmt.Errorf("read --store: %w; want postgres://USER@HOST/DATABASE", err)
	}
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = connectTimeout
	}
	if config.RuntimeParams["application_name"] == "" {
		config.RuntimeParams["application_name"] = "ahti"
	}
	s.dialect = dialect{
		name: "postgres", goose: goose.DialectPostgres, numbered: true,
		size:       func(context.Context, *Store) (int64, error) { return 0, nil },
		giveBack:   func(context.Context, *Store) error { return nil }, // autovacuum does
		mapFailure: func(err error) error { return err },
	}
	s.write = stdlib.OpenDB(*config)
	s.close = append(s.close, s.write.Close)
	s.write.SetMaxOpenConns(1)
	s.read = stdlib.OpenDB(*config)
	s.close = append(s.close, s.read.Close)
	s.read.SetMaxOpenConns(postgresReaders)
	s.read.SetMaxIdleConns(postgresReaders)
	return s.awaitPostgres(ctx, config.Host)
}

// awaitPostgres connects, and waits for a server that may start at the same time
// as ahti, until ctx ends.
func (s *Store) awaitPostgres(ctx context.Context, host string) error {
	told := ""
	for {
		err := s.write.PingContext(ctx)
		if err == nil {
			return nil
		}
		err = fmt.Errorf("connect to PostgreSQL on %s: %w", host, err)
		if !away(err) {
			return err
		}
		if err.Error() != told {
			told = err.Error()
			s.log.Warn("waiting for PostgreSQL", "error", err)
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(connectEvery):
		}
	}
}

// away reports whether an error means that the server cannot be reached or takes
// no connections yet, which passes by itself.
func away(err error) bool {
	var answer *pgconn.PgError
	if errors.As(err, &answer) {
		switch answer.Code {
		case "57P01", "57P02", "57P03", "53300": // shuts down, crashed, starts up, too many connections
			return true
		}
		return false
	}
	var network *net.OpError
	var name *net.DNSError
	return errors.As(err, &network) || errors.As(err, &name) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, io.ErrUnexpectedEOF)
}
