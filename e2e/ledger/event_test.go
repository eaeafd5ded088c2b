package ledger

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"strconv"
	"time"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
)

const (
	cluster = "ledger"
	// program is the source that events name, as the agent does.
	program = "tapio"
	// history is the time that the events of a run are spread over. It ends when
	// the run begins: nothing of it is in the future, or older than AHTI keeps. Of
	// a million events that is two or three a second.
	history = 5 * 24 * time.Hour
	// pods is how many pods of a node fail, and databases how many they cannot
	// reach: a few things fail again and again, as they do when something broke.
	pods, databases = 5, 3
)

// book is what one source has to deliver: the events 1 to Events, each of which
// follows from the rest and its number.
type book struct {
	Seed   uint64
	Source string    // name of the node
	Begin  time.Time // when the run began
	Events int
}

// id of event n. All ids of one source have the same length.
func (b book) id(n int) string { return fmt.Sprintf("%s-%08d", b.Source, n) }

// number is the inverse of id; 0 for an id of another source.
func (b book) number(id string) int {
	prefix := len(b.Source) + 1
	if len(id) != len(b.id(0)) || id[:prefix] != b.Source+"-" {
		return 0
	}
	n, err := strconv.Atoi(id[prefix:])
	if err != nil || n < 1 || n > b.Events {
		return 0
	}
	return n
}

func (b book) at(n int) time.Time {
	return b.Begin.Add(-history).Add(history / time.Duration(b.Events+1) * time.Duration(n))
}

// event makes event n.
func (b book) event(n int) *eventv1.Event {
	name := fnv.New64a()
	_, _ = name.Write([]byte(b.Source)) // never fails
	random := rand.New(rand.NewPCG(b.Seed^name.Sum64(), uint64(n)))
	pod := random.IntN(pods)
	uid := fmt.Sprintf("%08x-0000-4000-8000-%012x", uint32(name.Sum64()), pod)
	container := fmt.Sprintf("%032x%032x", name.Sum64(), pod)
	e := &eventv1.Event{
		Id: b.id(n), TimestampUnixNs: b.at(n).UnixNano(), Source: program,
		Severity: eventv1.Severity_SEVERITY_ERROR, Outcome: eventv1.Outcome_OUTCOME_FAILURE,
		Metadata: map[string]string{
			"k8s.cluster.name": cluster, "k8s.node.name": b.Source, "host.name": b.Source,
			"k8s.namespace.name": "shop", "k8s.pod.name": fmt.Sprintf("api-%d", pod), "k8s.pod.uid": uid,
			"k8s.container.name": "api", "container.id": container,
			"process.pid": strconv.Itoa(1000 + random.IntN(30000)), "process.executable.name": "api",
		},
	}
	switch random.IntN(4) {
	case 0:
		e.EventType = "container.exit_error"
		code := 1 + random.IntN(125)
		e.Metadata["process.exit.code"] = strconv.Itoa(code)
		e.Data = &eventv1.Event_Process{Process: &eventv1.ProcessEventData{Command: "api", ExitCode: int32(code)}}
	case 1:
		e.EventType, e.Severity = "container.oom_kill", eventv1.Severity_SEVERITY_CRITICAL
		e.Metadata["tapio.oom.constraint"] = "memcg"
		e.Metadata["tapio.oom.limit_bytes"] = strconv.Itoa(1 << (20 + random.IntN(10)))
		e.Data = &eventv1.Event_Kernel{Kernel: &eventv1.KernelEventData{EventType: "oom_kill", OomVictimComm: "api", Signal: 9}}
	default:
		peer := fmt.Sprintf("10.0.0.%d", 1+random.IntN(databases))
		port := uint32(30000 + random.IntN(20000))
		e.EventType = "network.connection_refused"
		for key, value := range map[string]string{
			"network.peer.address": peer, "network.peer.port": "5432", "network.transport": "tcp", "network.type": "ipv4",
			"network.local.address": "10.1.0.1", "network.local.port": strconv.Itoa(int(port)),
			"error.type": "ECONNREFUSED", "tapio.network.role": "client",
		} {
			e.Metadata[key] = value
		}
		e.Data = &eventv1.Event_Network{Network: &eventv1.NetworkEventData{
			Protocol: "tcp", SrcIp: "10.1.0.1", SrcPort: port, DstIp: peer, DstPort: 5432, ProcessName: "api",
		}}
	}
	return e
}
