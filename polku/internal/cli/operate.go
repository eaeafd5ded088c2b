package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	operatorv1 "github.com/yairfalse/tapio/proto/polku/operator/v1"
	"github.com/yairfalse/tapio/shared/config"
	"github.com/yairfalse/tapio/shared/event"
	"github.com/yairfalse/tapio/shared/humanoutput"
)

// answerTimeout is how long a gateway may take for a status.
const answerTimeout = 10 * time.Second

// operate makes a command that asks a running gateway.
func operate(environ []string, cmd *cobra.Command, run func(cmd *cobra.Command, args []string, gateway operatorv1.OperatorServiceClient) error) *cobra.Command {
	address := defaultOperator
	// As the gateway has it, so that commands work in its container as they are.
	for _, variable := range environ {
		if value, found := strings.CutPrefix(variable, prefix+"_OPERATOR_LISTEN="); found && value != "" {
			address = value
		}
	}
	cmd.Flags().StringVar(&address, "operator", address, "the gateway's --operator-listen")
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return fmt.Errorf("ask the gateway at %s: %w", address, err)
		}
		err = run(cmd, args, operatorv1.NewOperatorServiceClient(conn))
		if s, ok := status.FromError(err); ok && err != nil {
			err = fmt.Errorf("ask the gateway at %s: %s: is it running there? (--operator)", address, s.Message())
			if s.Code() != codes.Unavailable {
				err = errors.New(s.Message())
			}
		}
		return errors.Join(err, conn.Close())
	}
	return cmd
}

func newStatus(environ []string) *cobra.Command {
	var output string
	cmd := operate(environ, &cobra.Command{
		Use:   "status",
		Short: "Tell how the log and the routes of a running gateway stand",
		Long: `status tells how the log and the routes of a running gateway stand. It exits
with 1 when the gateway does not answer or takes no events.`,
		Args: cobra.NoArgs,
	}, func(cmd *cobra.Command, _ []string, gateway operatorv1.OperatorServiceClient) error {
		if err := config.OneOf("output", output, "text", "json"); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), answerTimeout)
		defer cancel()
		s, err := gateway.Status(ctx, &operatorv1.StatusRequest{})
		if err != nil {
			return err
		}
		if output == "json" {
			err = writeJSON(cmd.OutOrStdout(), s)
		} else {
			err = writeStatus(cmd.OutOrStdout(), s, time.Now())
		}
		if err == nil && s.GetLog().GetBlocked() != "" {
			err = fmt.Errorf("events are not taken: %s", s.GetLog().GetBlocked())
		}
		return err
	})
	cmd.Flags().StringVar(&output, "output", "text", "text or json")
	return cmd
}

// writeStatus writes a status for people.
func writeStatus(w io.Writer, s *operatorv1.StatusResponse, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	l := s.GetLog()
	fmt.Fprintf(t, "polku\t%s, up %s, %d streams\n", s.GetVersion(), humanoutput.Duration(now.Sub(s.GetStartedAt().AsTime())), s.GetStreams())
	fmt.Fprintf(t, "log\t%s of %s, %d messages", humanoutput.Bytes(float64(l.GetBytes())), humanoutput.Bytes(float64(l.GetMaxBytes())), l.GetMessages())
	if l.GetFirstTime() != nil {
		fmt.Fprintf(t, ", %s to %s", ago(l.GetFirstTime(), now), ago(l.GetLastTime(), now))
	}
	fmt.Fprintln(t)
	if l.DiskFreeBytes != nil {
		fmt.Fprintf(t, "disk\t%s free\n", humanoutput.Bytes(float64(l.GetDiskFreeBytes())))
	}
	if l.GetBlocked() != "" {
		fmt.Fprintf(t, "blocked\t%s\n", l.GetBlocked())
	}
	fmt.Fprintf(t, "dead letters\t%d\n", l.GetDeadLetters())
	for _, r := range s.GetRoutes() {
		fmt.Fprintf(t, "route %s\t%s\n", r.GetName(), routeState(r, now))
	}
	if len(s.GetRoutes()) == 0 {
		fmt.Fprintln(t, "routes\tnone: events go undelivered when they are older than --log-retention or the log needs their room")
	}
	return t.Flush()
}

func routeState(r *operatorv1.RouteStatus, now time.Time) string {
	text := "delivered everything"
	if n := r.GetLagMessages(); n > 0 {
		text = fmt.Sprintf("%d messages behind", n)
		if r.GetOldestPendingAt() != nil {
			text += ", delivers what came " + ago(r.GetOldestPendingAt(), now)
		}
	}
	if r.GetError() != "" {
		text += fmt.Sprintf("; failed %s: %s", ago(r.GetFailedAt(), now), r.GetError())
	}
	return text
}

func ago(t *timestamppb.Timestamp, now time.Time) string {
	return humanoutput.Duration(max(now.Sub(t.AsTime()), 0)) + " ago"
}

func writeJSON(w io.Writer, m proto.Message) error {
	text, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true, Multiline: true}.Marshal(m)
	if err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	_, err = fmt.Fprintf(w, "%s\n", text)
	return err
}

func newTail(environ []string) *cobra.Command {
	var kinds, sources []string
	var least, output string
	cmd := operate(environ, &cobra.Command{
		Use:   "tail",
		Short: "Print events as they reach the log of a running gateway",
		Example: `  polku tail --kind network. --severity error
  polku tail --output json | jq .event_type`,
		Args: cobra.NoArgs,
	}, func(cmd *cobra.Command, _ []string, gateway operatorv1.OperatorServiceClient) error {
		minimum, err := severity("severity", least)
		if err := errors.Join(err, config.OneOf("output", output, "text", "json")); err != nil {
			return err
		}
		stream, err := gateway.Tail(cmd.Context(), &operatorv1.TailRequest{Kinds: kinds, Sources: sources, MinSeverity: minimum})
		if err != nil {
			return err
		}
		write := eventWriter(cmd.OutOrStdout(), output, environ)
		for {
			next, err := stream.Recv()
			if ended(cmd.Context(), err) {
				return nil
			}
			if err != nil {
				return err
			}
			if err := write(next.GetEvent(), ""); err != nil {
				return err
			}
		}
	})
	f := cmd.Flags()
	f.StringSliceVar(&kinds, "kind", nil, "only events of this type, or of all that begin so if it ends with a dot")
	f.StringSliceVar(&sources, "source", nil, "only events of this source")
	f.StringVar(&least, "severity", "", "only events that are at least so severe: debug, info, warning, error or critical")
	f.StringVar(&output, "output", "text", "text or json")
	return cmd
}

// ended reports whether a stream ended as it should: the source has no more, or
// the user has had enough.
func ended(ctx context.Context, err error) bool {
	return errors.Is(err, io.EOF) || err != nil && ctx.Err() != nil
}

// eventWriter writes events, one a line, each with a remark that may be empty.
func eventWriter(w io.Writer, output string, environ []string) func(e *eventv1.Event, remark string) error {
	style := humanoutput.Style{Color: humanoutput.WantsColor(w, environ), Zone: time.Local}
	var line []byte
	return func(e *eventv1.Event, remark string) (err error) {
		if output == "json" {
			if line, err = event.AppendJSON(line[:0], e); err != nil {
				return err
			}
		} else {
			line = append(line[:0], style.Line(e)...)
			if remark != "" {
				line = append(append(line, "  "...), remark...)
			}
		}
		line = append(line, '\n')
		_, err = w.Write(line)
		return err
	}
}

func newReplay(environ []string) *cobra.Command {
	var from, to string
	cmd := operate(environ, &cobra.Command{
		Use:   "replay --from TIME [--to TIME] ROUTE",
		Short: "Deliver a span of the log to a route again",
		Long: `replay delivers again what the log took in a span of time, in its order. New
events go on to the route beside it, and the route stays where it is. It exits
with 1 unless everything was delivered; events that the destination refuses go
to the dead letters.

A time is in RFC 3339, such as 2026-03-04T05:06:07Z, or a duration before now,
such as -90m.`,
		Example: `  polku replay --from -1h ahti`,
		Args:    cobra.ExactArgs(1),
	}, func(cmd *cobra.Command, args []string, gateway operatorv1.OperatorServiceClient) error {
		request := &operatorv1.ReplayRequest{Route: args[0]}
		var err error
		now := time.Now()
		if request.From, err = when("from", from, now); err != nil {
			return err
		}
		if to != "" {
			if request.To, err = when("to", to, now); err != nil {
				return err
			}
		}
		stream, err := gateway.Replay(cmd.Context(), request)
		if err != nil {
			return err
		}
		var last *operatorv1.ReplayResponse
		for {
			next, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil && last != nil {
				return fmt.Errorf("stopped after %d events: %s", last.GetEvents(), status.Convert(err).Message())
			}
			if err != nil {
				return err
			}
			last = next
			switch {
			case last.GetError() != "":
				fmt.Fprintf(cmd.ErrOrStderr(), "%d events, trying again: %s\n", last.GetEvents(), last.GetError())
			case last.GetThrough() != nil:
				fmt.Fprintf(cmd.ErrOrStderr(), "%d events, through %s\n", last.GetEvents(), last.GetThrough().AsTime().Local().Format(time.RFC3339))
			}
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%d events delivered to %s again\n", last.GetEvents(), args[0])
		return nil
	})
	f := cmd.Flags()
	f.StringVar(&from, "from", "", "first time at which an event was stored")
	f.StringVar(&to, "to", "", "time from which on events are not delivered again; empty for now")
	if err := cmd.MarkFlagRequired("from"); err != nil {
		panic(err) // the flag is defined above
	}
	return cmd
}

// when reads a time, or a duration before now.
func when(flag, text string, now time.Time) (*timestamppb.Timestamp, error) {
	if d, err := time.ParseDuration(text); err == nil && d <= 0 {
		return timestamppb.New(now.Add(d)), nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return nil, fmt.Errorf("--%s: %q is neither a time such as 2026-03-04T05:06:07Z nor a duration before now such as -90m", flag, text)
	}
	return timestamppb.New(t), nil
}

func newDeadLetters(environ []string) *cobra.Command {
	var route, output string
	var limit int32
	cmd := operate(environ, &cobra.Command{
		Use:   "dead-letters",
		Short: "Print the events that destinations refused for good",
		Args:  cobra.NoArgs,
	}, func(cmd *cobra.Command, _ []string, gateway operatorv1.OperatorServiceClient) error {
		if err := config.OneOf("output", output, "text", "json"); err != nil {
			return err
		}
		stream, err := gateway.ListDeadLetters(cmd.Context(), &operatorv1.ListDeadLettersRequest{Route: route, Limit: limit})
		if err != nil {
			return err
		}
		write := eventWriter(cmd.OutOrStdout(), output, environ)
		for {
			next, err := stream.Recv()
			if ended(cmd.Context(), err) {
				return nil
			}
			if err != nil {
				return err
			}
			if err := write(next.GetEvent(), fmt.Sprintf("(%s: %q)", next.GetRoute(), next.GetReason())); err != nil {
				return err
			}
		}
	})
	f := cmd.Flags()
	f.StringVar(&route, "route", "", "only those of this route")
	f.Int32Var(&limit, "limit", 100, "the most to print")
	f.StringVar(&output, "output", "text", "text or json")
	return cmd
}
