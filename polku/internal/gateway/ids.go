package gateway

import (
	"hash/maphash"
	"sync"
)

// rememberIDs is how many ids one generation holds. Two generations take about
// 20 MB and cover, at the very least, what any source may have sent without
// having seen the acknowledgment.
const rememberIDs = 200_000

// idKey stands for an event id. Two ids share one by accident once in 2^128
// pairs, and nobody can make them on purpose: the seeds are secret.
type idKey [2]uint64

// recentIDs remembers the ids of the newest events in the log, at least as many
// as one generation holds and at most twice as many.
type recentIDs struct {
	seeds [2]maphash.Seed
	most  int

	mu         sync.Mutex
	young, old map[idKey]struct{}
}

func newRecentIDs(most int) *recentIDs {
	return &recentIDs{
		seeds: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()},
		most:  most,
		young: make(map[idKey]struct{}),
		old:   make(map[idKey]struct{}),
	}
}

func (r *recentIDs) key(id []byte) idKey {
	return idKey{maphash.Bytes(r.seeds[0], id), maphash.Bytes(r.seeds[1], id)}
}

// add remembers ids of events that are on disk.
func (r *recentIDs) add(keys []idKey) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, k := range keys {
		if len(r.young) >= r.most {
			r.young, r.old = r.old, r.young
			clear(r.young)
		}
		r.young[k] = struct{}{}
	}
}

// known calls found with the index of each key that is remembered.
func (r *recentIDs) known(keys []idKey, found func(i int)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, k := range keys {
		_, young := r.young[k]
		if !young {
			if _, old := r.old[k]; !old {
				continue
			}
		}
		found(i)
	}
}

// forget forgets all.
func (r *recentIDs) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.young)
	clear(r.old)
}
