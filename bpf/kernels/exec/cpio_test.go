package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// member is an entry as a reader of the archive sees it.
type member struct {
	name         string
	mode         uint64
	major, minor uint64
	content      string
}

// readArchive reads a newc archive up to its trailer. It is written from the
// format's description, not from the writer, and trusts nothing.
func readArchive(t *testing.T, b []byte) []member {
	t.Helper()
	var members []member
	inodes := map[uint64]bool{}
	for offset := 0; ; {
		require.Zero(t, offset%4, "headers are aligned")
		require.LessOrEqual(t, offset+110, len(b), "cut off")
		header := string(b[offset : offset+110])
		require.Equal(t, "070701", header[:6])
		field := func(i int) uint64 {
			v, err := strconv.ParseUint(header[6+8*i:14+8*i], 16, 64)
			require.NoError(t, err)
			return v
		}
		inode, size, nameSize := field(0), int(field(6)), int(field(11))
		require.False(t, inodes[inode], "a second entry with one inode would be a hard link")
		inodes[inode] = true
		require.Zero(t, field(12), "no checksum in this variant")
		name := string(b[offset+110 : offset+110+nameSize])
		require.Equal(t, nameSize-1, strings.IndexByte(name, 0))
		offset = (offset + 110 + nameSize + 3) &^ 3
		if name == "TRAILER!!!\x00" {
			require.Equal(t, len(b), offset, "nothing after the trailer")
			return members
		}
		members = append(members, member{
			name: name[:nameSize-1], mode: field(1), major: field(9), minor: field(10),
			content: string(b[offset : offset+size]),
		})
		offset = (offset + size + 3) &^ 3
	}
}

func TestArchive(t *testing.T) {
	source := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(source, "golden", "empty"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(source, "golden", "a.json"), []byte("{}"), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(source, "tool"), []byte("12345"), 0o755))
	require.NoError(t, os.Symlink("tool", filepath.Join(source, "link")))

	var b bytes.Buffer
	a := newArchive(&b)
	a.device("dev/console", 5, 1)
	a.file("init", filepath.Join(source, "tool"))
	a.content("args", []byte("one\x00"))
	a.content("none", nil)
	a.tree("work/testdata", source)
	a.dir("work")
	require.NoError(t, a.close())

	require.Equal(t, []member{
		{name: "dev", mode: 0o40755},
		{name: "dev/console", mode: 0o20600, major: 5, minor: 1},
		{name: "init", mode: 0o100755, content: "12345"},
		{name: "args", mode: 0o100644, content: "one\x00"},
		{name: "none", mode: 0o100644},
		{name: "work", mode: 0o40755},
		{name: "work/testdata", mode: 0o40755},
		{name: "work/testdata/golden", mode: 0o40755},
		{name: "work/testdata/golden/a.json", mode: 0o100644, content: "{}"},
		{name: "work/testdata/golden/empty", mode: 0o40755},
		{name: "work/testdata/link", mode: 0o100755, content: "12345"},
		{name: "work/testdata/tool", mode: 0o100755, content: "12345"},
	}, readArchive(t, b.Bytes()))
}

func TestArchiveIsReadByCpio(t *testing.T) {
	cpio, err := exec.LookPath("cpio")
	if err != nil {
		t.Skip("cpio is not installed")
	}
	var b bytes.Buffer
	a := newArchive(&b)
	a.content("work/testdata/a", []byte("content"))
	a.device("dev/console", 5, 1)
	require.NoError(t, a.close())

	list := exec.Command(cpio, "-t", "--quiet")
	list.Stdin = &b
	out, err := list.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Equal(t, "work\nwork/testdata\nwork/testdata/a\ndev\ndev/console\n", string(out))
}

func TestArchiveErrors(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Symlink(".", filepath.Join(dir, "circle")))
	tests := []struct {
		name  string
		write func(*archive)
		want  string
	}{
		{"no such file", func(a *archive) { a.file("init", filepath.Join(dir, "missing")) }, "missing"},
		{"a directory as a file", func(a *archive) { a.file("init", dir) }, "not a regular file"},
		{"no such tree", func(a *archive) { a.tree("work", filepath.Join(dir, "missing")) }, "missing"},
		{"a link to a directory", func(a *archive) { a.tree("work", dir) }, "circle is not a regular file"},
		{"too large", func(a *archive) { a.add(entry{name: "init", size: maxFileSize + 1}, nil) }, "more than the format holds"},
		{"a file that shrank", func(a *archive) { a.add(entry{name: "init", size: 9}, strings.NewReader("short")) }, "copy init"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := newArchive(io.Discard)
			tt.write(a)
			require.ErrorContains(t, a.close(), tt.want)
		})
	}
	t.Run("the disk is full", func(t *testing.T) {
		full := errors.New("full")
		a := newArchive(writerFunc(func([]byte) (int, error) { return 0, full }))
		a.content("args", []byte("x"))
		require.ErrorIs(t, a.close(), full)
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
