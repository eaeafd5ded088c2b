package gateway

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// What is on its way is known to nobody until it has arrived, and is free when
// it has not.
func TestIDsInFlight(t *testing.T) {
	r := newRecentIDs(100)
	keys, reserve := keysOf(r), reserving(r)
	first, known, after := reserve(keys("a", "b", "a"))
	require.Nil(t, after)
	require.Equal(t, []int{2}, known)
	_, known, after = reserve(keys("c", "b"))
	require.NotNil(t, after)
	require.Empty(t, known)
	r.land(first, keys("a", "b"), false)
	<-after

	second, known, after := reserve(keys("c", "b"))
	require.Nil(t, after)
	require.Empty(t, known, "neither was stored")
	r.land(second, keys("c", "b"), true)
	_, known, after = reserve(keys("a", "b", "c"))
	require.Nil(t, after)
	require.Equal(t, []int{1, 2}, known)
}

// keysOf makes the keys of ids.
func keysOf(r *recentIDs) func(ids ...string) []idKey {
	return func(ids ...string) (keys []idKey) {
		for _, id := range ids {
			keys = append(keys, r.key([]byte(id)))
		}
		return keys
	}
}

// reserving tells which of the keys were known.
func reserving(r *recentIDs) func(keys []idKey) (*flight, []int, <-chan struct{}) {
	return func(keys []idKey) (f *flight, known []int, after <-chan struct{}) {
		f, after = r.reserve(keys, func(i int) { known = append(known, i) })
		return f, known, after
	}
}

// However many ids come and go meanwhile, what is on its way is not taken again.
func TestIDsInFlightAreNotPushedOut(t *testing.T) {
	r := newRecentIDs(4)
	keys, reserve := keysOf(r), reserving(r)
	slow, _, after := reserve(keys("slow"))
	require.Nil(t, after)
	many := make([]*flight, 20)
	for i := range many {
		many[i], _, after = reserve(keys(fmt.Sprint("many", i)))
		require.Nil(t, after)
	}
	for i := range 20 {
		f, _, _ := reserve(keys(fmt.Sprint("quick", i)))
		r.land(f, keys(fmt.Sprint("quick", i)), true)
	}
	for _, id := range []string{"slow", "many0", "many19"} {
		_, _, after = reserve(keys("new", id))
		require.NotNil(t, after, id)
	}
	for i, f := range many {
		r.land(f, keys(fmt.Sprint("many", i)), false)
	}
	r.land(slow, keys("slow"), true)
	_, known, after := reserve(keys("slow", "new"))
	require.Nil(t, after)
	require.Equal(t, []int{0}, known)
}

// A batch that was on its way when the log was lost may be in the lost one: it is
// not known, and still not taken twice at once.
func TestIDsInFlightWhenTheLogIsLost(t *testing.T) {
	r := newRecentIDs(4)
	keys, reserve := keysOf(r), reserving(r)
	lost, _, _ := reserve(keys("a"))
	r.forget()
	_, _, after := reserve(keys("a"))
	require.NotNil(t, after)
	r.land(lost, keys("a"), true)
	_, known, after := reserve(keys("a"))
	require.Nil(t, after)
	require.Empty(t, known)
}
