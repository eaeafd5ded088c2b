package layout

import (
	"reflect"
	"testing"

	"github.com/cilium/ebpf/btf"
	"github.com/stretchr/testify/require"
)

func TestCompare(t *testing.T) {
	u32 := &btf.Int{Name: "__u32", Size: 4}
	char := &btf.Int{Name: "char", Size: 1, Encoding: btf.Signed}
	record := &btf.Struct{Name: "record", Size: 12, Members: []btf.Member{
		{Name: "first_one", Type: &btf.Typedef{Name: "u32", Type: u32}},
		{Name: "second", Type: u32, Offset: 32},
		{Name: "name", Type: &btf.Array{Type: char, Nelems: 4, Index: u32}, Offset: 64},
	}}
	tests := []struct {
		name string
		in   any
		want string // empty: equal
	}{
		{"equal", struct {
			_        struct{}
			FirstOne uint32
			Second   uint32
			Name     [4]int8
		}{}, ""},
		{"size", struct{ FirstOne, Second uint32 }{}, "record has 12 bytes in C, 8 in Go"},
		{"members", struct {
			FirstOne uint32
			Second   uint64
		}{}, "record has 12 bytes in C, 16 in Go"},
		{"number of members", struct{ FirstOne, Second, Name, More [3]uint8 }{}, "record has 3 members in C, 4 in Go"},
		{"order", struct {
			Second   uint32
			FirstOne uint32
			Name     [4]int8
		}{}, "record.first_one is called Second in Go"},
		{"offset", struct {
			_        uint32
			FirstOne uint32
			Second   uint16
			Name     [2]int8
		}{}, "record.first_one is at byte 0 in C, 4 in Go"},
		{"sign", struct {
			FirstOne uint32
			Second   int32
			Name     [4]int8
		}{}, "record.second is unsigned in C, int32 in Go"},
		{"kind", struct {
			FirstOne float32
			Second   uint32
			Name     [4]int8
		}{}, "record.first_one is an integer in C, float32 in Go"},
		{"array", struct {
			FirstOne uint32
			Second   uint32
			Name     [2]int16
		}{}, "record.name has 4 elements in C, is [2]int16 in Go"},
		{"no array", struct {
			FirstOne, Second, Name uint32
		}{}, "record.name has 4 elements in C, is uint32 in Go"},
		{"no struct", [3]uint32{}, "record is a struct in C, [3]uint32 in Go"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			err := compare("record", record, reflect.TypeOf(test.in))
			if test.want == "" {
				require.NoError(t, err)
				return
			}
			require.EqualError(t, err, test.want)
		})
	}
}
