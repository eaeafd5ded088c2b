package gateway

import (
	"hash/maphash"
	"sync"
)

// rememberIDs is how many ids one generation holds. Two generations take about
// 25 MB and cover, at the very least, what any source may have sent without
// having seen the acknowledgment.
const rememberIDs = 200_000

// idKey stands for an event id. Two ids share one by accident once in 2^128
// pairs, and nobody can make them on purpose: the seeds are secret.
type idKey [2]uint64

// recentIDs remembers the ids of the newest events in the log, at least as many
// as one generation holds and at most twice as many, and those of the events on
// their way there.
type recentIDs struct {
	seeds [2]maphash.Seed
	most  int

	mu         sync.Mutex
	young, old map[idKey]flight
	flying     map[flight]chan struct{} // closed at the end of the flight
	last       flight
}

// flight is a number for what is reserved at once. No flight has 0.
type flight uint64

func newRecentIDs(most int) *recentIDs {
	return &recentIDs{
		seeds:  [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()},
		most:   most,
		young:  make(map[idKey]flight),
		old:    make(map[idKey]flight),
		flying: make(map[flight]chan struct{}),
	}
}

func (r *recentIDs) key(id []byte) idKey {
	return idKey{maphash.Bytes(r.seeds[0], id), maphash.Bytes(r.seeds[1], id)}
}

// reserve begins a flight with the ids that are not known yet, and calls known
// with the index of each of the others: it is in the log, or is there twice.
// When one of the ids is on another flight, nothing is reserved, and the caller
// should come again after that: by then the id is in the log, or free.
func (r *recentIDs) reserve(keys []idKey, known func(i int)) (f flight, after <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last++
	var doubles []int
	for i, k := range keys {
		other, found := r.young[k]
		if !found {
			other, found = r.old[k]
		}
		if !found {
			r.remember(k, r.last)
			continue
		}
		if end := r.flying[other]; end != nil {
			r.free(keys[:i], r.last)
			return 0, end
		}
		doubles = append(doubles, i)
	}
	for _, i := range doubles {
		known(i)
	}
	r.flying[r.last] = make(chan struct{})
	return r.last, nil
}

// land ends a flight: its ids are in the log, or are free.
func (r *recentIDs) land(f flight, keys []idKey, stored bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !stored {
		r.free(keys, f)
	}
	close(r.flying[f])
	delete(r.flying, f)
}

// add remembers ids of events that are on disk.
func (r *recentIDs) add(keys []idKey) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, k := range keys {
		r.remember(k, 0)
	}
}

// remember and free are for who holds mu.
func (r *recentIDs) remember(k idKey, f flight) {
	if len(r.young) >= r.most {
		r.young, r.old = r.old, r.young
		clear(r.young)
	}
	r.young[k] = f
}

func (r *recentIDs) free(keys []idKey, f flight) {
	for _, k := range keys {
		for _, generation := range []map[idKey]flight{r.young, r.old} {
			if other, found := generation[k]; found && other == f {
				delete(generation, k)
			}
		}
	}
}

// forget forgets all.
func (r *recentIDs) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.young)
	clear(r.old)
}
