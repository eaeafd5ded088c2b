package journal

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
)

// headerReason says why a destination refused an event.
const headerReason = "Polku-Reason"

// maxReason is the most that is kept of a reason, bytes.
const maxReason = 1 << 10

// DeadLetter is an event that a destination refused for good.
type DeadLetter struct {
	Route  string
	Reason string
	Time   time.Time // when it was refused
	Event  *eventv1.Event
}

// Bury stores an event that the destination of a route refused for good. It
// returns when the event is on disk.
func (j *Journal) Bury(ctx context.Context, route, reason string, e *eventv1.Event) error {
	body, err := proto.Marshal(e)
	if err != nil {
		return fmt.Errorf("encode the dead letter %s: %w", e.GetId(), err)
	}
	reason = strings.Join(strings.Fields(reason[:min(len(reason), maxReason)]), " ")
	_, err = j.js.PublishMsg(ctx, &nats.Msg{
		Subject: subjectDead + route,
		Header:  nats.Header{headerReason: []string{strings.ToValidUTF8(reason, "\uFFFD")}},
		Data:    body,
	}, jetstream.WithMsgID(route+"/"+e.GetId()))
	if err != nil {
		return fmt.Errorf("store the dead letter %s of route %s: %w", e.GetId(), route, j.explain(err))
	}
	j.metrics.deadLetters.WithLabelValues(route).Inc()
	return nil
}

// DeadLetters calls visit with the newest dead letters, the oldest of them
// first. route filters by name; empty takes all.
func (j *Journal) DeadLetters(ctx context.Context, route string, limit int, visit func(DeadLetter) error) error {
	stream, err := j.js.Stream(ctx, streamDeadLetter)
	if err != nil {
		return fmt.Errorf("read the dead letters: %w", j.explain(err))
	}
	s := stream.CachedInfo().State
	var found []*jetstream.RawStreamMsg
	for seq := s.LastSeq; s.Msgs > 0 && seq >= s.FirstSeq && len(found) < limit; seq-- {
		msg, err := stream.GetMsg(ctx, seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue // the oldest go while this reads
		}
		if err != nil {
			return fmt.Errorf("read dead letter %d: %w", seq, err)
		}
		if route == "" || msg.Subject == subjectDead+route {
			found = append(found, msg)
		}
	}
	for i := len(found) - 1; i >= 0; i-- {
		var e eventv1.Event
		if err := proto.Unmarshal(found[i].Data, &e); err != nil {
			return fmt.Errorf("decode dead letter %d: %w", found[i].Sequence, err)
		}
		if err := visit(DeadLetter{
			Route:  strings.TrimPrefix(found[i].Subject, subjectDead),
			Reason: found[i].Header.Get(headerReason), Time: found[i].Time, Event: &e,
		}); err != nil {
			return err
		}
	}
	return nil
}
