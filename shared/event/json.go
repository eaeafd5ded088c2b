package event

import (
	"bytes"
	"encoding/json"
	"fmt"

	"google.golang.org/protobuf/encoding/protojson"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
)

// AppendJSON appends e to dst as one JSON object on one line, without a line
// end, and returns the longer slice. Fields have their protobuf names, 64 bit
// integers are strings and enums are names, as protojson has it. Equal events
// give equal bytes.
//
// It fails on an event that JSON cannot hold, such as one with invalid UTF-8,
// and then returns dst as it was. An event that passed Validate does not fail.
func AppendJSON(dst []byte, e *eventv1.Event) ([]byte, error) {
	spaced, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(e)
	if err != nil {
		return dst, fmt.Errorf("encode event %q as JSON: %w", e.GetId(), err)
	}
	// protojson puts spaces at random places so that nobody relies on its
	// bytes. People do compare lines: without the spaces they are stable.
	line := bytes.NewBuffer(dst)
	if err := json.Compact(line, spaced); err != nil {
		return dst, fmt.Errorf("compact JSON of event %q: %w", e.GetId(), err)
	}
	return line.Bytes(), nil
}
