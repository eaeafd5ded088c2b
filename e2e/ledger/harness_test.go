package ledger

import (
	"database/sql"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
)

// A judge that finds nothing proves nothing unless it can find something.
func TestJudgeNamesWhatIsWrong(t *testing.T) {
	books := []book{{Source: "node-1", Begin: time.Now(), Events: 4}, {Source: "node-2", Begin: time.Now(), Events: 2}}
	for name, test := range map[string]struct {
		stored []string
		want   []string
	}{
		"all is well":  {stored: []string{"node-1-00000001", "node-2-00000001", "node-1-00000002", "node-1-00000003", "node-2-00000002", "node-1-00000004"}},
		"lost":         {stored: []string{"node-1-00000001", "node-2-00000001", "node-1-00000002", "node-1-00000004"}, want: []string{"lost: 2, the first: node-1-00000003 node-2-00000002"}},
		"duplicate":    {stored: []string{"node-1-00000001", "node-1-00000002", "node-1-00000003", "node-1-00000003", "node-1-00000004", "node-2-00000001", "node-2-00000002"}, want: []string{"duplicate: 1, the first: node-1-00000003"}},
		"out of order": {stored: []string{"node-1-00000002", "node-1-00000001", "node-1-00000003", "node-1-00000004", "node-2-00000001", "node-2-00000002"}, want: []string{"after a later one of its source: 1, the first: node-1-00000001"}},
		"strangers":    {stored: []string{"node-1-00000001", "node-1-00000002", "node-1-00000003", "node-1-00000004", "node-2-00000001", "node-2-00000002", "node-2-00000003", "x"}, want: []string{"never sent: 2, the first: node-2-00000003 x"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			db, err := sql.Open("sqlite", filepath.Join(dir, "ahti.db"))
			require.NoError(t, err)
			_, err = db.ExecContext(t.Context(), "CREATE TABLE events (sequence INTEGER PRIMARY KEY, id TEXT)")
			require.NoError(t, err)
			for _, id := range test.stored {
				_, err = db.ExecContext(t.Context(), "INSERT INTO events (id) VALUES (?)", id)
				require.NoError(t, err)
			}
			require.NoError(t, db.Close())
			err = judgeStore(t.Context(), "sqlite", sqliteAddress(dir), books)
			if test.want == nil {
				require.NoError(t, err)
				return
			}
			for _, want := range test.want {
				require.ErrorContains(t, err, want)
			}
		})
	}
}

func TestEventsAndStoryFollowFromTheSeed(t *testing.T) {
	b := book{Seed: 7, Source: "node-1", Begin: time.Now(), Events: 100}
	for n := 1; n <= b.Events; n++ {
		require.True(t, proto.Equal(b.event(n), b.event(n)))
		require.Equal(t, n, b.number(b.id(n)))
		require.True(t, b.at(n).After(b.at(n-1)) && b.at(n).Before(b.Begin))
	}
	s := settings{events: 1000, kills: 5, sources: 2, seed: 7}
	steps := plan(s)
	require.Equal(t, steps, plan(s))
	s.seed = 8
	require.NotEqual(t, steps, plan(s))
	for i := 1; i < len(steps); i++ {
		require.LessOrEqual(t, steps[i-1].at, steps[i].at)
	}
}
