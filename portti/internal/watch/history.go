package watch

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/yairfalse/tapio/portti/internal/change"
)

const (
	// askAtOnce bounds the requests for history that all kinds have under way: the
	// API server has others to serve.
	askAtOnce = 8
	// mostAsked bounds the requests for the history of one gap. At the 500 or more
	// a second that an API server answers it is a minute's work.
	mostAsked = 30_000
	// mostCounted bounds the revisions of a gap at which objects are counted; of one
	// with more they are not. Mostly they are writes of what is not watched, such as
	// the leases of nodes: of a hundred nodes, those of 100 seconds, and bookmarks
	// come every 60.
	mostCounted = 1000
)

// history asks the API server for what its etcd held at earlier revisions, which
// are the resource versions of lists. Etcd keeps them until it compacts them,
// every five minutes by default, so it knows what no watch was told: what was
// written just before an API server was killed, or while we were away.
//
// A history is about one gap of one kind. Everything that it cannot tell is
// errNoHistory.
type history struct {
	w     *Watcher
	asked atomic.Int64

	mu        sync.Mutex
	compacted uint64 // at and before it nothing is known
}

// errNoHistory tells that etcd has compacted it, that the server has no such
// lists, or that enough was asked.
var errNoHistory = errors.New("the API server has no history of that time")

// list asks for objects as they were at a revision.
func (h *history) list(ctx context.Context, namespace string, at uint64, o metav1.ListOptions) (*unstructured.UnstructuredList, error) {
	h.mu.Lock()
	known := at > h.compacted
	h.mu.Unlock()
	if !known || h.asked.Add(1) > mostAsked {
		return nil, errNoHistory
	}
	select {
	case h.w.asking <- struct{}{}:
		defer func() { <-h.w.asking }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if o.Continue == "" { // which says the rest
		o.ResourceVersion, o.ResourceVersionMatch = strconv.FormatUint(at, 10), metav1.ResourceVersionMatchExact
	}
	list, err := h.w.client.Namespace(namespace).List(ctx, o)
	switch {
	case err == nil:
		return list, nil
	case apierrors.IsGone(err) || apierrors.IsResourceExpired(err):
		h.mu.Lock()
		h.compacted = max(h.compacted, at)
		h.mu.Unlock()
		return nil, errNoHistory
	case apierrors.IsInvalid(err) || apierrors.IsBadRequest(err): // no such lists
		h.mu.Lock()
		h.compacted = max(h.compacted, at)
		h.mu.Unlock()
		return nil, errNoHistory
	}
	return nil, fmt.Errorf("ask for the history: %w", err)
}

// object is an object as it was at a revision; nil if it was not there.
func (h *history) object(ctx context.Context, who *change.Version, at uint64) (*change.Version, error) {
	list, err := h.list(ctx, who.Namespace, at, metav1.ListOptions{FieldSelector: "metadata.name=" + who.Name})
	if err != nil {
		return nil, err
	}
	for i := range list.Items {
		o := &list.Items[i]
		if string(o.GetUID()) != who.UID {
			continue // another of the same name
		}
		v, err := h.w.Projector.Version(h.w.kind, o)
		if err != nil {
			return nil, errNoHistory // it was refused when it was seen
		}
		if rv, ok := revision(v.ResourceVersion); !ok || rv > at {
			return nil, errNoHistory // a server that does not know exact lists
		}
		return v, nil
	}
	return nil, nil //nolint:nilnil // not there is an answer
}

// revision reads a resource version as what it is in every API server on etcd.
func revision(resourceVersion string) (uint64, bool) {
	n, err := strconv.ParseUint(resourceVersion, 10, 64)
	return n, err == nil && n > 0
}

// span is an object with a known version, if any, and what it became.
type span struct {
	known *change.Version // nil for one that is new
	now   *change.Version // nil for one that is gone
	born  *change.Version // of one that came and went: its first version
	// since is a revision at which known was still the newest version, or at which
	// an object that is new and gone was there; until is one at which it was gone.
	since, until uint64
}

// recover finds all versions of objects between what is known and what they are.
func (h *history) recover(ctx context.Context, spans []span, origin change.Origin) ([]piece, error) {
	found := make([][]piece, len(spans))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(askAtOnce)
	for i, s := range spans {
		group.Go(func() (err error) {
			if s.now != nil {
				found[i], err = h.changed(ctx, s, origin)
			} else {
				found[i], err = h.vanished(ctx, s, origin)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	var all []piece
	for _, pieces := range found {
		all = append(all, pieces...)
	}
	return all, nil
}

// changed goes back from the version that is there, one version at a time.
func (h *history) changed(ctx context.Context, s span, origin change.Origin) ([]piece, error) {
	versions := []*change.Version{s.now} // the newest first
	gap := origin
	for {
		oldest := versions[len(versions)-1]
		at, ok := revision(oldest.ResourceVersion)
		if !ok || at <= 1 {
			gap.Gap = true
			break
		}
		if s.known != nil {
			if known, ok := revision(s.known.ResourceVersion); !ok || known >= at {
				gap.Gap = true // of another history, as before a restore
				break
			}
		}
		before, err := h.object(ctx, oldest, at-1)
		if errors.Is(err, errNoHistory) {
			gap.Gap = true
			break
		}
		if err != nil {
			return nil, err
		}
		if before == nil || s.known != nil && !newer(before, s.known) {
			break // it was created then, or this is where we were
		}
		versions = append(versions, before)
	}
	pieces := make([]piece, 0, len(versions))
	older := s.known
	for i := len(versions) - 1; i >= 0; i-- {
		p := piece{older: older, newer: versions[i], origin: origin}
		if i == len(versions)-1 {
			p.origin = gap
		}
		pieces = append(pieces, p)
		older = versions[i]
	}
	h.count(pieces)
	return pieces, nil
}

// count counts what is told exactly.
func (h *history) count(pieces []piece) {
	for _, p := range pieces {
		if !p.origin.Gap {
			h.w.Metrics.recovered.WithLabelValues(h.w.kind.Word).Inc()
		}
	}
}

// vanished finds when an object was deleted, and goes back from its last version.
// An object that is gone stays gone, because its UID is never used again, so the
// time is found by halving.
func (h *history) vanished(ctx context.Context, s span, origin change.Origin) ([]piece, error) {
	who, last := s.known, s.born // last is as it was at there, as far as that is known
	if who == nil {
		who = s.born
	}
	there, gone := s.since, s.until
	exact := there > 0
	for there+1 < gone {
		middle := there + (gone-there)/2
		v, err := h.object(ctx, who, middle)
		switch {
		case errors.Is(err, errNoHistory):
			// It is not known whether it was there; nothing older is known either.
			there = middle
			exact = false
			continue
		case err != nil:
			return nil, err
		case v == nil:
			gone = middle
		default:
			there, last, exact = middle, v, true
		}
	}
	if last == nil {
		last = s.known
	}
	var pieces []piece
	if s.known == nil || newer(last, s.known) {
		var err error
		if pieces, err = h.changed(ctx, span{known: s.known, now: last}, origin); err != nil {
			return nil, err
		}
	}
	end := *last
	deletion := piece{older: last, deleted: &end, origin: origin}
	if exact {
		end.ResourceVersion = strconv.FormatUint(gone, 10) // as a watch has it
	} else {
		deletion.origin.Gap = true
	}
	h.count([]piece{deletion})
	return append(pieces, deletion), nil
}

// passing finds objects that came and went between two revisions: each etcd
// transaction of an API server creates one object at most, so where the number of
// objects does not grow from one revision to the next, none was created. Revisions
// of changes that are known need no count. whole is false when it cannot tell.
func (h *history) passing(ctx context.Context, from, to uint64) (spans []span, whole bool, err error) {
	open, few := h.w.revisions.unknown(from, to, mostCounted)
	if !few {
		return nil, false, nil
	}
	counts, err := h.counts(ctx, open)
	if err != nil {
		return nil, false, err
	}
	whole = true
	for _, at := range open {
		before, now := counts[at-1], counts[at]
		switch {
		case before < 0 || now < 0:
			whole = false
		case now <= before:
		default:
			v, err := h.createdAt(ctx, at)
			if errors.Is(err, errNoHistory) {
				whole = false
				continue
			}
			if err != nil {
				return nil, false, err
			}
			if v != nil && h.w.objects[v.UID] == nil {
				spans = append(spans, span{born: v, since: at, until: to})
			}
		}
	}
	return spans, whole, nil
}

// counts is how many objects there were at each of some revisions and at the one
// before each; -1 where that is not known.
func (h *history) counts(ctx context.Context, at []uint64) (map[uint64]int64, error) {
	counts := make(map[uint64]int64, 2*len(at))
	for _, n := range at {
		counts[n-1], counts[n] = -1, -1
	}
	var mu sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(askAtOnce)
	for _, n := range slices.Sorted(maps.Keys(counts)) {
		group.Go(func() error {
			number, err := h.number(ctx, n)
			mu.Lock()
			defer mu.Unlock()
			counts[n] = number
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return counts, nil
}

// number is how many objects there were at a revision; -1 when that is not known.
func (h *history) number(ctx context.Context, at uint64) (int64, error) {
	list, err := h.list(ctx, "", at, metav1.ListOptions{Limit: 1})
	if errors.Is(err, errNoHistory) {
		return -1, nil
	}
	if err != nil {
		return 0, err
	}
	n := int64(len(list.Items))
	if more := list.GetRemainingItemCount(); more != nil {
		n += *more
	}
	return n, nil
}

// createdAt finds the object that a revision has and the one before had not.
func (h *history) createdAt(ctx context.Context, at uint64) (*change.Version, error) {
	o := metav1.ListOptions{Limit: pageSize}
	for {
		list, err := h.list(ctx, "", at, o)
		if err != nil {
			return nil, err
		}
		want := strconv.FormatUint(at, 10)
		for i := range list.Items {
			if list.Items[i].GetResourceVersion() != want {
				continue
			}
			v, err := h.w.Projector.Version(h.w.kind, &list.Items[i])
			if err != nil {
				h.w.refuse(err)
				return nil, nil //nolint:nilnil // counted
			}
			return v, nil
		}
		if o.Continue = list.GetContinue(); o.Continue == "" {
			return nil, nil //nolint:nilnil // of the same revision it cannot be another's
		}
	}
}

// oldest is the oldest revision from one on that can be listed; false when not even
// the newest can.
func (h *history) oldest(ctx context.Context, from, to uint64) (uint64, bool, error) {
	listable := func(at uint64) (bool, error) {
		_, err := h.list(ctx, "", at, metav1.ListOptions{Limit: 1})
		if errors.Is(err, errNoHistory) {
			return false, nil
		}
		return err == nil, err
	}
	if yes, err := listable(to); err != nil || !yes {
		return 0, false, err
	}
	if yes, err := listable(from); err != nil || yes {
		return from, yes, err
	}
	for from+1 < to {
		middle := from + (to-from)/2
		yes, err := listable(middle)
		if err != nil {
			return 0, false, err
		}
		if yes {
			to = middle
		} else {
			from = middle
		}
	}
	return to, true, nil
}

// expiredError is why a list must come before the next watch.
type expiredError struct {
	oldest  uint64 // revision from which on the server can watch; 0 if it did not say
	rewound bool   // the server's past is not ours
}

// tooOld is how an API server says from where on it can watch, in parentheses.
var tooOld = regexp.MustCompile(`too old resource version: \d+ \((\d+)\)`)

func expired(err error) *expiredError {
	if m := tooOld.FindStringSubmatch(err.Error()); m != nil {
		if at, ok := revision(m[1]); ok {
			return &expiredError{oldest: at}
		}
	}
	return &expiredError{}
}
