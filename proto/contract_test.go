package proto_test

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/reflect/protoreflect"

	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	polkuv1 "github.com/yairfalse/tapio/proto/polku/v1"
)

var update = flag.Bool("update", false, "write testdata/contract.txt anew")

// Other programs speak this protocol. What testdata/contract.txt says of it must
// not change; lines may be added for fields from 100 up.
func TestContract(t *testing.T) {
	const golden = "testdata/contract.txt"
	var b strings.Builder
	for _, file := range []protoreflect.FileDescriptor{
		eventv1.File_polku_event_v1_event_proto, polkuv1.File_polku_v1_gateway_proto,
		ahtiv1.File_ahti_v1_event_proto, ahtiv1.File_ahti_v1_ahti_proto,
	} {
		describe(&b, file)
	}
	if *update {
		require.NoError(t, os.WriteFile(golden, []byte(b.String()), 0o644))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	require.Equal(t, string(want), b.String(), "the wire contract changed: if it only grew, run this test with -update")
}

// describe writes one line for each thing that the wire or its JSON shows.
func describe(b *strings.Builder, file protoreflect.FileDescriptor) {
	for i := range file.Enums().Len() {
		values := file.Enums().Get(i).Values()
		for j := range values.Len() {
			v := values.Get(j)
			fmt.Fprintf(b, "enum %s: %d %s\n", v.Parent().FullName(), v.Number(), v.Name())
		}
	}
	for i := range file.Messages().Len() {
		m := file.Messages().Get(i)
		if m.Fields().Len() == 0 {
			fmt.Fprintf(b, "message %s: empty\n", m.FullName())
		}
		for j := range m.Fields().Len() {
			f := m.Fields().Get(j)
			fmt.Fprintf(b, "message %s: %d %s %s", m.FullName(), f.Number(), f.Name(), typeName(f))
			if oneof := f.ContainingOneof(); oneof != nil {
				fmt.Fprintf(b, " (oneof %s)", oneof.Name())
			}
			fmt.Fprintln(b)
		}
	}
	for i := range file.Services().Len() {
		methods := file.Services().Get(i).Methods()
		for j := range methods.Len() {
			m := methods.Get(j)
			fmt.Fprintf(b, "rpc %s(%s%s) returns (%s%s)\n", m.FullName(),
				stream(m.IsStreamingClient()), m.Input().FullName(), stream(m.IsStreamingServer()), m.Output().FullName())
		}
	}
}

func typeName(f protoreflect.FieldDescriptor) string {
	if f.IsMap() {
		return fmt.Sprintf("map<%s, %s>", typeName(f.MapKey()), typeName(f.MapValue()))
	}
	name := f.Kind().String()
	if f.Message() != nil {
		name = string(f.Message().FullName())
	} else if f.Enum() != nil {
		name = string(f.Enum().FullName())
	}
	if f.IsList() {
		return "repeated " + name
	}
	return name
}

func stream(yes bool) string {
	if yes {
		return "stream "
	}
	return ""
}
