package scraper

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
)

// Two may say that they lead for longer than one scrape. The one that began last is
// believed all the time.
func TestTwoSayThatTheyLead(t *testing.T) {
	for name, first := range map[string]int{"the first": 0, "the last": 1} {
		t.Run(name, func(t *testing.T) {
			s := &schedulers{all: []*scheduler{{}, {}}}
			old, next := s.all[first], s.all[1-first]
			old.led, old.began = true, true
			s.choose()
			require.Same(t, old, s.leader)
			old.began, next.led, next.began = false, true, true
			for range 4 {
				s.choose()
				require.Same(t, next, s.leader)
				next.began = false
			}
			next.err = errors.New("gone")
			s.choose()
			require.Same(t, old, s.leader)
		})
	}
}
