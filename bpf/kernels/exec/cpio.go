package main

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
)

// An archive is an initramfs being written: a cpio archive in the format
// "newc", the only one that the kernel unpacks
// (Documentation/driver-api/early-userspace/buffer-format.rst).
// It is not compressed: without KVM the kernel would take longer to decompress
// it than QEMU takes to load it.
//
// The first error stops the writing; close returns it. Names have no leading
// slash, and missing directories above them are added.
type archive struct {
	w     io.Writer
	err   error
	inode uint32
	dirs  map[string]bool // those written
}

func newArchive(w io.Writer) *archive {
	return &archive{w: w, dirs: map[string]bool{".": true}}
}

// File types of the mode field, from cpio(5).
const (
	modeDir    = 0o040000
	modeFile   = 0o100000
	modeDevice = 0o020000 // character device
)

// maxFileSize is what the eight hexadecimal digits of a size field hold, bytes.
const maxFileSize = 1<<32 - 1

type entry struct {
	name         string
	mode         uint32
	size         int64 // bytes
	major, minor uint32
}

// dir adds a directory, once.
func (a *archive) dir(name string) {
	if a.dirs[name] {
		return
	}
	a.dir(path.Dir(name))
	a.dirs[name] = true
	a.add(entry{name: name, mode: modeDir | 0o755}, nil)
}

// device adds a character device that its owner may read and write.
func (a *archive) device(name string, major, minor uint32) {
	a.dir(path.Dir(name))
	a.add(entry{name: name, mode: modeDevice | 0o600, major: major, minor: minor}, nil)
}

// content adds a file with the given content.
func (a *archive) content(name string, content []byte) {
	a.dir(path.Dir(name))
	a.add(entry{name: name, mode: modeFile | 0o644, size: int64(len(content))}, bytes.NewReader(content))
}

// file adds a copy of the file source, with its permissions.
func (a *archive) file(name, source string) {
	a.dir(path.Dir(name))
	file, err := os.Open(source)
	if err != nil {
		a.fail(err)
		return
	}
	defer func() { _ = file.Close() }() // only read
	info, err := file.Stat()
	switch {
	case err != nil:
		a.fail(err)
	case !info.Mode().IsRegular():
		a.fail(fmt.Errorf("%s is not a regular file", source))
	default:
		a.add(entry{name: name, mode: modeFile | uint32(info.Mode().Perm()), size: info.Size()}, file)
	}
}

// tree adds a copy of the directory source. A link to a file becomes the file;
// a link to a directory is an error, because it may lead into a circle.
func (a *archive) tree(name, source string) {
	err := filepath.WalkDir(source, func(from string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(source, from)
		if err != nil {
			return err
		}
		if to := path.Join(name, filepath.ToSlash(relative)); d.IsDir() {
			a.dir(to)
		} else {
			a.file(to, from)
		}
		return a.err
	})
	a.fail(err)
}

// close writes the end of the archive and returns the first error. It does not
// close the writer.
func (a *archive) close() error {
	a.add(entry{name: "TRAILER!!!"}, nil)
	return a.err
}

func (a *archive) add(e entry, content io.Reader) {
	if e.size > maxFileSize {
		a.fail(fmt.Errorf("%s: %d bytes are more than the format holds", e.name, e.size))
	}
	a.inode++
	// The magic number, then 13 fields of eight hexadecimal digits: inode, mode,
	// uid, gid, links, mtime, size, major and minor of the device that holds the
	// file, major and minor of the file, size of the name with its NUL, checksum.
	header := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		a.inode, e.mode, 0, 0, 1, 0, e.size, 0, 0, e.major, e.minor, len(e.name)+1, 0, e.name)
	a.write([]byte(header))
	a.pad(int64(len(header)))
	if content == nil || a.err != nil {
		return
	}
	// The size is in the header already: a file that shrinks now would shift
	// everything behind it.
	if _, err := io.CopyN(a.w, content, e.size); err != nil {
		a.fail(fmt.Errorf("copy %s: %w", e.name, err))
	}
	a.pad(e.size)
}

// pad fills up to a multiple of four bytes, as the format wants after each
// header and each content.
func (a *archive) pad(written int64) {
	a.write(make([]byte, -written&3))
}

func (a *archive) write(b []byte) {
	if a.err == nil {
		_, a.err = a.w.Write(b)
	}
}

func (a *archive) fail(err error) {
	if a.err == nil {
		a.err = err
	}
}
