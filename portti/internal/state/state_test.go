package state_test

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/yairfalse/tapio/portti/internal/state"
)

func open(t *testing.T, dir, cluster string) (*state.Store, string) {
	var log bytes.Buffer
	s, err := state.Open(dir, cluster, slog.New(slog.NewTextHandler(&log, nil)))
	require.NoError(t, err)
	return s, log.String()
}

// load returns what is known of a kind.
func load(t *testing.T, s *state.Store, kind string) (string, map[string]string) {
	objects := map[string]string{}
	rv, err := s.Load(kind, func(uid string, version []byte) error {
		objects[uid] = string(version)
		return nil
	})
	require.NoError(t, err)
	return rv, objects
}

func TestKeepsWhatWasSaved(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made")
	s, log := open(t, dir, "one")
	require.Empty(t, log)
	key := s.DigestKey()
	require.Len(t, key, state.DigestKeyBytes)
	rv, objects := load(t, s, "pod")
	require.Empty(t, rv)
	require.Empty(t, objects)
	require.NoError(t, s.Save(map[string]state.Changes{
		"pod":  {ResourceVersion: "7", Objects: map[string][]byte{"a": []byte("1"), "b": []byte("2")}},
		"node": {Objects: map[string][]byte{"n": []byte("3")}},
	}))
	require.NoError(t, s.Save(map[string]state.Changes{"pod": {Objects: map[string][]byte{"a": nil, "b": []byte("4")}}}))
	require.NoError(t, s.Close())

	s, log = open(t, dir, "one")
	require.Empty(t, log)
	require.Equal(t, key, s.DigestKey())
	rv, objects = load(t, s, "pod")
	require.Equal(t, "7", rv)
	require.Equal(t, map[string]string{"b": "4"}, objects)
	rv, objects = load(t, s, "node")
	require.Empty(t, rv, "it has not been listed to the end")
	require.Equal(t, map[string]string{"n": "3"}, objects)
	require.NoError(t, s.Forget("pod"))
	require.NoError(t, s.Forget("pod"))
	rv, objects = load(t, s, "pod")
	require.Empty(t, rv)
	require.Empty(t, objects)
	require.NoError(t, s.Close())
}

func TestOneProcessADirectory(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir, "")
	_, err := state.Open(dir, "", slog.New(slog.DiscardHandler))
	require.ErrorIs(t, err, state.ErrLocked)
	require.NoError(t, s.Close())
}

// Whatever is in the file, the program starts.
func TestPutsAsideWhatCannotBeUsed(t *testing.T) {
	good := filepath.Join(t.TempDir(), "good")
	s, _ := open(t, good, "one")
	many := map[string][]byte{}
	for i := range 2000 {
		many[string(rune('a'+i%26))+string(rune('a'+i/26%26))+string(rune('a'+i/676))] = bytes.Repeat([]byte("x"), 100)
	}
	require.NoError(t, s.Save(map[string]state.Changes{"pod": {ResourceVersion: "7", Objects: many}}))
	require.NoError(t, s.Close())
	whole, err := os.ReadFile(filepath.Join(good, "portti.db"))
	require.NoError(t, err)

	damaged := func(change func([]byte) []byte) []byte { return change(bytes.Clone(whole)) }
	for name, content := range map[string][]byte{
		"text":               []byte("not a database"),
		"zeros":              make([]byte, 64<<10),
		"cut":                damaged(func(b []byte) []byte { return b[:len(b)/2] }),
		"overwritten":        damaged(func(b []byte) []byte { copy(b[2*4096:], bytes.Repeat([]byte{0xff}, len(b)-2*4096)); return b }),
		"of another cluster": whole,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "portti.db")
			require.NoError(t, os.WriteFile(path, content, 0o600))
			s, log := open(t, dir, "two")
			require.Contains(t, log, "kept_as")
			rv, objects := load(t, s, "pod")
			require.Empty(t, rv)
			require.Empty(t, objects)
			require.NoError(t, s.Close())
			kept, err := filepath.Glob(path + ".*")
			require.NoError(t, err)
			require.Len(t, kept, 1)
		})
	}
	t.Run("no place", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		require.NoError(t, os.WriteFile(file, nil, 0o600))
		_, err := state.Open(filepath.Join(file, "state"), "", slog.New(slog.DiscardHandler))
		require.ErrorContains(t, err, "make the state directory")
	})
}
