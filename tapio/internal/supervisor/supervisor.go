// Package supervisor keeps tasks alive, each on its own: one that fails is
// started again after a pause that doubles, and the others never notice.
package supervisor

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"time"
)

// Task runs until ctx is done or it fails. It calls ready when it does its work.
type Task struct {
	Name string
	Run  func(ctx context.Context, ready func()) error
}

// Status is how a task is doing.
type Status struct {
	Name     string
	Ready    bool
	Restarts uint64
	Err      error // of the last failure; nil once it is ready again
}

// Supervisor runs tasks. Its fields must not change once Run was called.
type Supervisor struct {
	Tasks []Task
	// Failed is told of every failure and when the task is tried again. It is
	// called on the task's goroutine and may be nil.
	Failed func(name string, err error, again time.Duration)
	// FirstPause and LongestPause bound the wait before a restart; zero is a
	// second and five minutes.
	FirstPause, LongestPause time.Duration

	mu     sync.Mutex
	status map[string]*Status
}

// steady is how long a task must have been ready for its next failure to
// count as the first.
const steady = time.Minute

// Run runs the tasks until ctx is done and all of them have returned.
func (s *Supervisor) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, t := range s.Tasks {
		wg.Go(func() { s.keep(ctx, t) })
	}
	wg.Wait()
}

func (s *Supervisor) keep(ctx context.Context, t Task) {
	pause := s.firstPause()
	for {
		var since time.Time
		err := run(ctx, t, func() {
			since = time.Now()
			s.update(t.Name, func(st *Status) { st.Ready, st.Err = true, nil })
		})
		if ctx.Err() != nil {
			s.update(t.Name, func(st *Status) { st.Ready = false })
			return
		}
		if err == nil {
			err = fmt.Errorf("%s ended without being asked to", t.Name)
		}
		if !since.IsZero() && time.Since(since) > steady {
			pause = s.firstPause()
		}
		// Up to a tenth more, so that the agents of a cluster do not move in step.
		again := pause + rand.N(pause/10+1)
		pause = min(2*pause, s.longestPause())
		s.update(t.Name, func(st *Status) { st.Ready, st.Err, st.Restarts = false, err, st.Restarts+1 })
		if s.Failed != nil {
			s.Failed(t.Name, err, again)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(again):
		}
	}
}

func run(ctx context.Context, t Task, ready func()) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
	}()
	return t.Run(ctx, ready)
}

func (s *Supervisor) firstPause() time.Duration {
	if s.FirstPause == 0 {
		return time.Second
	}
	return s.FirstPause
}

func (s *Supervisor) longestPause() time.Duration {
	if s.LongestPause == 0 {
		return 5 * time.Minute
	}
	return s.LongestPause
}

func (s *Supervisor) update(name string, change func(*Status)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.status == nil {
		s.status = map[string]*Status{}
	}
	if s.status[name] == nil {
		s.status[name] = &Status{Name: name}
	}
	change(s.status[name])
}

// Status returns how the tasks are doing, in their order.
func (s *Supervisor) Status() []Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Status, 0, len(s.Tasks))
	for _, t := range s.Tasks {
		if st := s.status[t.Name]; st != nil {
			all = append(all, *st)
		} else {
			all = append(all, Status{Name: t.Name})
		}
	}
	return all
}
