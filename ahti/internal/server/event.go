package server

import (
	"fmt"
	"strings"
	"time"
	"unicode"

	"google.golang.org/protobuf/proto"

	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
)

// Limits of one event. They are far above what a transformed event has.
const (
	maxEvent         = 512 << 10 // bytes
	maxID            = 128       // bytes, as everywhere in the chain
	maxName          = 1 << 10   // bytes, of an entity's id and of its name
	maxWord          = 256       // bytes, of kind, source, cluster and namespace
	maxEntities      = 1024
	maxRelationships = 4096
	// maxAhead is how far a node's clock may be ahead of this one. An event of
	// the far future would be the newest one of every timeline until then.
	maxAhead = 24 * time.Hour
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
// decoded is returned all the same, because it may have the id.
func decode(body []byte, now time.Time) (*ahtiv1.AhtiEvent, *refusal) {
	e := &ahtiv1.AhtiEvent{}
	if err := proto.Unmarshal(body, e); err != nil {
		return &ahtiv1.AhtiEvent{}, invalid("cannot be decoded: %v", err)
	}
	if r := check(e, now); r != nil {
		return e, r
	}
	if len(body) > maxEvent {
		return e, &refusal{codeTooLarge, fmt.Sprintf("has %d bytes: send at most %d", len(body), maxEvent)}
	}
	return e, nil
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
		if len(field.word) > maxWord || strings.ContainsFunc(field.word, unicode.IsControl) {
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
		if x.GetId() == "" || len(x.GetId()) > maxName || len(x.GetName()) > maxName || len(x.GetClusterId()) > maxWord || len(x.GetNamespace()) > maxWord {
			return invalid("entities[%d]: use an id of 1 to %d bytes, a name of as many, and at most %d for cluster_id and namespace", i, maxName, maxWord)
		}
	}
	for i, r := range e.GetRelationships() {
		for _, ref := range []*ahtiv1.EntityReference{r.GetSource(), r.GetTarget()} {
			if ref.GetId() == "" || len(ref.GetId()) > maxName || len(ref.GetClusterId()) > maxWord {
				return invalid("relationships[%d]: name source and target by ids of 1 to %d bytes", i, maxName)
			}
		}
	}
	return nil
}

func notInID(r rune) bool { return r <= ' ' || r >= 0x7f }
