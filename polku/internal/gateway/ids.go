package gateway

import (
	"hash/maphash"
	"maps"
	"sync"
)

// rememberIDs is how many ids one generation holds. Two generations take about
// 25 MB and cover, at the very least, what any source may have sent without
// having seen the acknowledgment.
const rememberIDs = 200_000

// leastPeak is how many ids on their way take memory that is worth giving back:
// more than what is in flight when nothing waits.
const leastPeak = 2 * inFlight / eventWeight

// idKey stands for an event id. Two ids share one by accident once in 2^128
// pairs, and nobody can make them on purpose: the seeds are secret.
type idKey [2]uint64

// recentIDs remembers the ids of the newest events in the log, at least as many
// as one generation holds and at most twice as many, and those of the events on
// their way there: these are forgotten by nothing but their landing, however many
// others come and go by then.
type recentIDs struct {
	seeds [2]maphash.Seed
	most  int

	mu         sync.Mutex
	young, old map[idKey]struct{} // in the log
	flying     map[idKey]*flight
	peak       int // of the length of flying since it was made
	life       int // of the log: how often all was forgotten
}

// flight is what was reserved at once.
type flight struct {
	landed chan struct{} // closed when its ids are in the log, or are free
	life   int
}

func newRecentIDs(most int) *recentIDs {
	return &recentIDs{
		seeds:  [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()},
		most:   most,
		young:  make(map[idKey]struct{}),
		old:    make(map[idKey]struct{}),
		flying: make(map[idKey]*flight),
	}
}

func (r *recentIDs) key(id []byte) idKey {
	return idKey{maphash.Bytes(r.seeds[0], id), maphash.Bytes(r.seeds[1], id)}
}

// reserve begins a flight with the ids that are not known yet, and calls known
// with the index of each of the others: it is in the log, or is there twice.
// When one of the ids is on another flight, nothing is reserved, and the caller
// should come again after that: by then the id is in the log, or free.
func (r *recentIDs) reserve(keys []idKey, known func(i int)) (f *flight, after <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f = &flight{landed: make(chan struct{}), life: r.life}
	var doubles []int
	for i, k := range keys {
		other := r.flying[k]
		switch {
		case other == f || other == nil && r.stored(k):
			doubles = append(doubles, i)
		case other == nil:
			r.flying[k] = f
		default:
			for _, k := range keys[:i] {
				if r.flying[k] == f {
					delete(r.flying, k)
				}
			}
			return nil, other.landed
		}
	}
	for _, i := range doubles {
		known(i)
	}
	r.peak = max(r.peak, len(r.flying))
	return f, nil
}

// land ends a flight: its ids are in the log, or are free.
func (r *recentIDs) land(f *flight, keys []idKey, stored bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, k := range keys {
		delete(r.flying, k)
		if stored && f.life == r.life { // else the log may have been lost with it
			r.remember(k)
		}
	}
	close(f.landed)
	r.shrink()
}

// shrink, stored and remember are for who holds mu. shrink gives back the memory of a peak: a map keeps what it once needed.
func (r *recentIDs) shrink() {
	if n := len(r.flying); r.peak > leastPeak && n < r.peak/2 {
		smaller := make(map[idKey]*flight, n)
		maps.Copy(smaller, r.flying)
		r.flying, r.peak = smaller, n
	}
}

// add remembers ids of events that are on disk.
func (r *recentIDs) add(keys []idKey) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, k := range keys {
		r.remember(k)
	}
}

func (r *recentIDs) stored(k idKey) bool {
	_, found := r.young[k]
	if !found {
		_, found = r.old[k]
	}
	return found
}

func (r *recentIDs) remember(k idKey) {
	if len(r.young) >= r.most {
		r.young, r.old = r.old, r.young
		clear(r.young)
	}
	r.young[k] = struct{}{}
}

// forget forgets what is in the log.
func (r *recentIDs) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.life++
	clear(r.young)
	clear(r.old)
}
