package change_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/yairfalse/tapio/portti/internal/change"
)

var update = flag.Bool("update", false, "write the golden files anew")

// tell makes the events of objects as they follow each other in a file: the first
// of a uid is created, the next updated.
func tell(t testing.TB, text string) string {
	p := newProjector(nil)
	last := map[string]*change.Version{}
	kinds := map[string]change.Kind{}
	origin := change.Origin{SeenAt: seen()}
	var b strings.Builder
	for _, o := range parse(t, text) {
		if uid, ok := o.Object["delete"].(string); ok {
			if e := p.Deleted(kinds[uid], last[uid], origin); e != nil {
				b.WriteString(render(valid(t, e)) + "\n")
			}
			continue
		}
		k := kindOf(t, o)
		v, err := p.Version(k, o)
		require.NoError(t, err)

		kept, err := v.MarshalBinary()
		require.NoError(t, err)
		read := &change.Version{}
		require.NoError(t, read.UnmarshalBinary(kept))
		require.Equal(t, v, read, "what is kept is what was seen")

		if was := last[v.UID]; was != nil {
			b.WriteString(render(valid(t, p.Updated(k, was, read, origin))) + "\n")
		} else {
			b.WriteString(render(valid(t, p.Created(k, read, origin))) + "\n")
		}
		last[v.UID], kinds[v.UID] = read, k
	}
	return b.String()
}

func TestEventsOfObjects(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			got := tell(t, string(text))
			golden := strings.TrimSuffix(file, ".yaml") + ".golden"
			if *update {
				require.NoError(t, os.WriteFile(golden, []byte(got), 0o644))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			require.Equal(t, string(want), got)
		})
	}
}
