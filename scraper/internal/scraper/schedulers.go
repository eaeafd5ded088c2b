package scraper

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/yairfalse/tapio/scraper/internal/detect"
	"github.com/yairfalse/tapio/scraper/internal/interval"
	"github.com/yairfalse/tapio/scraper/internal/target"
)

// schedulers are those that are scraped. One of them leads, or one that cannot be
// seen from here.
type schedulers struct {
	all          []*scheduler
	expectLeader bool
	leader       *scheduler // of the last scrape; nil when none leads
}

// scheduler is one of them and its last scrape.
type scheduler struct {
	target   *target.Target
	last     interval.Scrape    // that succeeded
	interval *interval.Interval // to last; nil for the first one
	err      error              // of the last scrape
	news     bool               // err is another one than before
	class    target.Class       // of err
	known    bool               // it has answered
	led      bool               // it led when it last answered
	began    bool               // and not when it answered before
}

// scrape reads all of them at the same time.
func (s *schedulers) scrape(ctx context.Context) {
	var scraping sync.WaitGroup
	for _, one := range s.all {
		scraping.Go(func() { one.scrape(ctx) })
	}
	scraping.Wait()
	s.choose()
}

// choose finds who leads. For a moment two may say that they do: then one has not
// noticed yet that it does no more, which is not the one that began to say so last.
func (s *schedulers) choose() {
	var leader *scheduler
	for _, one := range s.all {
		if one.err != nil || !one.led {
			continue
		}
		if leader == nil || one.began || one == s.leader && !leader.began {
			leader = one
		}
	}
	s.leader = leader
}

func (s *scheduler) scrape(ctx context.Context) {
	now, err := s.target.Scrape(ctx)
	if err != nil {
		class := target.Unreachable
		var failure *target.Failure
		if errors.As(err, &failure) {
			class = failure.Class
		}
		s.news = s.err == nil || s.class != class
		s.err, s.class, s.interval = err, class, nil
		return
	}
	s.interval = nil
	if s.known {
		s.interval = interval.Between(s.last, now)
	}
	leads := now.Page.Leads()
	s.began = leads && !s.led
	s.last, s.err, s.class, s.news, s.known, s.led = now, nil, "", false, true, leads
}

// explain says what is wrong and what to do.
func (s *scheduler) explain() error {
	return fmt.Errorf("%w; %s", s.err, s.class.Advice())
}

// verdict says who schedules.
type verdict int

const (
	leads    verdict = iota // one of those that are scraped
	standsBy                // another one, as far as can be told
	nobody                  // none, or nobody knows
	unknown                 // a standby does not answer: another one may lead
)

// judge says who schedules: the leader, the standby that answered, or why nobody
// is known to.
func (s *schedulers) judge() (verdict, *scheduler, detect.Cause) {
	if s.leader != nil {
		return leads, s.leader, detect.Cause{}
	}
	var standby, failed *scheduler
	var messages []string
	for _, one := range s.all {
		switch {
		case one.err == nil:
			standby = one
		case failed == nil || one.led && !failed.led:
			failed = one
		}
		if one.err != nil {
			messages = append(messages, one.explain().Error())
		}
	}
	if failed != nil && (s.expectLeader || failed.led || !failed.known) && (standby == nil || s.expectLeader) {
		c := detect.Cause{Type: string(failed.class), Answers: failed.class.Answers(), Message: strings.Join(messages, "; ")}
		if len(s.all) == 1 {
			c.Instance = failed.target.Name()
		}
		return nobody, nil, c
	}
	if standby != nil && s.expectLeader {
		return nobody, nil, detect.Cause{
			Type: detect.NoLeader,
			Message: "no kube-scheduler leads: see whether the API server answers them, and who holds the lease kube-scheduler " +
				"in kube-system; when another instance leads, name it with --scheduler",
		}
	}
	if standby != nil {
		return standsBy, standby, detect.Cause{}
	}
	return unknown, nil, detect.Cause{}
}
