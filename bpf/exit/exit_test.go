package exit

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
	spec, err := loadExit()
	require.NoError(t, err)
	assert.NoError(t, layout.Compare(spec.Types, "exit_event", reflect.TypeFor[Event]()))
	assert.NoError(t, layout.Compare(spec.Types, "head", reflect.TypeFor[bpf.Head]()))
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

func TestConstantsOfTheObject(t *testing.T) {
	spec, err := loadExit()
	require.NoError(t, err)
	for _, name := range []string{"limit_burst", "limit_interval_ns", "habit_burst", "oom_is_told"} {
		assert.Contains(t, spec.Variables, name, "Attach sets it")
	}
	var told bool
	require.NoError(t, spec.Variables["oom_is_told"].Get(&told))
	assert.True(t, told, "unless OOMUntold is set")
}
