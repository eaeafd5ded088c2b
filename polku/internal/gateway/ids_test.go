package gateway

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// What is on its way is known to nobody until it has arrived, and is free when
// it has not.
func TestIDsInFlight(t *testing.T) {
	r := newRecentIDs(100)
	keys := func(ids ...string) (keys []idKey) {
		for _, id := range ids {
			keys = append(keys, r.key([]byte(id)))
		}
		return keys
	}
	reserve := func(keys []idKey) (f flight, known []int, after <-chan struct{}) {
		f, after = r.reserve(keys, func(i int) { known = append(known, i) })
		return f, known, after
	}
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
