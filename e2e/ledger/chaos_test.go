package ledger

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"time"

	"github.com/stretchr/testify/require"
)

// fault is a way in which the world fails.
type fault string

// Faults. All but a kill last for a while.
const (
	kill        fault = "kill"
	fillPolku   fault = "full disk of polku"
	fillAHTI    fault = "full disk of ahti"
	freezeAHTI  fault = "frozen ahti"
	loseNetwork fault = "lost network"
)

// step is one thing that happens. Steps are ordered by the number of events that
// are acknowledged, not by time: a slow machine sees the same story.
type step struct {
	at     int // events
	fault  fault
	victim string        // of a kill; of a kill amid the fault, or empty
	pause  time.Duration // until the victim starts again
	hold   time.Duration // how long the fault lasts after it was noticed
}

const (
	// faultEvery is how many kills there are for a fault of each kind; there is
	// one of each at least.
	faultEvery = 20
	// longRun is the number of events from which faults may take their time.
	longRun = 100_000
	// longFreeze is longer than polku waits for an answer of ahti.
	longFreeze = 35 * time.Second
	// first and last are the share of the events before and after which nothing
	// happens.
	first, last = 0.02, 0.95
)

// plan makes the story that a seed stands for.
func plan(s settings) []step {
	random := rand.New(rand.NewPCG(s.seed, 1))
	victims := []string{"polku", "ahti", "source"}
	faults := []fault{fillPolku, fillAHTI, freezeAHTI, loseNetwork}
	if s.nats {
		victims = append(victims, "nats")
		faults = faults[1:] // the log is not on polku's disk
	}
	if s.postgres {
		victims = append(victims, "postgres")
	}
	short, spread := 300*time.Millisecond, 500*time.Millisecond
	if s.events >= longRun {
		short, spread = 2*time.Second, 6*time.Second
	}
	var steps []step
	for i := range s.kills {
		steps = append(steps, step{fault: kill, victim: victims[i%len(victims)], pause: rand500(random)})
	}
	for _, f := range faults {
		for i := range max(1, s.kills/faultEvery) {
			one := step{fault: f, hold: short + time.Duration(random.Int64N(int64(spread))), pause: rand500(random)}
			if f == freezeAHTI && i == 0 && s.events >= longRun {
				one.hold = longFreeze
			}
			if random.IntN(2) == 0 {
				one.victim = victims[random.IntN(2)]
			}
			steps = append(steps, one)
		}
	}
	random.Shuffle(len(steps), func(i, j int) { steps[i], steps[j] = steps[j], steps[i] })
	for i := range steps {
		share := first + (last-first)*(float64(i)+random.Float64())/float64(len(steps))
		steps[i].at = int(share * float64(s.events))
	}
	return steps
}

func rand500(random *rand.Rand) time.Duration {
	return time.Duration(random.IntN(500)) * time.Millisecond
}

// play lets the steps happen. Sources may go as far as the next step while one
// is on, so that each meets events on their way.
func (c *chain) play(steps []step) {
	random := rand.New(rand.NewPCG(c.settings.seed, 2))
	c.openGate(steps[0].at)
	for i, s := range steps {
		next := c.settings.events
		if i+1 < len(steps) {
			next = steps[i+1].at
		}
		if s.fault == kill {
			c.openGate(next)
		}
		c.await(fmt.Sprintf("%d events are acked", s.at), func() bool { return c.acked() >= s.at })
		if s.fault == kill {
			c.kill(s, random)
			continue
		}
		c.tell("%s, for %s after it is noticed", s.fault, s.hold.Round(time.Millisecond))
		c.suffer(s, func() { c.openGate(next) }, random)
		c.tell("%s is over", s.fault)
	}
	c.openGate(c.settings.events)
}

// kill kills the victim of a step.
func (c *chain) kill(s step, random *rand.Rand) {
	var victim *process
	switch s.victim {
	case "polku":
		victim = c.polku
	case "ahti":
		victim = c.ahti
	case "source":
		victim = c.sources[random.IntN(len(c.sources))]
	case "nats":
		victim = c.nodes[random.IntN(len(c.nodes))]
	case "postgres":
		victim = c.postgres
		// Without its database it may start in vain.
		c.ahti.excuse(true)
	}
	killed := victim.kill(s.pause)
	c.tell("kill %s%s, down for %s", victim.name, map[bool]string{false: ", which does not run"}[killed], s.pause)
	switch s.victim {
	case "nats": // the next one must not be a second one
		c.awaitReady(victim)
	case "postgres":
		c.awaitPostgres()
		c.awaitReady(c.ahti)
		c.ahti.excuse(false)
	}
}

// suffer lets a fault begin, last, and end. flow lets events come once it is on.
func (c *chain) suffer(s step, flow func(), random *rand.Rand) {
	hold := func() {
		time.Sleep(s.hold / 2)
		if s.victim != "" {
			c.kill(s, random)
		}
		time.Sleep(s.hold / 2)
	}
	switch s.fault {
	case fillPolku:
		c.full(s, c.polku, c.polkuDisk, flow, hold, func() bool {
			blocked, _ := c.polku.now("polku_log_blocked{reason=disk_full}")
			return blocked == 1
		})
	case fillAHTI:
		before := c.ahti.total("ahti_commits_failed_total")
		c.full(s, c.ahti, c.ahtiDisk, flow, hold, func() bool { return c.ahti.total("ahti_commits_failed_total") > before })
	case freezeAHTI:
		c.ahti.signal(syscall.SIGSTOP)
		flow()
		hold()
		c.ahti.signal(syscall.SIGCONT)
		c.noticed[s.fault]++
	case loseNetwork:
		require.NoError(c.t, setNetwork(false))
		flow()
		hold()
		require.NoError(c.t, setNetwork(true))
		c.noticed[s.fault]++
	}
	c.awaitReady(c.polku)
	c.awaitReady(c.ahti)
}

// full fills the disk of a process, which may end then, until it says so itself,
// and a while longer.
func (c *chain) full(s step, p *process, d disk, flow, hold func(), noticed func() bool) {
	p.excuse(true)
	c.noticed[s.fault] += 0 // it happened
	require.NoError(c.t, d.fill())
	flow()
	deadline := time.Now().Add(c.settings.noticeWithin)
	for !noticed() && time.Now().Before(deadline) {
		require.NoError(c.t, d.fill()) // what was given back meanwhile
		time.Sleep(20 * time.Millisecond)
	}
	if noticed() {
		c.noticed[s.fault]++
	}
	hold()
	require.NoError(c.t, d.free())
	c.awaitReady(p)
	p.excuse(false)
}

// kills counts the kills by victim.
func (c *chain) kills() map[string]int {
	count := map[string]int{}
	for _, p := range c.processes() {
		name := p.name
		if slices.Contains(c.sources, p) {
			name = "sources"
		} else if slices.Contains(c.nodes, p) {
			name = "nats"
		}
		count[name] += p.kills
	}
	return count
}
