// Package state keeps on disk, for each kind of object, up to where everything is
// in the gateway's log, and the last version of each object that is there.
package state

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

const (
	fileName = "portti.db"
	// format of the file. One of another format is put aside.
	format = "1"
	// DigestKeyBytes is the length of the key of the digests of secrets.
	DigestKeyBytes = 32
	// lockWithin is how long another process may hold the file: one that is being
	// replaced ends within it.
	lockWithin = 5 * time.Second
)

var (
	bucketMeta    = []byte("meta") // format, cluster, digest key
	bucketKinds   = []byte("kinds")
	bucketObjects = []byte("objects") // of a kind: version by UID
	keyFormat     = []byte("format")
	keyCluster    = []byte("cluster")
	keyDigest     = []byte("digest_key")
	keyResource   = []byte("resource_version") // of a kind
)

// ErrLocked tells that another process uses the directory.
var ErrLocked = errors.New("another process uses it: give each portti a directory of its own")

// Store is the file. Its methods may be called from any goroutine.
type Store struct {
	db        *bolt.DB
	digestKey []byte
}

// Changes are what became known of one kind.
type Changes struct {
	// ResourceVersion is up to where everything is known; empty for no news.
	ResourceVersion string
	// Objects has the new version of each that changed, nil for one that is gone.
	Objects map[string][]byte
}

// Open opens the state in a directory, which it makes if need be. cluster is the
// identity of the cluster that the state is about; empty for any. A file that is
// damaged, or of another format or cluster, is renamed, which is logged, and a new
// one begun. The error is ErrLocked, or the disk's.
func Open(dir, cluster string, log *slog.Logger) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the state directory: %w", err)
	}
	path := filepath.Join(dir, fileName)
	s, err := open(path, cluster)
	var unusable *unusableError
	if !errors.As(err, &unusable) {
		return s, err
	}
	aside := fmt.Sprintf("%s.%s", path, time.Now().UTC().Format("20060102T150405.000"))
	if err := os.Rename(path, aside); err != nil {
		return nil, fmt.Errorf("put the state aside, which cannot be used (%w): %w", unusable, err)
	}
	log.Warn("the state cannot be used: all objects are listed and sent anew; the gateway drops what it has",
		"error", unusable, "kept_as", aside)
	return open(path, cluster)
}

// unusableError is why a file cannot be used now or ever.
type unusableError struct{ error }

func open(path, cluster string) (s *Store, err error) {
	db, err := openFile(path)
	if err != nil {
		return nil, err
	}
	s = &Store{db: db}
	if err := guard(func() error { return s.prepare(cluster) }); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return s, nil
}

func openFile(path string) (db *bolt.DB, err error) {
	err = guard(func() error {
		// Without the list of free pages in the file bbolt finds them on a goroutine
		// of its own, and a panic there cannot be caught.
		db, err = bolt.Open(path, 0o600, &bolt.Options{Timeout: lockWithin, FreelistType: bolt.FreelistMapType})
		return err
	})
	var disk *fs.PathError
	switch {
	case err == nil:
		return db, nil
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, fmt.Errorf("lock %s: %w", path, ErrLocked)
	case errors.As(err, &disk):
		return nil, fmt.Errorf("open the state: %w", err)
	default: // not one of bbolt's files
		return nil, &unusableError{fmt.Errorf("open %s: %w", path, err)}
	}
}

// guard runs f and makes an error of the panics and faults by which bbolt tells
// that pages are damaged.
func guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = &unusableError{fmt.Errorf("the file is damaged: %v", p)}
		}
	}()
	return f()
}

// prepare checks that the file is ours, or makes it so if it is new.
func (s *Store) prepare(cluster string) error {
	return s.db.Update(func(tx *bolt.Tx) error {
		if err := tx.ForEach(func(_ []byte, b *bolt.Bucket) error { return walk(b) }); err != nil {
			return err
		}
		fresh := tx.Bucket(bucketMeta) == nil
		meta, err := tx.CreateBucketIfNotExists(bucketMeta)
		if err != nil {
			return err
		}
		if _, err := tx.CreateBucketIfNotExists(bucketKinds); err != nil {
			return err
		}
		if fresh {
			if err := errors.Join(meta.Put(keyFormat, []byte(format)), meta.Put(keyDigest, NewDigestKey())); err != nil {
				return err
			}
		}
		if found := meta.Get(keyFormat); string(found) != format {
			return &unusableError{fmt.Errorf("the file has format %q, not %q", found, format)}
		}
		if s.digestKey = append([]byte(nil), meta.Get(keyDigest)...); len(s.digestKey) != DigestKeyBytes {
			return &unusableError{errors.New("the file has no digest key")}
		}
		known := meta.Get(keyCluster)
		switch {
		case cluster == "" || string(known) == cluster:
			return nil
		case known == nil:
			return meta.Put(keyCluster, []byte(cluster))
		default:
			return &unusableError{fmt.Errorf("the file is about another cluster, %s, not %s", known, cluster)}
		}
	})
}

// walk touches every page, because those that are damaged make bbolt panic. Its
// own check would do that where it cannot be caught.
func walk(b *bolt.Bucket) error {
	return b.ForEach(func(key, value []byte) error {
		if value == nil {
			return walk(b.Bucket(key))
		}
		return nil
	})
}

// NewDigestKey makes a key of the digests of secrets.
func NewDigestKey() []byte {
	key := make([]byte, DigestKeyBytes)
	_, _ = rand.Read(key) // never fails
	return key
}

// DigestKey is the key of the digests of secrets, random and never sent.
func (s *Store) DigestKey() []byte { return s.digestKey }

// Load calls each with the version of every object of a kind, valid until it
// returns, and tells up to where the kind is known; empty if it is not.
func (s *Store) Load(kind string, each func(uid string, version []byte) error) (resourceVersion string, err error) {
	err = guard(func() error {
		return s.db.View(func(tx *bolt.Tx) error {
			b := tx.Bucket(bucketKinds).Bucket([]byte(kind))
			if b == nil {
				return nil
			}
			resourceVersion = string(b.Get(keyResource))
			return b.Bucket(bucketObjects).ForEach(func(uid, packed []byte) error {
				version, err := unpack(packed)
				if err != nil {
					return err
				}
				return each(string(uid), version)
			})
		})
	})
	if err != nil {
		return "", fmt.Errorf("read the state of kind %s: %w", kind, err)
	}
	return resourceVersion, nil
}

// Forget removes everything that is known of a kind.
func (s *Store) Forget(kind string) error {
	err := guard(func() error {
		return s.db.Update(func(tx *bolt.Tx) error {
			if err := tx.Bucket(bucketKinds).DeleteBucket([]byte(kind)); !errors.Is(err, bolterrors.ErrBucketNotFound) {
				return err
			}
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("forget the state of kind %s: %w", kind, err)
	}
	return nil
}

// Save writes changes by kind, all or none, through to the disk.
func (s *Store) Save(changes map[string]Changes) error {
	packer, err := newPacker()
	if err != nil {
		return err
	}
	err = guard(func() error {
		return s.db.Update(func(tx *bolt.Tx) error {
			for kind, c := range changes {
				if err := save(tx.Bucket(bucketKinds), kind, c, packer); err != nil {
					return err
				}
			}
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("write the state: %w", err)
	}
	return nil
}

func save(kinds *bolt.Bucket, kind string, c Changes, packer *packer) error {
	b, err := kinds.CreateBucketIfNotExists([]byte(kind))
	if err != nil {
		return err
	}
	objects, err := b.CreateBucketIfNotExists(bucketObjects)
	if err != nil {
		return err
	}
	for uid, version := range c.Objects {
		if version == nil {
			err = objects.Delete([]byte(uid))
		} else {
			err = objects.Put([]byte(uid), packer.pack(version))
		}
		if err != nil {
			return err
		}
	}
	if c.ResourceVersion == "" {
		return nil
	}
	return b.Put(keyResource, []byte(c.ResourceVersion))
}

// Close releases the file.
func (s *Store) Close() error { return s.db.Close() }
