package tcp

import (
	"bytes"
	"reflect"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/yairfalse/tapio/bpf"
	"github.com/yairfalse/tapio/bpf/bpftest"
	"github.com/yairfalse/tapio/bpf/internal/layout"
)

func TestLayout(t *testing.T) {
	spec, err := loadTcp()
	require.NoError(t, err)
	assert.NoError(t, layout.Compare(spec.Types, "tcp_event", reflect.TypeFor[Event]()))
	assert.NoError(t, layout.Compare(spec.Types, "head", reflect.TypeFor[bpf.Head]()))
	assert.NoError(t, layout.Compare(spec.Types, "peer_key", reflect.TypeFor[PeerKey]()))
	assert.NoError(t, layout.Compare(spec.Types, "peer", reflect.TypeFor[Peer]()))
}

func FuzzDecode(f *testing.F) {
	f.Add(bytes.Clone(bpftest.Bytes(&Event{})))
	f.Add(bytes.Repeat([]byte{0xff}, int(reflect.TypeFor[Event]().Size())-1))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, record []byte) {
		e, err := Decode(record)
		if err != nil {
			require.Nil(t, e)
			return
		}
		// It is the record that is looked at, and nothing beyond it.
		require.GreaterOrEqual(t, len(record), len(bpftest.Bytes(e)))
		require.Equal(t, record[:len(bpftest.Bytes(e))], bpftest.Bytes(e))
	})
}

// The Go side and the object must agree on what a kind, a role and a linger is.
func TestConstantsOfTheObject(t *testing.T) {
	spec, err := loadTcp()
	require.NoError(t, err)
	var linger uint64
	require.NoError(t, spec.Variables["rtt_linger_ns"].Get(&linger))
	assert.Equal(t, uint64(Linger), linger)
	for _, name := range []string{"limit_burst", "limit_interval_ns", "rtt_normal_ns", "burst_repeat_ns"} {
		assert.Contains(t, spec.Variables, name, "Attach sets it")
	}
}
