package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
)

const (
	// postgresReaders is how many queries run at a time.
	postgresReaders = 8
	// connectTimeout is how long to wait for the server.
	connectTimeout = 10 * time.Second
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
	if err := s.write.PingContext(ctx); err != nil {
		return errors.Join(fmt.Errorf("connect to PostgreSQL on %s: %w", config.Host, err))
	}
	return nil
}
