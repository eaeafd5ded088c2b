package oom

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
	spec, err := loadOom()
	require.NoError(t, err)
	assert.NoError(t, layout.Compare(spec.Types, "oom_event", reflect.TypeFor[Event]()))
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
	spec, err := loadOom()
	require.NoError(t, err)
	assert.Contains(t, spec.Variables, "page_bytes", "Attach sets it")
	assert.Contains(t, spec.Programs, "note_kill", "Attach leaves it out")
}

func TestVictim(t *testing.T) {
	s := bpftest.Open(t)
	direct, err := VictimIsHandedOver(s)
	require.NoError(t, err)
	a, err := Attach(s)
	require.NoError(t, err)
	defer func() { assert.NoError(t, a.Close()) }()
	if direct {
		assert.Nil(t, a.Program("note_kill"), "every signal of the node would run it")
	} else {
		assert.NotNil(t, a.Program("note_kill"), "nothing else tells the victim")
	}
}
