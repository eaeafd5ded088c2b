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

// ackEventIDs is the number of the field of Ack.
const ackEventIDs = 1

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
	part := &polkuv1.Ack{Errors: []*polkuv1.AckError{{
		EventId: id, Code: r.code,
		Message: strings.ToValidUTF8(r.message[:min(len(r.message), maxMessage)], "\uFFFD"),
	}}}
	last := a.room(proto.Size(part))
	*last, _ = last.with(part) // which fails at text that is not UTF-8 alone
}

// with adds a part to an Ack. Encodings of parts of a message, one after the
// other, are the encoding of the whole.
func (a encodedAck) with(part *polkuv1.Ack) (encodedAck, error) {
	return proto.MarshalOptions{}.MarshalAppend(a, part)
}
