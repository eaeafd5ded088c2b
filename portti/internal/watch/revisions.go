package watch

import "sync"

// revisionsKept is how many revisions are remembered: of a busy cluster, minutes.
const revisionsKept = 1 << 16

// revisions remembers which revisions of an etcd are changes that are known, of any
// kind. Each revision is one transaction, and each transaction of an API server
// that writes an object writes that one only; so at a revision that is known
// nothing else happened.
type revisions struct {
	mu   sync.Mutex
	ring [revisionsKept]uint64
}

func (r *revisions) add(revision uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ring[revision%revisionsKept] = revision
}

// forget is for a server that was restored from a backup: it gives its revisions
// another time.
func (r *revisions) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ring = [revisionsKept]uint64{}
}

// unknown returns the revisions after from up to to that are not known; false when
// there are more than so many.
func (r *revisions) unknown(from, to uint64, most int) ([]uint64, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []uint64
	for at := from + 1; at <= to; at++ {
		if r.ring[at%revisionsKept] == at {
			continue
		}
		if list = append(list, at); len(list) > most {
			return nil, false
		}
	}
	return list, true
}
