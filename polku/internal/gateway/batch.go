package gateway

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
)

// Formats of raw payloads.
const (
	formatJSON     = "json"     // protojson of Event: one, one a line, or a list
	formatProtobuf = "protobuf" // EventPayload in a batch, Event in SendEvent
)

const (
	// maxEvents is the most events of one batch. What is refused takes room in
	// the answer, and events can be tiny.
	maxEvents = 16_384
)

// Numbers of the fields that a batch is read by.
const (
	batchSource   = 1
	batchCluster  = 2
	batchRaw      = 3
	batchEvents   = 4
	rawData       = 1
	rawFormat     = 2
	payloadEvents = 1
)

// batch is an IngestBatch of which the events are still encoded. Its slices are
// parts of the received bytes, or made from a raw payload.
type batch struct {
	source, cluster []byte
	items           []item
	made            int // bytes of the items that are no parts of the received ones
	// whole is the encoding to store when every item is, of which there are
	// total; nil if there is none.
	whole []byte
	total int
}

// item is one event of a batch.
type item struct {
	wire []byte // encoded event
	id   string // of an event that could not be decoded, if it could be read
	err  error  // why the event could not be decoded
}

// refusal is why events are refused, with its stable name.
type refusal struct {
	code    string
	message string
}

func (r *refusal) Error() string { return r.message }

// Codes of AckError.
const (
	codeInvalid       = "invalid"
	codeTooLarge      = "too_large"
	codeUnknownFormat = "unknown_format"
)

func invalid(format string, args ...any) *refusal {
	return &refusal{codeInvalid, fmt.Sprintf(format, args...)}
}

var errNoBatch = invalid("the message is no polku.v1.IngestBatch in protobuf encoding")

// readBatch splits a batch into its events. items is memory to use for them. A
// batch that is refused has those that could be read, so that each is refused by
// its name: a source waits for an answer about everything that it sent.
func readBatch(wire []byte, items []item) (batch, *refusal) {
	b := batch{items: items[:0]}
	var payload []byte
	var kind protowire.Number
	text := true // of each occurrence: a decoder looks at all
	err := eachField(wire, func(number protowire.Number, value []byte) *refusal {
		switch number {
		case batchSource:
			b.source, text = value, text && utf8.Valid(value)
		case batchCluster:
			b.cluster, text = value, text && utf8.Valid(value)
		case batchRaw, batchEvents:
			if kind != 0 {
				return invalid("the batch has two payloads: send one")
			}
			kind, payload = number, value
		}
		return nil
	})
	if err != nil {
		return b, err
	}
	switch kind {
	case batchEvents:
		b.whole = wire
		err = b.split(payload)
	case batchRaw:
		err = b.decode(payload)
	default:
		err = invalid("the batch has no payload: set raw or events")
	}
	b.total = len(b.items)
	switch {
	case err != nil:
		return b, err
	case !text:
		return b, invalid("source or cluster of the batch is not UTF-8: replace the bytes that are not")
	}
	return b, b.checkOrigin()
}

// checkOrigin checks what a batch says of all its events.
func (b *batch) checkOrigin() *refusal {
	if len(b.source) > 0 { // else each event names its own
		if err := event.ValidateSource(b.source); err != nil {
			return invalid("batch: %v", err)
		}
	}
	if err := event.ValidateName(b.cluster); err != nil {
		return invalid("batch: cluster %v", err)
	}
	return nil
}

// split reads an EventPayload.
func (b *batch) split(payload []byte) *refusal {
	return eachField(payload, func(number protowire.Number, value []byte) *refusal {
		if number != payloadEvents {
			return nil
		}
		return b.add(item{wire: value})
	})
}

func (b *batch) add(i item) *refusal {
	if len(b.items) == maxEvents {
		return &refusal{codeTooLarge, fmt.Sprintf("the batch has more than %d events: send smaller batches", maxEvents)}
	}
	b.items = append(b.items, i)
	return nil
}

// addMade adds an item with memory of its own.
func (b *batch) addMade(i item) *refusal {
	b.made += len(i.wire)
	return b.add(i)
}

// decode reads a RawPayload.
func (b *batch) decode(raw []byte) *refusal {
	var data, format []byte
	err := eachField(raw, func(number protowire.Number, value []byte) *refusal {
		switch number {
		case rawData:
			data = value
		case rawFormat:
			format = value
		}
		return nil
	})
	if err != nil {
		return err
	}
	switch string(format) {
	case formatProtobuf:
		return b.split(data)
	case formatJSON:
		return b.decodeJSON(data)
	}
	return unknownFormat(string(format))
}

func unknownFormat(format string) *refusal {
	return &refusal{codeUnknownFormat, fmt.Sprintf("the format %.80q is unknown: use %s or %s", format, formatJSON, formatProtobuf)}
}

// decodeJSON reads one event, several one after the other, or a list. An object
// that is no event is refused alone; after an error in the syntax nothing can be
// read.
func (b *batch) decodeJSON(data []byte) *refusal {
	decoder := json.NewDecoder(bytes.NewReader(data))
	list := bytes.HasPrefix(bytes.TrimLeft(data, " \t\r\n"), []byte("["))
	if list {
		_, _ = decoder.Token() // the bracket that was seen
	}
	for !list || decoder.More() {
		var object json.RawMessage
		err := decoder.Decode(&object)
		if errors.Is(err, io.EOF) && !list {
			return nil
		}
		if err != nil {
			return notJSON(err, decoder.InputOffset())
		}
		if err := b.addMade(itemOfJSON(object)); err != nil {
			return err
		}
	}
	if _, err := decoder.Token(); err != nil { // the closing bracket
		return notJSON(err, decoder.InputOffset())
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return invalid("the payload goes on after its list, at byte %d", decoder.InputOffset())
	}
	return nil
}

func notJSON(err error, offset int64) *refusal {
	return invalid("the payload is not JSON at byte %d (%v): nothing of it was taken", offset, err)
}

func itemOfJSON(object []byte) item {
	var e eventv1.Event
	// As in protobuf, fields of a newer version of the protocol are none of ours.
	err := protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(object, &e)
	if err != nil {
		var named struct {
			ID string `json:"id"`
		}
		_ = json.Unmarshal(object, &named) // without a name it is refused as well
		return item{id: named.ID, err: fmt.Errorf("no event in JSON: %.200w", err)}
	}
	return itemOf(&e)
}

// itemOf encodes an event again, for one that did not arrive in a batch.
func itemOf(e *eventv1.Event) item {
	wire, err := proto.Marshal(e)
	return item{wire: wire, id: e.GetId(), err: err}
}

// eachField calls visit for each field of a message that holds bytes, text or a
// message. Others are passed over.
func eachField(wire []byte, visit func(number protowire.Number, value []byte) *refusal) *refusal {
	for len(wire) > 0 {
		f, rest, ok := event.CutField(wire)
		if !ok {
			return errNoBatch
		}
		if f.Type == protowire.BytesType {
			if err := visit(f.Number, f.Value); err != nil {
				return err
			}
		}
		wire = rest
	}
	return nil
}

// bodies encodes events as batches to store, each of at most size bytes if its
// events allow that. done is called with each body and the number of its events.
func (b *batch) bodies(events [][]byte, size int, done func(body []byte, events int) error) error {
	if b.whole != nil && len(events) == b.total && len(b.whole) <= size {
		return done(b.whole, len(events))
	}
	for len(events) > 0 {
		n, length := 0, 0
		for n < len(events) {
			next := protowire.SizeTag(payloadEvents) + protowire.SizeBytes(len(events[n]))
			if n > 0 && length+next > size-len(b.source)-len(b.cluster)-2*binaryOverhead {
				break
			}
			length += next
			n++
		}
		body := make([]byte, 0, length+len(b.source)+len(b.cluster)+4*binaryOverhead)
		if len(b.source) > 0 {
			body = protowire.AppendTag(body, batchSource, protowire.BytesType)
			body = protowire.AppendBytes(body, b.source)
		}
		if len(b.cluster) > 0 {
			body = protowire.AppendTag(body, batchCluster, protowire.BytesType)
			body = protowire.AppendBytes(body, b.cluster)
		}
		body = protowire.AppendTag(body, batchEvents, protowire.BytesType)
		body = protowire.AppendVarint(body, uint64(length))
		for _, e := range events[:n] {
			body = protowire.AppendTag(body, payloadEvents, protowire.BytesType)
			body = protowire.AppendBytes(body, e)
		}
		if err := done(body, n); err != nil {
			return err
		}
		events = events[n:]
	}
	return nil
}

// binaryOverhead is what a tag and a length take at most.
const binaryOverhead = 16
