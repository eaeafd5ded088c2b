package pods

import (
	"context"
	"encoding/json"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"golang.org/x/time/rate"

	"github.com/yairfalse/tapio/shared/event"
)

const (
	// Requests a second that one node may cause beside its watch, and how many at
	// once: few events need one, and a thousand nodes ask the same server.
	requestRate  = 5
	requestBurst = 10
	// requestWithin is how long one may take.
	requestWithin = time.Second
	// maxWaiting bounds the questions that wait for their turn.
	maxWaiting = 256
	// maxAnswers bounds the answers that are kept.
	maxAnswers = 4096
	// How long an answer holds: a pod's address may change hands, a Service's
	// seldom does, a Job never.
	podHolds     = 10 * time.Second
	serviceHolds = 30 * time.Second
	nobodyHolds  = 10 * time.Second
	publicHolds  = 5 * time.Minute // nobody's, and one that few clusters give to pods
	failureHolds = 5 * time.Second
	jobHolds     = 10 * time.Minute
)

// question is what is asked of the API server: whose an address is, or who made
// a Job.
type question struct {
	address netip.Addr // the zero value for a Job
	dialed  bool       // somebody connects to it, so it may be a Service
	// The Job.
	namespace, name, uid string
}

// answer is what it said.
type answer struct {
	found   bool
	kind    string // of the peer
	object  reference
	space   string
	owner   reference // of a pod; the answer itself for a Job
	until   time.Time
	outcome outcome
}

// outcome says how a question ended.
type outcome string

const (
	answered outcome = "found"
	nobody   outcome = "nobody" // the API server knows none
	failed   outcome = "error"
	limited  outcome = "limited" // too many questions: not asked
	late     outcome = "late"    // nobody waits for the answer any more: not asked
)

// resolver asks the API server what the watch of the own node does not tell,
// seldom and one after the other, and keeps the answers.
type resolver struct {
	client  *rest.RESTClient
	limiter *rate.Limiter
	now     func() time.Time
	done    func() // called after each answer

	questions chan question
	mu        sync.Mutex
	answers   map[question]answer
	asked     map[question]time.Time // waiting for their turn
	counts    map[outcome]uint64
	requests  uint64
}

func newResolver(client *rest.RESTClient, done func()) *resolver {
	return &resolver{
		client: client, limiter: rate.NewLimiter(requestRate, requestBurst), now: time.Now, done: done,
		questions: make(chan question, maxWaiting),
		answers:   map[question]answer{}, asked: map[question]time.Time{}, counts: map[outcome]uint64{},
	}
}

// ask returns the answer if there is one; else it will come, and done be called.
func (r *resolver) ask(q question) (answer, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if a, ok := r.answers[q]; ok && r.now().Before(a.until) {
		return a, true
	}
	if _, waits := r.asked[q]; waits {
		return answer{}, false
	}
	select {
	case r.questions <- q:
		r.asked[q] = r.now()
		return answer{}, false
	default:
		r.counts[limited]++
		return answer{outcome: limited}, true
	}
}

// run answers until ctx is done.
func (r *resolver) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case q := <-r.questions:
			if r.isLate(q) {
				continue
			}
			a := r.resolve(ctx, q)
			r.mu.Lock()
			delete(r.asked, q)
			r.makeRoom()
			r.answers[q] = a
			r.counts[a.outcome]++
			r.mu.Unlock()
			r.done()
		}
	}
}

// isLate drops a question that has waited for longer than any event does: behind
// a flood of addresses the new ones would come too late as well.
func (r *resolver) isLate(q question) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.now().Sub(r.asked[q]) < holdFor {
		return false
	}
	delete(r.asked, q)
	r.counts[late]++
	return true
}

// makeRoom drops what no longer holds, or everything. It needs mu.
func (r *resolver) makeRoom() {
	if len(r.answers) < maxAnswers {
		return
	}
	now := r.now()
	for q, a := range r.answers {
		if !now.Before(a.until) {
			delete(r.answers, q)
		}
	}
	if len(r.answers) >= maxAnswers {
		clear(r.answers)
	}
}

func (r *resolver) resolve(ctx context.Context, q question) answer {
	var a answer
	var err error
	holds := serviceHolds
	switch {
	case !q.address.IsValid():
		a, err = r.job(ctx, q)
		holds = jobHolds
	default:
		if q.dialed {
			a, err = r.service(ctx, q.address)
		}
		if err == nil && !a.found {
			a, err = r.pod(ctx, q.address)
			holds = podHolds
		}
	}
	switch {
	case err != nil:
		a, holds = answer{outcome: failed}, failureHolds
	case !a.found:
		a, holds = answer{outcome: nobody}, nobodyHolds
		if q.address.IsValid() && isPublic(q.address) {
			holds = publicHolds
		}
	default:
		a.outcome = answered
	}
	a.until = r.now().Add(holds)
	return a
}

// isPublic says whether an address is one of the internet: of those
// the API server, which has to look through all pods, is asked seldom.
func isPublic(ip netip.Addr) bool {
	// Some clouds give addresses that providers share (RFC 6598) to pods.
	return ip.IsGlobalUnicast() && !ip.IsPrivate() && !netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64}), 10).Contains(ip)
}

// metadata asks for objects without anything but their metadata.
func (r *resolver) metadata(ctx context.Context, kind, path, selector string, into any) error {
	return r.request(ctx, func(ctx context.Context) error {
		request := r.client.Get().AbsPath(path).
			SetHeader("Accept", "application/json;as="+kind+";g=meta.k8s.io;v=v1")
		if selector != "" {
			// Version 0 is what the API server has in memory: etcd is not asked.
			request = request.Param("fieldSelector", selector).Param("resourceVersion", "0")
		}
		text, err := request.DoRaw(ctx)
		if err != nil {
			return err
		}
		return json.Unmarshal(text, into)
	})
}

func (r *resolver) request(ctx context.Context, do func(context.Context) error) error {
	if err := r.limiter.Wait(ctx); err != nil {
		return err
	}
	r.mu.Lock()
	r.requests++
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, requestWithin)
	defer cancel()
	return do(ctx)
}

func (r *resolver) service(ctx context.Context, ip netip.Addr) (answer, error) {
	var all metav1.PartialObjectMetadataList
	err := r.metadata(ctx, "PartialObjectMetadataList", "/api/v1/services", "spec.clusterIP="+ip.String(), &all)
	if err != nil || len(all.Items) == 0 {
		return answer{}, err
	}
	s := &all.Items[0]
	return answer{
		found: true, kind: event.PeerService, space: s.Namespace,
		object: reference{kind: event.PeerService, name: s.Name, uid: string(s.UID)},
	}, nil
}

func (r *resolver) pod(ctx context.Context, ip netip.Addr) (answer, error) {
	var all corev1.PodList
	err := r.request(ctx, func(ctx context.Context) error {
		return r.client.Get().Resource("pods").
			Param("fieldSelector", "status.podIP="+ip.String()).Param("resourceVersion", "0").Do(ctx).Into(&all)
	})
	if err != nil {
		return answer{}, err
	}
	var found *Pod
	for i := range all.Items {
		if p := newPod(&all.Items[i]); found == nil || p.hasSince(found) {
			found = p
		}
	}
	if found == nil || hasLeft(r.now(), found.ended) {
		return answer{}, nil
	}
	if found.HostNetwork {
		// The address is that of a node, and nobody knows which of its pods.
		return answer{
			found: true, kind: event.PeerNode,
			object: reference{kind: event.PeerNode, name: found.Node},
		}, nil
	}
	return peerPod(found), nil
}

// hasSince says whether of two pods with the same address this one has it: one
// that runs rather than one that has ended, and the one that came later.
func (k *Pod) hasSince(other *Pod) bool {
	if k.ended.IsZero() != other.ended.IsZero() {
		return k.ended.IsZero()
	}
	return k.started.After(other.started)
}

// lingers is for how long connects to the address of a pod that has ended are
// still connects to that pod: until everybody has heard. The address may be given
// to another one after that.
const lingers = 10 * time.Second

// hasLeft says whether a pod that left an address at a time, zero for never, has
// nothing to do any more with what happens there.
func hasLeft(happened, left time.Time) bool {
	return !left.IsZero() && happened.Sub(left) > lingers
}

// peerPod is the answer that an address is a pod's.
func peerPod(p *Pod) answer {
	return answer{
		found: true, kind: event.PeerPod, space: p.Namespace, outcome: answered,
		object: reference{kind: event.PeerPod, name: p.Name, uid: p.UID},
		owner:  p.workload,
	}
}

// job asks who made a Job.
func (r *resolver) job(ctx context.Context, q question) (answer, error) {
	var job metav1.PartialObjectMetadata
	err := r.metadata(ctx, "PartialObjectMetadata", "/apis/batch/v1/namespaces/"+q.namespace+"/jobs/"+q.name, "", &job)
	if apierrors.IsNotFound(err) {
		return answer{}, nil
	}
	controller := metav1.GetControllerOfNoCopy(&job)
	// One that was made again is another one.
	if err != nil || controller == nil || string(job.UID) != q.uid {
		return answer{}, err
	}
	return answer{found: true, owner: reference{kind: controller.Kind, name: controller.Name, uid: string(controller.UID)}}, nil
}
