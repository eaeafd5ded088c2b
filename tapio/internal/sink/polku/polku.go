// Package polku sends events to the gateway.
package polku

import (
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/polku"
)

// Sink is the gateway's client as a sink: it never waits, and counts what it
// has to drop.
type Sink struct{ *polku.Client }

// Open prepares the client.
func Open(config polku.Config) (*Sink, error) {
	client, err := polku.New(config)
	if err != nil {
		return nil, err
	}
	return &Sink{client}, nil
}

// Send queues the event. What is lost is the client's to tell.
func (s *Sink) Send(e *eventv1.Event) { s.Offer(e) }

// Totals tells what became of the events so far.
func (s *Sink) Totals() (delivered uint64, waiting int, lost uint64) {
	return s.Acked(), s.Pending(), s.Lost()
}
