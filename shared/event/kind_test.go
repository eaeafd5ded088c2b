package event_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
)

func TestKindsAreSortedUniqueAndFound(t *testing.T) {
	kinds := event.Kinds()
	require.NotEmpty(t, kinds)
	require.True(t, slices.IsSortedFunc(kinds, func(a, b event.Kind) int { return strings.Compare(a.Type, b.Type) }),
		"Lookup searches the table by halves")
	for i, k := range kinds {
		if i > 0 {
			assert.NotEqual(t, kinds[i-1].Type, k.Type)
		}
		got, ok := event.Lookup(k.Type)
		assert.True(t, ok, k.Type)
		assert.Equal(t, k, got)
	}
}

func TestLookupRefusesWhatIsNotThere(t *testing.T) {
	for _, name := range []string{"", "network", "network.rtt", "network.rtt_spike ", "NETWORK.RTT_SPIKE", "zzz"} {
		k, ok := event.Lookup(name)
		assert.False(t, ok, "%q", name)
		assert.Zero(t, k)
	}
}

func TestKindsAreComplete(t *testing.T) {
	fields := (*eventv1.Event)(nil).ProtoReflect().Descriptor().Oneofs().ByName("data").Fields()
	for _, k := range event.Kinds() {
		t.Run(k.Type, func(t *testing.T) {
			assert.Regexp(t, `^(agent|container|network|node|scheduler|storage)\.[a-z_]+$`, k.Type)
			assert.Greater(t, k.Severity, eventv1.Severity_SEVERITY_UNSPECIFIED)
			assert.True(t, strings.HasSuffix(k.Description, "."), "a description is a sentence: %q", k.Description)
			if k.Data != event.DataNone {
				field := fields.ByName(protoName(k.Data))
				assert.NotNil(t, field, "the protocol has no data field %s", k.Data)
			}
			for _, name := range k.Required {
				_, ok := event.LookupKey(name)
				assert.True(t, ok, "required key %q is not in the registry", name)
			}
		})
	}
}

func TestKindsGivesACopy(t *testing.T) {
	event.Kinds()[0].Type = "changed"
	_, ok := event.Lookup("changed")
	require.False(t, ok)
	require.NotEqual(t, "changed", event.Kinds()[0].Type)
}

func TestKeysAreSortedUniqueAndDescribed(t *testing.T) {
	keys := event.Keys()
	require.NotEmpty(t, keys)
	for i, k := range keys {
		if i > 0 {
			assert.Less(t, keys[i-1].Name, k.Name, "LookupKey searches the table by halves")
		}
		got, ok := event.LookupKey(k.Name)
		assert.True(t, ok, k.Name)
		assert.Equal(t, k, got)
		assert.True(t, strings.HasSuffix(k.Description, "."), "a description is a sentence: %q", k.Description)
	}
	_, ok := event.LookupKey("tapio.rtt")
	assert.False(t, ok)
}

// A name that ends in a unit must have that unit, or one of the two lies.
func TestKeyUnitsMatchTheirNames(t *testing.T) {
	for _, k := range event.Keys() {
		var want event.Unit
		switch {
		case strings.HasSuffix(k.Name, "_ms"):
			want = event.UnitMilliseconds
		case strings.HasSuffix(k.Name, "_s"):
			want = event.UnitSeconds
		case strings.HasSuffix(k.Name, "_bytes"):
			want = event.UnitBytes
		case strings.HasSuffix(k.Name, ".count"), strings.HasSuffix(k.Name, ".events"), strings.Contains(k.Name, ".dropped_"), k.Name == event.TapioSuppressed:
			want = event.UnitCount
		}
		assert.Equal(t, want, k.Unit, k.Name)
	}
}
