package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/pressly/goose/v3"
	"golang.org/x/sys/unix"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

const (
	// sqliteReaders is how many queries run at a time: each has a cache.
	sqliteReaders = 4
	// The caches of the connections in KiB. The writer's holds what a commit
	// changes and the upper levels of the indexes.
	writeCache, readCache = 64 << 10, 8 << 10
	// walPages is how long the write-ahead log gets before it is merged into
	// the database, in pages of 4 KiB: the more, the fewer pages are written
	// twice.
	walPages = 8192
	// busyTimeout is how long a connection waits for another's lock. Only a
	// backup or a person with sqlite3 holds one that long.
	busyTimeout = 10 * time.Second
)

// openSQLite opens DIR/ahti.db. An acknowledged event survives the loss of
// power: in WAL mode synchronous=FULL syncs the log at each commit.
func (s *Store) openSQLite(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the data directory: %w; set --data-dir to a directory that can be written", err)
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("find the data directory: %w", err)
	}
	if err := s.lock(filepath.Join(dir, "lock")); err != nil {
		return err
	}
	s.dialect = dialect{
		name: "sqlite", goose: goose.DialectSQLite3,
		size: sqliteSize, giveBack: sqliteGiveBack, mapFailure: sqliteFailure,
	}
	file := filepath.Join(dir, "ahti.db")
	open := func(cache int, pragmas ...string) (*sql.DB, error) {
		address := url.URL{Scheme: "file", Path: file, RawQuery: url.Values{
			"_txlock": {"immediate"},
			// Applied in this order: auto_vacuum must come before the file is made.
			"_pragma": append([]string{
				fmt.Sprintf("busy_timeout(%d)", busyTimeout.Milliseconds()),
				"auto_vacuum(INCREMENTAL)", "journal_mode(WAL)", "synchronous(FULL)",
				fmt.Sprintf("cache_size(-%d)", cache), "temp_store(MEMORY)",
			}, pragmas...),
		}.Encode()}
		db, err := sql.Open("sqlite", address.String())
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", file, err)
		}
		s.close = append(s.close, db.Close)
		return db, nil
	}
	if s.write, err = open(writeCache, fmt.Sprintf("wal_autocheckpoint(%d)", walPages),
		fmt.Sprintf("journal_size_limit(%d)", walPages*4096*2)); err != nil {
		return err
	}
	s.write.SetMaxOpenConns(1)
	if err := s.write.Ping(); err != nil { // makes the file before a reader does
		return fmt.Errorf("open %s: %w", file, sqliteFailure(err))
	}
	if s.read, err = open(readCache, "query_only(1)"); err != nil {
		return err
	}
	s.read.SetMaxOpenConns(sqliteReaders)
	s.read.SetMaxIdleConns(sqliteReaders)
	return nil
}

// lock keeps a second process out: two would give the same sequences.
func (s *Store) lock(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("lock the data directory: %w; set --data-dir to a directory that can be written", err)
	}
	s.close = append(s.close, f.Close)
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("lock %s: another ahti uses this data directory; stop it or set --data-dir to another (%w)", path, err)
	}
	return nil
}

// sqliteSize tells the pages in use: those that were freed are used again.
func sqliteSize(ctx context.Context, s *Store) (int64, error) {
	var used int64
	err := s.read.QueryRowContext(ctx, `SELECT (page_count - freelist_count) * page_size
		FROM pragma_page_count, pragma_freelist_count, pragma_page_size`).Scan(&used)
	if err != nil {
		return 0, fmt.Errorf("read the size of the store: %w", err)
	}
	return used, nil
}

// vacuumPages is how many free pages go back to the file system at a time. The
// writer waits meanwhile.
const vacuumPages = 256

// sqliteGiveBack shortens the file by some of its free pages. A share of them
// stays for what comes next.
func sqliteGiveBack(ctx context.Context, s *Store) error {
	var free, all int64
	err := s.write.QueryRowContext(ctx, "SELECT freelist_count, page_count FROM pragma_freelist_count, pragma_page_count").Scan(&free, &all)
	if err != nil {
		return fmt.Errorf("count free pages: %w", err)
	}
	const keep = 20 // one page of so many
	if free <= all/keep+vacuumPages {
		return nil
	}
	// The pragma frees a page each step.
	rows, err := s.write.QueryContext(ctx, fmt.Sprintf("PRAGMA incremental_vacuum(%d)", vacuumPages))
	if err != nil {
		return fmt.Errorf("give free pages back: %w", err)
	}
	for rows.Next() {
		continue
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return fmt.Errorf("give free pages back: %w", err)
	}
	return nil
}

// sqliteFailure says what to do about what a user can do something about.
func sqliteFailure(err error) error {
	var failure *sqlite.Error
	if !errors.As(err, &failure) {
		return err
	}
	switch failure.Code() & 0xff { // the upper bits tell more
	case sqlite3.SQLITE_FULL:
		return fmt.Errorf("%w: free space in the file system of --data-dir, or set --max-bytes or --retention lower", err)
	case sqlite3.SQLITE_IOERR:
		return fmt.Errorf("%w: look for errors of the disk in the kernel's log", err)
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return fmt.Errorf("%w: the file is damaged; restore a backup, or save what is left with `sqlite3 ahti.db .recover`", err)
	}
	return err
}
