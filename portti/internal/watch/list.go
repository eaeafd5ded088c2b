package watch

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/yairfalse/tapio/portti/internal/change"
	"github.com/yairfalse/tapio/portti/internal/deliver"
)

// pageSize is how many objects are listed at once. All of a page are in memory
// together, at some 50 KB for a pod.
const pageSize = 100

// listing is one comparison of all objects with what is known of them.
type listing struct {
	w       *Watcher
	history *history // nil when it is of no use
	// base is the revision up to which all was sent, and at the one that is
	// listed; 0 for the first list, and for the present.
	base, at uint64
	first    bool // nobody has watched before
	seen     map[string]bool
	gaps     int
}

// list compares what there is with what was sent, and sends the difference.
//
// After a watch has expired it lists not the present but the oldest revision from
// which the server can watch, so that the watch tells all that came after. Of what
// came before, etcd's history tells what it still has.
func (w *Watcher) list(ctx context.Context) error {
	l := &listing{w: w, first: w.at == ""}
	reason := "first"
	if w.expired != nil {
		reason = reasonExpired
	}
	w.Metrics.lists.WithLabelValues(w.kind.Word, reason).Inc()
	base, numeric := revision(w.at)
	if !l.first && numeric && !w.expired.rewound {
		l.base, l.history = base, &history{w: w}
		if err := l.chooseRevision(ctx); err != nil {
			return w.failure(err)
		}
	}
	for {
		at, err := l.pages(ctx)
		if apierrors.IsGone(err) || apierrors.IsResourceExpired(err) {
			// It took so long that etcd has compacted the revision. What was sent is
			// known, so the next time there is less to do.
			w.Log.Debug("the list expired on the way, and begins anew", "error", err)
			l.at = 0
			continue
		}
		if err == nil {
			err = l.vanished(ctx, at)
		}
		if err == nil {
			err = l.passing(ctx, at)
		}
		if err != nil {
			return err
		}
		w.Book.Done(w.kind.Word, deliver.Step{ResourceVersion: at})
		w.at = at
		w.works(true)
		w.Log.Info("listed "+w.kind.Resource.Resource, "reason", reason, "objects", len(w.objects), "resource_version", at, "changes_with_gap", l.gaps)
		return nil
	}
}

// chooseRevision finds the revision to list.
func (l *listing) chooseRevision(ctx context.Context) error {
	text, err := l.w.now(ctx)
	if err != nil {
		return err
	}
	now, ok := revision(text)
	l.w.behind = now // from what is listed to there the watch tells late
	from := l.w.expired.oldest
	if !ok || from < l.base || from > now {
		from = now
	}
	if !ok || now < l.base {
		l.history = nil
		return nil
	}
	at, known, err := l.history.oldest(ctx, from, now)
	if err != nil {
		return err
	}
	if known {
		l.at = at
	}
	return nil
}

// pages lists everything and sends what differs. It returns the resource version
// of the list.
func (l *listing) pages(ctx context.Context) (string, error) {
	l.seen = make(map[string]bool, len(l.w.objects))
	o := metav1.ListOptions{Limit: pageSize}
	if l.at > 0 {
		o.ResourceVersion, o.ResourceVersionMatch = strconv.FormatUint(l.at, 10), metav1.ResourceVersionMatchExact
	}
	for {
		page, err := l.page(ctx, o)
		if err != nil {
			return "", fmt.Errorf("list: %w", err)
		}
		at, token := page.GetResourceVersion(), page.GetContinue()
		spans := l.compare(page)
		if err := l.send(ctx, spans); err != nil {
			return "", err
		}
		if token == "" {
			return at, nil
		}
		o = metav1.ListOptions{Limit: pageSize, Continue: token}
	}
}

func (l *listing) page(ctx context.Context, o metav1.ListOptions) (*unstructured.UnstructuredList, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return l.w.client.List(ctx, o)
}

// compare returns what is not as it was sent.
func (l *listing) compare(page *unstructured.UnstructuredList) []span {
	var spans []span
	for i := range page.Items {
		o := &page.Items[i]
		uid := string(o.GetUID())
		l.seen[uid] = true
		known := l.w.objects[uid]
		if known != nil && known.ResourceVersion == o.GetResourceVersion() {
			continue
		}
		v, err := l.w.Projector.Version(l.w.kind, o)
		if err != nil {
			l.w.refuse(err)
			continue
		}
		if known != nil && l.history != nil && !newer(v, known) {
			continue // sent by a list of a later revision that was not finished
		}
		spans = append(spans, span{known: known, now: v})
		page.Items[i].Object = nil // it is large
	}
	return spans
}

// send sends what became of objects, as far as history tells version by version.
func (l *listing) send(ctx context.Context, spans []span) error {
	if len(spans) == 0 {
		return nil
	}
	origin := change.Origin{SeenAt: time.Now(), Listed: l.first, Late: !l.first}
	var pieces []piece
	if l.history != nil {
		var err error
		if pieces, err = l.history.recover(ctx, spans, origin); err != nil {
			return err
		}
	} else {
		for _, s := range spans {
			p := piece{older: s.known, newer: s.now, origin: origin}
			if s.now == nil {
				p.deleted = s.known
			}
			if p.origin.Gap = !l.first || s.known != nil; p.origin.Gap {
				p.origin.Listed = false
			}
			pieces = append(pieces, p)
		}
	}
	slices.SortStableFunc(pieces, func(a, b piece) int { return cmp.Compare(a.revision(), b.revision()) })
	for _, p := range pieces {
		if p.origin.Gap {
			l.gaps++
		}
		if err := l.w.send(ctx, p, ""); err != nil {
			return err
		}
	}
	return nil
}

// revision orders changes; 0 for one whose resource version is not a number.
func (p piece) revision() uint64 {
	v := p.newer
	if v == nil {
		v = p.deleted
	}
	at, _ := revision(v.ResourceVersion)
	return at
}

// vanished sends the end of the objects that were not in the list.
func (l *listing) vanished(ctx context.Context, at string) error {
	until, _ := revision(at)
	var spans []span
	for uid, v := range l.w.objects {
		known, _ := revision(v.ResourceVersion)
		if !l.seen[uid] && (l.history == nil || known <= until) {
			spans = append(spans, span{known: v, since: max(known, l.base), until: until})
		}
	}
	// A page at a time, as the list itself.
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.since, b.since) })
	for part := range slices.Chunk(spans, pageSize) {
		if err := l.send(ctx, part); err != nil {
			return err
		}
	}
	return nil
}

// passing sends the life of objects that came and went since the last watch.
func (l *listing) passing(ctx context.Context, at string) error {
	if l.first {
		return nil
	}
	kind := l.w.kind.Word
	until, ok := revision(at)
	whole := false
	if l.history != nil && ok && until > l.base {
		var spans []span
		var err error
		if spans, whole, err = l.history.passing(ctx, l.base, until); err != nil {
			return err
		}
		if err := l.send(ctx, spans); err != nil {
			return err
		}
	}
	if !whole {
		l.w.Metrics.uncertain.WithLabelValues(kind).Inc()
		l.w.Log.Warn("objects may have come and gone without anybody knowing", "after", l.w.at, "until", at)
	}
	return nil
}
