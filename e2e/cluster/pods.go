package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"
)

// pod is what the suite needs of one, as the API writes it.
type pod struct {
	Metadata struct {
		Name, Namespace, UID string
		Labels               map[string]string
	}
	Spec struct {
		NodeName    string
		HostNetwork bool
	}
	Status struct {
		PodIP                                                                string
		ContainerStatuses, InitContainerStatuses, EphemeralContainerStatuses []containerStatus
	}
}

type containerStatus struct {
	Name, ContainerID string
	RestartCount      int
	LastState         struct{ Terminated struct{ ContainerID string } }
	State             struct{ Terminated struct{ ContainerID string } }
}

// home is where a container runs.
type home struct {
	namespace, pod, uid, container, node string
}

// pods remembers every container that there ever was.
type pods struct {
	api string

	mu    sync.Mutex
	homes map[string]home // by the id of the container
}

func newPods(api string) *pods { return &pods{api: api, homes: map[string]home{}} }

// follow watches until ctx is done. A watch that ends begins anew with all that is
// there.
func (p *pods) follow(ctx context.Context) {
	for ctx.Err() == nil {
		if err := p.watch(ctx); err != nil && ctx.Err() == nil {
			say("the watch of the pods ended: %v", err)
		}
		pause(ctx, 100*time.Millisecond)
	}
}

func (p *pods) watch(ctx context.Context) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.api+"/api/v1/pods?watch=1", nil)
	if err != nil {
		return fmt.Errorf("watch pods: %w", err)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return fmt.Errorf("watch pods: %w", err)
	}
	defer answer.Body.Close() //nolint:errcheck // it is read as long as there is something
	for d := json.NewDecoder(answer.Body); ; {
		var change struct{ Object pod }
		if err := d.Decode(&change); err != nil {
			return fmt.Errorf("watch pods: %w", err)
		}
		p.note(&change.Object)
	}
}

func (p *pods) note(o *pod) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, list := range [][]containerStatus{o.Status.InitContainerStatuses, o.Status.ContainerStatuses, o.Status.EphemeralContainerStatuses} {
		for _, c := range list {
			for _, id := range []string{c.ContainerID, c.State.Terminated.ContainerID, c.LastState.Terminated.ContainerID} {
				// The API writes the runtime before the id: containerd://…
				if _, id, ok := strings.Cut(id, "://"); ok {
					p.homes[id] = home{o.Metadata.Namespace, o.Metadata.Name, o.Metadata.UID, c.Name, o.Spec.NodeName}
				}
			}
		}
	}
}

// home returns where a container runs or ran.
func (p *pods) home(id string) (home, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	h, ok := p.homes[id]
	return h, ok
}
