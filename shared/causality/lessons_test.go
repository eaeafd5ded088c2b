package causality_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What has never followed a change is not believed to follow from it.
func TestWhatNeverFollowedIsNotBelieved(t *testing.T) {
	e := newEngine(t)
	st := &story{}
	s := newShop()
	s.quietDay(st)
	at := time.Duration(0)
	for range 150 {
		st.change(at, s.api, "updated", "spec.replicas: 3 -> 2")
		at += 40 * time.Minute
	}
	for _, ev := range st.events {
		e.Apply(ev)
	}
	e.Learn(noon.Add(at + time.Hour))
	st.events = nil
	at += 2 * time.Hour
	st.change(at, s.api, "updated", "spec.replicas: 2 -> 3")
	st.exit(at+20*time.Second, s.apiContainer, "1")
	for _, ev := range st.events {
		e.Apply(ev)
	}
	in := e.Incidents(noon.Add(at + time.Minute))[0]
	require.Zero(t, in.GetConfidence(), in.GetSummary())
}

// Pods that end as they are told to teach nothing.
func TestLearnsNothingFromWhatIsOrdered(t *testing.T) {
	e := newEngine(t)
	st := &story{}
	s := newShop()
	s.quietDay(st)
	at := time.Duration(0)
	for i := range 150 { // an autoscaler scales down, again and again
		p := newThing(pod, "shop", fmt.Sprint("api-7d9-s", i)).ownedBy(s.apiSet).tie(runsOn, s.n1)
		c := newThing(container, "", fmt.Sprint("c", i)).ownedBy(p)
		c.containerName = "api"
		st.change(at, s.api, "updated", "spec.replicas: 3 -> 2")
		st.exit(at+5*time.Second, c, "143")
		st.change(at+6*time.Second, p, "deleted")
		at += 40 * time.Minute
	}
	for _, ev := range st.events {
		e.Apply(ev)
	}
	e.Learn(noon.Add(at + time.Hour))
	require.Zero(t, e.Lessons().Pairs["k8s.deployment.updated:replicas"]["container_failed"].Count)
	st.events = nil
	at += 2 * time.Hour
	st.change(at, s.api, "updated", "spec.replicas: 2 -> 3")
	st.exit(at+20*time.Second, s.apiContainer, "1")
	for _, ev := range st.events {
		e.Apply(ev)
	}
	found := e.Incidents(noon.Add(at + time.Minute))
	require.Len(t, found, 1)
	require.Zero(t, found[0].GetConfidence(), found[0].GetSummary())
}
