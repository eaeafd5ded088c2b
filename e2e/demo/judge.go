package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/timestamppb"

	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
)

// perAttempt is how long one kill has to be explained.
const perAttempt = 20 * time.Second

// judge asks AHTI until it tells what happened.
type judge struct {
	conn   *grpc.ClientConn
	ahti   ahtiv1.AhtiServiceClient
	server string // control group of the server
}

func newJudge(address, server string) (*judge, error) {
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("ask AHTI: %w", err)
	}
	return &judge{conn: conn, ahti: ahtiv1.NewAhtiServiceClient(conn), server: server}, nil
}

func (j *judge) close() { _ = j.conn.Close() } // nothing is under way

// wait returns the id of the incident that explains what has happened since a
// time.
func (j *judge) wait(ctx context.Context, since time.Time) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, perAttempt)
	defer cancel()
	last := errors.New("AHTI knows of no incident")
	for {
		answer, err := j.ahti.ListIncidents(ctx, &ahtiv1.ListIncidentsRequest{Since: timestamppb.New(since)})
		if err != nil {
			last = fmt.Errorf("ask AHTI: %w", err)
		}
		for _, in := range answer.GetIncidents() {
			if last = j.right(in); last == nil {
				return in.GetId(), nil
			}
		}
		select {
		case <-ctx.Done():
			return "", last
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// right says what is wrong with an incident; nil when it blames the server's OOM
// kill for what the client suffers.
func (j *judge) right(in *ahtiv1.Incident) error {
	if !strings.HasSuffix(in.GetRoot().GetId(), "/"+j.server) {
		return fmt.Errorf("AHTI blames %s: %s", in.GetRoot().GetId(), in.GetSummary())
	}
	if len(in.GetChain()) == 0 || in.GetChain()[0].GetKind() != "container.oom_kill" {
		return fmt.Errorf("AHTI does not begin with the OOM kill: %s", in.GetSummary())
	}
	if !slices.ContainsFunc(in.GetSymptoms(), func(s *ahtiv1.Symptom) bool {
		return s.GetKind() == "network.connection_refused" && strings.Contains(s.GetEntity().GetId(), clientGroup)
	}) {
		return fmt.Errorf("AHTI does not tie the client's refused connections to it: %s", in.GetSummary())
	}
	return nil
}
