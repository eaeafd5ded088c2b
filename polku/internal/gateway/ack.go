package gateway

import (
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	polkuv1 "github.com/yairfalse/tapio/proto/polku/v1"
)

// maxAck is the size from which an answer goes on in the next Ack, bytes. Most
// clients take messages of 4 MiB.
const maxAck = 256 << 10

// maxMessage is the most that is kept of why an event is refused, bytes.
const maxMessage = 400

// Numbers of the fields of Ack and AckError.
const (
	ackEventIDs  = 1
	ackErrors    = 2
	errorEventID = 1
	errorCode    = 2
	errorMessage = 3
)

// answer collects the Acks for one batch, encoded as it grows: ids are bytes
// already, and most batches have nothing else.
type answer struct {
	acks []encodedAck // the last is still open
	size int          // of all
}

func (a *answer) room(n int) *encodedAck {
	if len(a.acks) == 0 || len(a.acks[len(a.acks)-1])+n > maxAck {
		a.acks = append(a.acks, make(encodedAck, 0, max(n, cap0)))
	}
	a.size += n
	return &a.acks[len(a.acks)-1]
}

// cap0 holds the ids of a usual batch of ULIDs.
const cap0 = 4 << 10

// stored adds an event that is in the log, or will be when the answer is sent.
func (a *answer) stored(id []byte) {
	last := a.room(len(id) + binaryOverhead)
	*last = protowire.AppendTag(*last, ackEventIDs, protowire.BytesType)
	*last = protowire.AppendBytes(*last, id)
}

// refused adds an event that is not in the log and will not be.
func (a *answer) refused(id string, r *refusal) {
	message := strings.ToValidUTF8(r.message[:min(len(r.message), maxMessage)], "\uFFFD")
	length := sizeText(errorEventID, id) + sizeText(errorCode, r.code) + sizeText(errorMessage, message)
	last := a.room(length + binaryOverhead)
	b := protowire.AppendTag(*last, ackErrors, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(length))
	b = appendText(b, errorEventID, id)
	b = appendText(b, errorCode, r.code)
	*last = appendText(b, errorMessage, message)
}

func sizeText(number protowire.Number, text string) int {
	if text == "" {
		return 0
	}
	return protowire.SizeTag(number) + protowire.SizeBytes(len(text))
}

func appendText(b []byte, number protowire.Number, text string) []byte {
	if text == "" {
		return b
	}
	return protowire.AppendString(protowire.AppendTag(b, number, protowire.BytesType), text)
}

// finish adds the state of the gateway to an Ack. Encodings of parts of a
// message, one after the other, are the encoding of the whole.
func (a encodedAck) finish(state *polkuv1.Ack) (encodedAck, error) {
	return proto.MarshalOptions{}.MarshalAppend(a, state)
}
