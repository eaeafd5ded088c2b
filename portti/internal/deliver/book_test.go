package deliver_test

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/yairfalse/tapio/portti/internal/change"
	"github.com/yairfalse/tapio/portti/internal/deliver"
	"github.com/yairfalse/tapio/portti/internal/state"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
)

// gateway keeps what it got until the test acks it.
type gateway struct{ got []*eventv1.Event }

func (g *gateway) Send(ctx context.Context, e *eventv1.Event) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if e.GetK8S().GetObject().GetName() == "refused" {
		return errors.New("too large")
	}
	g.got = append(g.got, e)
	return nil
}

type fixture struct {
	t         *testing.T
	kind      change.Kind
	projector *change.Projector
	book      *deliver.Book
	gateway   *gateway
	store     *state.Store
}

func newFixture(t *testing.T) *fixture {
	store, err := state.Open(t.TempDir(), "", slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	kind, _ := change.LookupKind("configmap")
	return &fixture{
		t: t, kind: kind, store: store, gateway: &gateway{}, book: deliver.NewBook(slog.New(slog.DiscardHandler)),
		projector: change.NewProjector(change.Config{Source: "portti", DigestKey: store.DigestKey()}),
	}
}

func (f *fixture) send(name string, at int) {
	f.t.Helper()
	v, err := f.projector.Version(f.kind, &unstructured.Unstructured{Object: map[string]any{"metadata": map[string]any{
		"name": name, "uid": name, "resourceVersion": strconv.Itoa(at),
	}}})
	require.NoError(f.t, err)
	e := f.projector.Created(f.kind, v, change.Origin{SeenAt: time.Now()})
	require.NoError(f.t, f.book.Send(f.t.Context(), f.gateway, "configmap", e, deliver.Step{UID: name, Version: v, ResourceVersion: v.ResourceVersion}))
}

// saved saves, and returns what is on disk then.
func (f *fixture) saved() (string, map[string]string) {
	f.t.Helper()
	require.NoError(f.t, f.book.Save(f.store))
	objects := map[string]string{}
	at, err := f.store.Load("configmap", func(uid string, data []byte) error {
		v := &change.Version{}
		objects[uid] = ""
		err := v.UnmarshalBinary(data)
		objects[uid] = v.ResourceVersion
		return err
	})
	require.NoError(f.t, err)
	return at, objects
}

// The state may say less than the gateway has, and never more.
func TestStateWaitsForTheOldestThatIsNotAcked(t *testing.T) {
	f := newFixture(t)
	f.send("a", 1)
	f.send("b", 2)
	f.send("a", 3)
	f.book.Done("configmap", deliver.Step{ResourceVersion: "9"}) // a bookmark
	at, objects := f.saved()
	require.Empty(t, at)
	require.Empty(t, objects)

	f.book.Acked(f.gateway.got[1:])
	at, objects = f.saved()
	require.Empty(t, at, "the first is not safe")
	require.Empty(t, objects)

	f.book.Acked(f.gateway.got[:1])
	at, objects = f.saved()
	require.Equal(t, "9", at)
	require.Equal(t, map[string]string{"a": "3", "b": "2"}, objects)
	require.Zero(t, f.book.Open())

	f.book.Done("configmap", deliver.Step{UID: "a", ResourceVersion: "10"}) // its end, untold
	at, objects = f.saved()
	require.Equal(t, "10", at)
	require.Equal(t, map[string]string{"b": "2"}, objects)
}

func TestWhatNobodyTakesHoldsNobodyUp(t *testing.T) {
	f := newFixture(t)
	f.send("refused", 1)
	f.send("a", 2)
	f.send("b", 3)
	f.book.Refused(f.gateway.got[0], nil)
	f.book.Acked(f.gateway.got[1:])
	at, _ := f.saved()
	require.Equal(t, "3", at)
	f.book.Refused(&eventv1.Event{Id: "of the client"}, nil)
	require.NoError(t, testutil.CollectAndCompare(f.book, strings.NewReader(`
# HELP portti_changes_refused_total Changes that are lost because no gateway takes them.
# TYPE portti_changes_refused_total counter
portti_changes_refused_total{kind="configmap",reason="gateway"} 1
portti_changes_refused_total{kind="configmap",reason="invalid"} 1
`), "portti_changes_refused_total"), "of a kind there is one word")
}

func TestAckOfAnEventThatWasSentTwice(t *testing.T) {
	f := newFixture(t)
	f.send("a", 1)
	f.send("a", 1)
	f.book.Acked(f.gateway.got[:1]) // the client acks copies as one
	require.Zero(t, f.book.Open())
}
