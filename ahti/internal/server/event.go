package server

import (
	"fmt"
	"strings"
	"time"
	"unicode"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
	"github.com/yairfalse/tapio/shared/event"
)

// Limits of one event. They are far above what a transformed event has.
const (
	maxEvent         = 512 << 10 // bytes
	maxID            = event.MaxIDLen
	maxName          = 1 << 10          // bytes, of an entity's id and name, and of a reason
	maxWord          = event.MaxNameLen // of kind, source, cluster and namespace
	maxPath          = 1 << 10          // bytes, of the path of a changed field, whose steps are matched against patterns
	maxValue         = 64 << 10         // bytes, of a changed field's value before and after
	maxText          = 16 << 10         // bytes, of an entity's labels and attributes: an incident tells of a hundred, and must fit in an answer
	maxEntities      = 1024
	maxRelationships = 4096
	// maxAhead is how far a node's clock may be ahead of this one. An event of
	// the far future would be the newest one of every timeline until then.
	maxAhead = event.MaxAhead
)

// Codes of IngestError.
const (
	codeInvalid  = "invalid"
	codeTooLarge = "too_large"
)

// What is outside of these is no time of an event, but a zero or a wrong unit.
var (
	earliest = time.Date(2020, time.January, 1, 0, 0, 0, 0, time.UTC)
	latest   = time.Date(2100, time.January, 1, 0, 0, 0, 0, time.UTC)
)

// refusal says why an event is not stored.
type refusal struct{ code, message string }

func invalid(format string, args ...any) *refusal {
	return &refusal{codeInvalid, fmt.Sprintf(format, args...)}
}

// decode decodes an event and checks it, or says why it is refused. What could be
// decoded is returned all the same, because it may have the id. The body is the
// event as it is to be stored.
func decode(body []byte, now time.Time) (*ahtiv1.AhtiEvent, []byte, *refusal) {
	e := &ahtiv1.AhtiEvent{}
	if err := proto.Unmarshal(body, e); err != nil {
		return &ahtiv1.AhtiEvent{}, nil, invalid("cannot be decoded: %v", err)
	}
	changed := dropZeroTimes(e)
	if r := check(e, now); r != nil {
		return e, nil, r
	}
	if len(body) > maxEvent {
		return e, nil, &refusal{codeTooLarge, fmt.Sprintf("has %d bytes: send at most %d", len(body), maxEvent)}
	}
	if changed {
		var err error
		if body, err = proto.Marshal(e); err != nil {
			return e, nil, invalid("cannot be encoded: %v", err)
		}
	}
	return e, body, nil
}

func check(e *ahtiv1.AhtiEvent, now time.Time) *refusal {
	if id := e.GetId(); id == "" || len(id) > maxID || strings.ContainsFunc(id, notInID) {
		return invalid("id: use 1 to %d bytes of printable ASCII without spaces", maxID)
	}
	at := e.GetTimestamp()
	if at.CheckValid() != nil || at.AsTime().Before(earliest) || !at.AsTime().Before(latest) {
		return invalid("timestamp: set the time of the event, from %d to %d", earliest.Year(), latest.Year()-1)
	}
	if ahead := at.AsTime().Sub(now); ahead > maxAhead {
		return invalid("timestamp is %s ahead of this server: set the clock of the sender", ahead.Round(time.Second))
	}
	for _, field := range [...]struct{ name, word string }{
		{"subtype", e.GetSubtype()}, {"source", e.GetSource()}, {"cluster", e.GetCluster()}, {"namespace", e.GetNamespace()},
	} {
		if !isWord(field.word, maxWord) {
			return invalid("%s: use at most %d bytes without control characters", field.name, maxWord)
		}
	}
	switch {
	case e.GetSubtype() == "":
		return invalid("subtype is empty: set the kind of the event")
	case len(e.GetEntities()) > maxEntities:
		return invalid("has %d entities: send at most %d", len(e.GetEntities()), maxEntities)
	case len(e.GetRelationships()) > maxRelationships:
		return invalid("has %d relationships: send at most %d", len(e.GetRelationships()), maxRelationships)
	}
	for i, x := range e.GetEntities() {
		if x.GetId() == "" || !isWord(x.GetId(), maxName) || !isWord(x.GetName(), maxName) || !isWord(x.GetDeleteReason(), maxName) ||
			!isWord(x.GetClusterId(), maxWord) || !isWord(x.GetNamespace(), maxWord) {
			return invalid("entities[%d]: use an id of 1 to %d bytes, a name and a delete_reason of as many, and at most %d for cluster_id and namespace, without control characters", i, maxName, maxWord)
		}
		if n := textOf(x.GetLabels()) + textOf(x.GetAttributes()); n > maxText {
			return invalid("entities[%d] has %d bytes of labels and attributes: send at most %d", i, n, maxText)
		}
		if r := checkFactTime(x.GetDeletedAt(), now); r != "" {
			return invalid("entities[%d].deleted_at %s", i, r)
		}
	}
	for i, r := range e.GetRelationships() {
		for _, ref := range []*ahtiv1.EntityReference{r.GetSource(), r.GetTarget()} {
			if ref.GetId() == "" || !isWord(ref.GetId(), maxName) || !isWord(ref.GetClusterId(), maxWord) {
				return invalid("relationships[%d]: name source and target by ids of 1 to %d bytes without control characters", i, maxName)
			}
		}
		if !isWord(r.GetDeleteReason(), maxName) {
			return invalid("relationships[%d].delete_reason: use at most %d bytes without control characters", i, maxName)
		}
		for _, at := range []*timestamppb.Timestamp{r.GetCreatedAt(), r.GetDeletedAt()} {
			if r := checkFactTime(at, now); r != "" {
				return invalid("relationships[%d]: created_at or deleted_at %s", i, r)
			}
		}
	}
	for i, c := range e.GetK8S().GetChanges() {
		if len(c.GetPath()) > maxPath || len(c.GetOld()) > maxValue || len(c.GetNew()) > maxValue {
			return invalid("changes[%d]: use at most %d bytes for the path and %d for a value", i, maxPath, maxValue)
		}
	}
	return nil
}

// textOf is how much text labels hold, bytes.
func textOf(labels map[string]string) (n int) {
	for name, value := range labels {
		n += len(name) + len(value)
	}
	return n
}

// isWord says whether a text may be a name: PostgreSQL has no place for NUL, and
// a terminal obeys other control characters.
func isWord(text string, most int) bool {
	return len(text) <= most && !strings.ContainsFunc(text, unicode.IsControl)
}

// checkFactTime says what is wrong with the time of a fact, or nothing. A thing
// that is deleted in the far future would stay deleted whatever is told of it.
func checkFactTime(at *timestamppb.Timestamp, now time.Time) string {
	switch {
	case at == nil:
	case at.CheckValid() != nil || at.AsTime().Before(earliest) || !at.AsTime().Before(latest):
		return fmt.Sprintf("is no time from %d to %d: leave it unset when it is not known", earliest.Year(), latest.Year()-1)
	case at.AsTime().Sub(now) > maxAhead:
		return "is ahead of this server: set the clock of the sender"
	}
	return ""
}

// dropZeroTimes takes away times of facts that are the zero of some language,
// which is what an encoder makes of a time that nobody set. It says whether
// there were any.
func dropZeroTimes(e *ahtiv1.AhtiEvent) (dropped bool) {
	drop := func(at **timestamppb.Timestamp) {
		if zero := *at; zero != nil && zero.GetNanos() == 0 && (zero.GetSeconds() == 0 || zero.AsTime().IsZero()) {
			*at, dropped = nil, true
		}
	}
	for _, x := range e.GetEntities() {
		drop(&x.DeletedAt)
	}
	for _, r := range e.GetRelationships() {
		drop(&r.CreatedAt)
		drop(&r.DeletedAt)
	}
	return dropped
}

func notInID(r rune) bool { return r <= ' ' || r >= 0x7f }
