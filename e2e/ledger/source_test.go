package ledger

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	polkuv1 "github.com/yairfalse/tapio/proto/polku/v1"
	"github.com/yairfalse/tapio/shared/polku"
)

// sourceOrder is what a source process is told, as JSON in the variable
// sourceVariable.
type sourceOrder struct {
	Book    book
	Gateway string
	Journal string // file of the ids that were acknowledged, a line each
	Gate    string // file of the number up to which events may be sent
}

// runSource is the life of a source: it goes on where the journal ends, and ends
// when all of its events are acknowledged.
func runSource(order sourceOrder) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	next, err := recoverJournal(order)
	if err != nil {
		return err
	}
	// An append of a process that is killed afterwards is not lost.
	journal, err := os.OpenFile(order.Journal, os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("open the journal: %w", err)
	}
	log.Info("begin", "event", next, "of", order.Book.Events)
	ctx, fail := context.WithCancelCause(context.Background())
	defer fail(nil)
	client, err := polku.New(polku.Config{
		Endpoint: order.Gateway, Source: program, Cluster: cluster, Log: log,
		Acked: func(events []*eventv1.Event) {
			var lines bytes.Buffer
			for _, e := range events {
				lines.WriteString(e.GetId() + "\n")
			}
			if _, err := journal.Write(lines.Bytes()); err != nil {
				fail(fmt.Errorf("write the journal: %w", err))
			}
		},
		Refused: func(e *eventv1.Event, why *polkuv1.AckError) {
			fail(fmt.Errorf("event %s was refused: %s: %s", e.GetId(), why.GetCode(), why.GetMessage()))
		},
	})
	if err != nil {
		return err
	}
	running := make(chan error, 1)
	go func() { running <- client.Run(ctx) }()
	err = send(ctx, client, order, next)
	if err == nil {
		err = client.Flush(ctx)
	}
	if lost := client.Lost(); err == nil && lost > 0 {
		err = fmt.Errorf("the client lost %d events", lost)
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	fail(nil)
	return errors.Join(err, <-running, journal.Close())
}

func send(ctx context.Context, client *polku.Client, order sourceOrder, next int) error {
	for open := 0; next <= order.Book.Events; next++ {
		for open < next {
			var err error
			if open, err = readGate(order.Gate); err != nil {
				return err
			}
			if open < next {
				select {
				case <-time.After(5 * time.Millisecond):
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
		if err := client.Send(ctx, order.Book.event(next)); err != nil {
			return err
		}
	}
	return nil
}

// recoverJournal returns the first number without an acknowledgment, and cuts
// off the line that a kill may have left unfinished.
func recoverJournal(order sourceOrder) (int, error) {
	acked, err := os.ReadFile(order.Journal)
	if errors.Is(err, fs.ErrNotExist) {
		return 1, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read the journal: %w", err)
	}
	whole := bytes.LastIndexByte(acked, '\n') + 1
	if err := os.Truncate(order.Journal, int64(whole)); err != nil {
		return 0, fmt.Errorf("repair the journal: %w", err)
	}
	seen := make([]bool, order.Book.Events+2)
	for id := range strings.Lines(string(acked[:whole])) {
		seen[order.Book.number(strings.TrimSuffix(id, "\n"))] = true
	}
	next := 1
	for seen[next] {
		next++
	}
	return next, nil
}

func readGate(path string) (int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("read how far to go: %w", err)
	}
	n, err := strconv.Atoi(string(text))
	if err != nil {
		return 0, fmt.Errorf("read how far to go: %w", err)
	}
	return n, nil
}

// sourceMain is the main function of a source process; it returns the exit
// status.
func sourceMain(order string) int {
	var o sourceOrder
	err := json.Unmarshal([]byte(order), &o)
	if err == nil {
		err = runSource(o)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "source: %v\n", err)
		return 1
	}
	return 0
}
