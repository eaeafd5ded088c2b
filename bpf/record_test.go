package bpf

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf/btf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/yairfalse/tapio/bpf/internal/layout"
)

func comm(s string) *Comm {
	var c Comm
	for i := range min(len(s), len(c)) {
		c[i] = int8(s[i])
	}
	return &c
}

func TestCommString(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"empty", "", ""},
		{"short", "nginx", "nginx"},
		{"as long as the kernel allows", "kworker/0:1-eve", "kworker/0:1-eve"},
		{"without an end", "0123456789abcdef", "0123456789abcdef"},
		{"what follows the end is not part of it", "sh\x00secret", "sh"},
		{"any bytes", "\xff\x80\n", "\xff\x80\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			assert.Equal(t, test.want, CommString(comm(test.in)))
		})
	}
}

// aligned returns n bytes at an address that is a multiple of 8 plus off.
func aligned(n, off int) []byte {
	words := make([]uint64, n/8+2)
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(words))), len(words)*8)[off : off+n]
}

func TestView(t *testing.T) {
	const size = int(unsafe.Sizeof(Head{}))
	for _, n := range []int{size, size + 1, 10 * size} {
		record := aligned(n, 0)
		record[0], record[size-1] = 7, 'x'
		h, err := View[Head](record)
		require.NoError(t, err, "%d bytes", n)
		assert.Equal(t, uint64(7), h.TimeNs)
		assert.Equal(t, int8('x'), h.Comm[15])
		assert.Same(t, (*Head)(unsafe.Pointer(&record[0])), h, "it is no copy")
	}
	for _, n := range []int{0, 1, size - 1} {
		_, err := View[Head](aligned(n, 0))
		assert.ErrorContains(t, err, "bytes, want at least 48 for bpf.mapsHead", "%d bytes", n)
	}
	_, err := View[Head](nil)
	assert.ErrorContains(t, err, "0 bytes")
	for off := 1; off < 8; off++ {
		_, err := View[Head](aligned(size, off))
		assert.ErrorContains(t, err, "unaligned address", "%d bytes off", off)
	}
}

func TestHeadOf(t *testing.T) {
	record := struct {
		Head Head
		More uint64
	}{Head: Head{Pid: 42}}
	assert.Same(t, &record.Head, HeadOf(&record))
}

func types(t *testing.T) *btf.Spec {
	spec, err := loadMaps()
	require.NoError(t, err)
	return spec.Types
}

func TestLayout(t *testing.T) {
	assert.NoError(t, layout.Compare(types(t), "head", reflect.TypeFor[Head]()))
	assert.NoError(t, layout.Compare(types(t), "counter", reflect.TypeFor[mapsCounter]()))
	assert.NoError(t, layout.Compare(types(t), "counter", reflect.TypeFor[Counter]()))
}

// A signal that is new in C needs a name here before anything can report it.
func TestSignalsCoverTheObjects(t *testing.T) {
	var c *btf.Enum
	require.NoError(t, types(t).TypeByName("signal", &c))
	require.Len(t, c.Values, SignalCount+1, "SIGNAL_COUNT is the last")
	seen := map[string]Signal{}
	for i, v := range c.Values[:SignalCount] {
		require.Equal(t, uint64(i), v.Value, v.Name)
		s := Signal(i)
		if other, twice := seen[s.String()]; twice {
			t.Errorf("%s and %s are both called %s", v.Name, c.Values[other].Name, s)
		}
		seen[s.String()] = s
		assert.NotEqual(t, "unknown", s.Name(), v.Name)
		assert.Equal(t, s.Name()+"/"+s.Reason(), s.String())

		// SIGNAL_RESET_BY_PEER is reset/by_peer; SIGNAL_RTT has a reason on top.
		want := strings.ToLower(strings.TrimPrefix(v.Name, "SIGNAL_"))
		got := s.Name() + "_" + s.Reason()
		assert.True(t, strings.HasPrefix(got, want), "%s is called %s", v.Name, s)
	}
	for _, s := range []Signal{Signal(SignalCount), 1 << 31, 1<<32 - 1} {
		assert.Equal(t, "unknown/unknown", s.String())
	}
}

func TestClock(t *testing.T) {
	c := NewClock()
	before, now, after := time.Now(), Now(), time.Now()
	assert.NotZero(t, now)
	// The clock is read twice and the other clock may be slewed in between; an
	// hour is a wrong unit or a wrong clock.
	assert.WithinRange(t, c.Time(now), before.Add(-time.Hour), after.Add(time.Hour))
	assert.Equal(t, 1500*time.Nanosecond, c.Time(now+1500).Sub(c.Time(now)))
	assert.True(t, c.Time(0).Before(c.Time(now)))

	c.offset = 0
	assert.Equal(t, int64(now), c.Time(now).UnixNano(), "the offset is all there is between them")
	c.Sync()
	assert.WithinRange(t, c.Time(now), before.Add(-time.Hour), after.Add(time.Hour))
	assert.GreaterOrEqual(t, Now(), now)
}

func FuzzView(f *testing.F) {
	f.Add([]byte{}, 0)
	f.Add(bytes.Repeat([]byte{0xff}, 48), 0)
	f.Add(bytes.Repeat([]byte{1}, 49), 3)
	f.Fuzz(func(t *testing.T, record []byte, off int) {
		moved := aligned(len(record), int(uint(off)%8))
		copy(moved, record)
		h, err := View[Head](moved)
		if err != nil {
			require.Nil(t, h)
			return
		}
		_ = CommString(&h.Comm)
		_ = Signal(h.Signal).String()
	})
}
