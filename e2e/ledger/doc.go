// Package ledger keeps the books of the whole chain: every event that a source
// hands to the client must be in AHTI's store once, in the order of its source,
// whatever is killed, filled or frozen on the way.
//
// The test runs real processes in a private mount and network namespace, so the
// disks that it fills and the network that it takes away are its own. What
// happens, and after how many events, follows from a seed:
//
//	make ledger EVENTS=1000000 SEED=7 KILLS=60
package ledger
