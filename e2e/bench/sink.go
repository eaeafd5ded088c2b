package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
)

// Methods that the servers deliver by.
const (
	ahtiIngest = "/ahti.v1.AhtiService/Ingest"
	logsExport = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"
)

// sink is where the servers deliver to. It says yes to everything and keeps
// nothing.
type sink struct {
	address   string
	request   int64        // events in a request of the collector
	delivered atomic.Int64 // events
	server    *grpc.Server
	holds     chan struct{} // closed when answers are to be given; nil for always
}

// newSink starts a sink. One that holds answers nobody until it stops.
func newSink(holds bool, request int) (*sink, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for what is delivered: %w", err)
	}
	s := &sink{address: listener.Addr().String(), request: int64(request)}
	if holds {
		s.holds = make(chan struct{})
	}
	const window = 4 << 20
	s.server = grpc.NewServer(grpc.ForceServerCodecV2(codec{}), grpc.UnknownServiceHandler(s.receive), grpc.MaxRecvMsgSize(16<<20),
		grpc.InitialWindowSize(window), grpc.InitialConnWindowSize(window))
	go func() { _ = s.server.Serve(listener) }() // it ends with stop
	return s, nil
}

func (s *sink) stop() {
	if s.holds != nil {
		close(s.holds)
	}
	s.server.Stop()
}

func (s *sink) receive(_ any, stream grpc.ServerStream) error {
	if s.holds != nil {
		select {
		case <-s.holds:
		case <-stream.Context().Done():
		}
		return stream.Context().Err()
	}
	switch method, _ := grpc.MethodFromServerStream(stream); method {
	case ahtiIngest:
		return s.ingest(stream)
	case logsExport:
		if err := stream.RecvMsg(&discarded{}); err != nil {
			return err
		}
		s.delivered.Add(s.request)
		return stream.SendMsg(message{})
	default:
		return fmt.Errorf("method %s is not served", method)
	}
}

// ingest answers each IngestRequest with the ids of its events.
func (s *sink) ingest(stream grpc.ServerStream) error {
	const requestEvents, eventID, responseIDs = 1, 1, 1
	var request message
	for {
		err := stream.RecvMsg(&request)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var response message
		var events int64
		err = eachField(request, requestEvents, func(event []byte) error {
			events++
			return eachField(event, eventID, func(id []byte) error {
				response = protowire.AppendTag(response, responseIDs, protowire.BytesType)
				response = protowire.AppendBytes(response, id)
				return nil
			})
		})
		if err != nil {
			return err
		}
		if err := stream.SendMsg(response); err != nil {
			return err
		}
		s.delivered.Add(events)
	}
}
