package supervisor_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/yairfalse/tapio/tapio/internal/supervisor"
)

// failures remembers what the supervisor tells of failures.
type failures struct {
	mu    sync.Mutex
	names []string
	errs  []error
	again []time.Duration
}

func (f *failures) add(name string, err error, again time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.names, f.errs, f.again = append(f.names, name), append(f.errs, err), append(f.again, again)
}

// run runs s until stop returns; all in a bubble, where time is not real.
func run(t *testing.T, s *supervisor.Supervisor) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		s.Run(ctx)
		close(done)
	}()
	return func() {
		cancel()
		<-done
	}
}

// within says that a pause is the one that is meant, and up to a tenth more.
func within(t *testing.T, want, got time.Duration) {
	t.Helper()
	assert.GreaterOrEqual(t, got, want)
	assert.LessOrEqual(t, got, want+want/10)
}

func TestPauseDoublesUpToALimit(t *testing.T) {
	tests := []struct {
		name           string
		first, longest time.Duration
		want           []time.Duration
	}{
		{"by default", 0, 0, []time.Duration{
			1 * time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 32 * time.Second,
			64 * time.Second, 128 * time.Second, 256 * time.Second, 300 * time.Second, 300 * time.Second,
		}},
		{"as told", 10 * time.Millisecond, 30 * time.Millisecond, []time.Duration{
			10 * time.Millisecond, 20 * time.Millisecond, 30 * time.Millisecond, 30 * time.Millisecond,
		}},
		{"tiny", 1, 3, []time.Duration{1, 2, 3, 3}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var f failures
				var starts []time.Time
				stop := run(t, &supervisor.Supervisor{
					FirstPause: test.first, LongestPause: test.longest, Failed: f.add,
					Tasks: []supervisor.Task{{Name: "network", Run: func(ctx context.Context, _ func()) error {
						starts = append(starts, time.Now())
						if len(starts) > len(test.want) {
							<-ctx.Done()
							return nil
						}
						return errors.New("refused")
					}}},
				})
				time.Sleep(time.Hour)
				stop()
				require.Len(t, f.again, len(test.want))
				for i, want := range test.want {
					within(t, want, f.again[i])
					assert.Equal(t, f.again[i], starts[i+1].Sub(starts[i]), "it says when it tries again")
				}
			})
		})
	}
}

// A task that has worked for a while is not one that never worked.
func TestPauseStartsAnewAfterAGoodTime(t *testing.T) {
	const first = time.Second
	tests := []struct {
		name  string
		works time.Duration
		ready bool
		want  time.Duration // the pause after the third failure
	}{
		{"it worked", 61 * time.Second, true, first},
		{"it worked for a moment", 59 * time.Second, true, 4 * first},
		{"it only tried", time.Hour, false, 4 * first},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var f failures
				runs := 0
				stop := run(t, &supervisor.Supervisor{
					Failed: f.add,
					Tasks: []supervisor.Task{{Name: "network", Run: func(ctx context.Context, ready func()) error {
						runs++
						switch {
						case runs == 3:
							if test.ready {
								ready()
							}
							time.Sleep(test.works)
						case runs > 3:
							<-ctx.Done()
						}
						return errors.New("refused")
					}}},
				})
				time.Sleep(2 * time.Hour)
				stop()
				require.Len(t, f.again, 3)
				within(t, first, f.again[0])
				within(t, 2*first, f.again[1])
				within(t, test.want, f.again[2])
			})
		})
	}
}

func TestFailures(t *testing.T) {
	tests := []struct {
		name string
		run  func() error
		want string
	}{
		{"an error", func() error { return errors.New("no such tracepoint") }, "no such tracepoint"},
		{"an end that nobody asked for", func() error { return nil }, "network ended without being asked to"},
		{"a panic", func() error { panic("oops") }, "panic: oops"},
		{"a panic of the runtime", func() error {
			var m map[string]int
			m["x"]++
			return nil
		}, "assignment to entry in nil map"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var f failures
				s := &supervisor.Supervisor{
					Failed: f.add,
					Tasks:  []supervisor.Task{{Name: "network", Run: func(context.Context, func()) error { return test.run() }}},
				}
				stop := run(t, s)
				synctest.Wait()
				require.Len(t, f.errs, 1)
				assert.Equal(t, "network", f.names[0])
				assert.ErrorContains(t, f.errs[0], test.want)
				status := s.Status()
				require.Len(t, status, 1)
				assert.Equal(t, f.errs[0], status[0].Err)
				assert.Equal(t, uint64(1), status[0].Restarts)
				stop()
			})
		})
	}
}

func TestOneTaskDoesNotDisturbAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		starts := 0
		s := &supervisor.Supervisor{Tasks: []supervisor.Task{
			{Name: "bad", Run: func(context.Context, func()) error { panic("oops") }},
			{Name: "good", Run: func(ctx context.Context, ready func()) error {
				starts++
				ready()
				<-ctx.Done()
				return nil
			}},
		}}
		stop := run(t, s)
		time.Sleep(time.Hour)
		synctest.Wait()
		status := s.Status()
		assert.Equal(t, "bad", status[0].Name)
		assert.False(t, status[0].Ready)
		assert.Greater(t, status[0].Restarts, uint64(10))
		assert.Equal(t, supervisor.Status{Name: "good", Ready: true}, status[1])
		stop()
		assert.Equal(t, 1, starts)
		assert.False(t, s.Status()[1].Ready)
	})
}

func TestStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("broken")
		proceed := make(chan error)
		s := &supervisor.Supervisor{Tasks: []supervisor.Task{{Name: "network", Run: func(ctx context.Context, ready func()) error {
			if err := <-proceed; err != nil {
				return err
			}
			ready()
			return <-proceed
		}}}}
		status := func() supervisor.Status {
			synctest.Wait()
			return s.Status()[0]
		}
		assert.Equal(t, supervisor.Status{Name: "network"}, status(), "before Run")
		stop := run(t, s)
		assert.Equal(t, supervisor.Status{Name: "network"}, status(), "starting")
		proceed <- broken
		assert.Equal(t, supervisor.Status{Name: "network", Restarts: 1, Err: broken}, status())
		proceed <- nil
		assert.Equal(t, supervisor.Status{Name: "network", Ready: true, Restarts: 1}, status(), "the failure is over")
		proceed <- broken
		assert.Equal(t, supervisor.Status{Name: "network", Restarts: 2, Err: broken}, status())
		close(proceed)
		stop()
		assert.False(t, status().Ready)
	})
}

// A stop waits for the tasks and for nothing else.
func TestStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tasks []supervisor.Task
		for i := range 3 {
			tasks = append(tasks, supervisor.Task{Name: fmt.Sprint("failing ", i), Run: func(context.Context, func()) error { return errors.New("no") }})
		}
		tasks = append(tasks, supervisor.Task{Name: "cleans up", Run: func(ctx context.Context, ready func()) error {
			ready()
			<-ctx.Done()
			time.Sleep(3 * time.Second)
			return ctx.Err()
		}})
		var f failures
		s := &supervisor.Supervisor{Tasks: tasks, FirstPause: time.Hour, LongestPause: time.Hour, Failed: f.add}
		stop := run(t, s)
		time.Sleep(time.Minute)
		before := time.Now()
		stop()
		assert.Equal(t, 3*time.Second, time.Since(before))
		assert.Len(t, f.names, 3, "being stopped is no failure")
		assert.NoError(t, s.Status()[3].Err)
	})
}

func TestWithoutTasks(t *testing.T) {
	s := &supervisor.Supervisor{}
	s.Run(t.Context())
	assert.Empty(t, s.Status())
}
