// Package store keeps events and what follows from them in SQLite or in
// PostgreSQL.
//
// The log of events is the truth. The index of entities and the facts of the
// graph follow from it and are written at checkpoints, with the sequence of the
// last event that they cover; after a crash the events behind it are read again.
// So a commit of events is one insert each, and nothing is lost between two
// transactions.
package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"sync"

	"github.com/pressly/goose/v3"
)

//go:embed migrations
var migrations embed.FS

// Config says where to store.
type Config struct {
	// Dir is the directory of the SQLite database, made if it is not there.
	Dir string
	// URL is that of a PostgreSQL database, postgres://…; it wins over Dir.
	URL string
	Log *slog.Logger
}

// ErrNotFound is returned for an id that is not stored.
var ErrNotFound = errors.New("not found")

// ErrReplaced is returned for everything that would write after another ahti has
// opened the database.
var ErrReplaced = errors.New("another ahti has opened the database since this one did: run one for a database")

// Store is the database. One Store has a database at a time. Append and
// Checkpoint are for one goroutine; everything else is safe for concurrent use.
type Store struct {
	log     *slog.Logger
	dialect dialect
	write   *sql.DB // one connection
	read    *sql.DB
	close   []func() error

	prepared struct {
		sync.Mutex
		write, read map[string]*sql.Stmt
	}

	// epoch is the number of this ahti among those that opened the database.
	epoch int64
	// last is the sequence of the newest event that is known to be stored.
	// Only the goroutine that appends uses it after Open.
	last int64
	// unsure is set after a commit of which nobody knows whether it happened.
	unsure bool

	derived derived
}

// dialect is where the two databases differ.
type dialect struct {
	name       string
	goose      goose.Dialect
	numbered   bool // placeholders are $1, not ?
	size       func(ctx context.Context, s *Store) (used int64, err error)
	giveBack   func(ctx context.Context, s *Store) error
	mapFailure func(error) error
}

// Open opens the database and brings its schema up to date. It waits for a
// PostgreSQL server that is away, until ctx ends.
func Open(ctx context.Context, config Config) (*Store, error) {
	s := &Store{log: config.Log}
	s.prepared.write, s.prepared.read = map[string]*sql.Stmt{}, map[string]*sql.Stmt{}
	s.derived.reset()
	var err error
	if config.URL != "" {
		err = s.openPostgres(ctx, config.URL)
	} else {
		err = s.openSQLite(config.Dir)
	}
	if err == nil {
		err = s.migrate(ctx)
	}
	if err == nil {
		err = s.take(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the store: %w", err), s.Close())
	}
	return s, nil
}

// Close closes the database.
func (s *Store) Close() error {
	var errs []error
	for _, statements := range []map[string]*sql.Stmt{s.prepared.write, s.prepared.read} {
		for _, stmt := range statements {
			errs = append(errs, stmt.Close())
		}
	}
	for i := len(s.close) - 1; i >= 0; i-- {
		errs = append(errs, s.close[i]())
	}
	s.close = nil
	return errors.Join(errs...)
}

func (s *Store) migrate(ctx context.Context) error {
	files, err := fs.Sub(migrations, "migrations/"+s.dialect.name)
	if err != nil {
		return fmt.Errorf("find the migrations of %s: %w", s.dialect.name, err)
	}
	provider, err := goose.NewProvider(s.dialect.goose, s.write, files,
		goose.WithDisableGlobalRegistry(true), goose.WithSlog(s.log))
	if err != nil {
		return fmt.Errorf("prepare the migrations: %w", err)
	}
	stored, err := provider.GetDBVersion(ctx)
	if err != nil {
		return fmt.Errorf("read the version of the schema: %w", err)
	}
	sources := provider.ListSources()
	if newest := sources[len(sources)-1].Version; stored > newest {
		return fmt.Errorf("the schema has version %d and this ahti knows %d: run the newer ahti, or restore a backup from before the upgrade", stored, newest)
	}
	if _, err := provider.Up(ctx); err != nil {
		return fmt.Errorf("migrate the schema: %w", err)
	}
	return nil
}

// take makes this ahti the one that writes, as soon as the transactions of another
// are over.
func (s *Store) take(ctx context.Context) error {
	err := s.transact(ctx, func(t transaction) error {
		if _, err := t.exec(ctx, "UPDATE writer SET epoch = epoch + 1"); err != nil {
			return err
		}
		return t.tx.QueryRowContext(ctx, "SELECT epoch FROM writer").Scan(&s.epoch)
	})
	if err == nil {
		err = s.write.QueryRowContext(ctx, "SELECT COALESCE(MAX(sequence), 0) FROM events").Scan(&s.last)
	}
	if err != nil {
		return fmt.Errorf("become the one that writes: %w", err)
	}
	return nil
}

// Kind is the name of the database: "sqlite" or "postgres".
func (s *Store) Kind() string { return s.dialect.name }

// Ping says whether the database answers.
func (s *Store) Ping(ctx context.Context) error {
	var one int
	if err := s.read.QueryRowContext(ctx, "SELECT 1").Scan(&one); err != nil {
		return fmt.Errorf("ask the store: %w", err)
	}
	return nil
}

// Size is how many bytes the stored data take; 0 where that cannot be told.
func (s *Store) Size(ctx context.Context) (int64, error) { return s.dialect.size(ctx, s) }

// placeholders rewrites ? to what the database wants. No query of this package
// has a question mark in a literal.
func (s *Store) placeholders(query string) string {
	if !s.dialect.numbered {
		return query
	}
	var b strings.Builder
	n := 0
	for _, part := range strings.SplitAfter(query, "?") {
		if rest, found := strings.CutSuffix(part, "?"); found {
			n++
			fmt.Fprintf(&b, "%s$%d", rest, n)
		} else {
			b.WriteString(part)
		}
	}
	return b.String()
}

// reader returns a prepared statement for a query.
func (s *Store) reader(ctx context.Context, query string) (*sql.Stmt, error) {
	return s.prepare(ctx, s.read, s.prepared.read, query)
}

// prepare does not hold the lock while it waits for a connection: a transaction
// that has it asks for statements too.
func (s *Store) prepare(ctx context.Context, db *sql.DB, statements map[string]*sql.Stmt, query string) (*sql.Stmt, error) {
	s.prepared.Lock()
	stmt := statements[query]
	s.prepared.Unlock()
	if stmt != nil {
		return stmt, nil
	}
	stmt, err := db.PrepareContext(ctx, s.placeholders(query))
	if err != nil {
		return nil, fmt.Errorf("prepare a statement: %w", err)
	}
	s.prepared.Lock()
	defer s.prepared.Unlock()
	if first := statements[query]; first != nil {
		return first, stmt.Close()
	}
	statements[query] = stmt
	return stmt, nil
}

// query runs a query and hands each row to scan.
func (s *Store) query(ctx context.Context, query string, args []any, scan func(*sql.Rows) error) (err error) {
	stmt, err := s.reader(ctx, query)
	if err != nil {
		return err
	}
	rows, err := stmt.QueryContext(ctx, args...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// transaction is a transaction of the one connection that writes.
type transaction struct {
	store *Store
	tx    *sql.Tx
	own   map[string]*sql.Stmt // prepared for this transaction alone
}

// inTransaction commits what do did, or nothing of it. It returns ErrReplaced when
// another ahti has become the one that writes; until the commit none does.
func (s *Store) inTransaction(ctx context.Context, do func(transaction) error) error {
	return s.transact(ctx, func(t transaction) error {
		// An update holds the row until the commit in every database.
		switch n, err := t.exec(ctx, "UPDATE writer SET epoch = epoch WHERE epoch = ?", s.epoch); {
		case err != nil:
			return err
		case n == 0:
			return ErrReplaced
		}
		return do(t)
	})
}

func (s *Store) transact(ctx context.Context, do func(transaction) error) error {
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return s.dialect.mapFailure(err)
	}
	t := transaction{s, tx, map[string]*sql.Stmt{}}
	if err := do(t); err != nil {
		_ = tx.Rollback() // the connection is gone, or it is rolled back
		return s.dialect.mapFailure(err)
	}
	if err := tx.Commit(); err != nil {
		_ = tx.Rollback()
		return s.dialect.mapFailure(fmt.Errorf("commit: %w", err))
	}
	for query := range t.own {
		if _, err := s.prepare(ctx, s.write, s.prepared.write, query); err != nil {
			s.log.Warn("a statement will be prepared each time", "error", err)
		}
	}
	return nil
}

// statement returns a prepared statement. The pool has one connection, and this
// transaction has it: what is not prepared yet can be prepared for good only
// after it.
func (t transaction) statement(ctx context.Context, query string) (*sql.Stmt, error) {
	if stmt := t.own[query]; stmt != nil {
		return stmt, nil
	}
	t.store.prepared.Lock()
	stmt := t.store.prepared.write[query]
	t.store.prepared.Unlock()
	if stmt != nil {
		return t.tx.StmtContext(ctx, stmt), nil
	}
	stmt, err := t.tx.PrepareContext(ctx, t.store.placeholders(query))
	if err != nil {
		return nil, fmt.Errorf("prepare a statement: %w", err)
	}
	t.own[query] = stmt
	return stmt, nil
}

func (t transaction) exec(ctx context.Context, query string, args ...any) (int64, error) {
	stmt, err := t.statement(ctx, query)
	if err != nil {
		return 0, err
	}
	result, err := stmt.ExecContext(ctx, args...)
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

// bulk holds the numbers of rows that one statement takes, so that few
// statements serve every number of rows.
var bulk = [...]int{250, 50, 10, 1}

// insert adds rows of n values each. The query ends where its rows begin; tail
// follows them.
func (t transaction) insert(ctx context.Context, query string, n int, values []any, tail string) error {
	row := ",(" + strings.TrimSuffix(strings.Repeat("?,", n), ",") + ")"
	for _, rows := range bulk {
		if len(values) < rows*n {
			continue
		}
		statement := query + strings.Repeat(row, rows)[1:] + tail
		for ; len(values) >= rows*n; values = values[rows*n:] {
			if _, err := t.exec(ctx, statement, values[:rows*n]...); err != nil {
				return err
			}
		}
	}
	return nil
}
