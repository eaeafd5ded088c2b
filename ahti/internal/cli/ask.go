package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
	"github.com/yairfalse/tapio/shared/certs"
	"github.com/yairfalse/tapio/shared/config"
	"github.com/yairfalse/tapio/shared/humanoutput"
)

// maxAnswer is the largest answer that is read, bytes.
const maxAnswer = 64 << 20

// askPrefix keeps the variables of the questions apart from those of the server:
// AHTI_CLIENT_SERVER is --server.
const askPrefix = prefix + "_CLIENT"

// question are the flags of the commands that ask a running ahti.
type question struct {
	environ []string
	server  string
	output  string
	timeout time.Duration
	cluster string
	tls     certs.Files
}

// command adds the flags to a command and makes it ask.
func (q *question) command(cmd *cobra.Command, ask func(context.Context, ahtiv1.AhtiServiceClient, []string) error) *cobra.Command {
	f := cmd.Flags()
	f.StringVar(&q.server, "server", "127.0.0.1:50052", "address of the ahti to ask")
	f.StringVarP(&q.output, "output", "o", "text", "how to answer: text, or json for one object a line")
	f.DurationVar(&q.timeout, "timeout", 30*time.Second, "how long to wait for the answer")
	f.StringVar(&q.cluster, "cluster", "", "which cluster, when ahti knows several")
	tlsFlags(f, &q.tls, "certificate to show (mutual TLS)", "authorities of the server's certificate; without any TLS flag the connection is not encrypted")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := config.Load(f, askPrefix, q.environ, nil); err != nil {
			return err
		}
		if q.output != "text" && q.output != "json" {
			return fmt.Errorf("--output: %q is none of text, json", q.output)
		}
		transport := insecure.NewCredentials()
		if !q.tls.Empty() {
			host, _, err := net.SplitHostPort(q.server)
			if err != nil {
				return fmt.Errorf("--server: %w; want HOST:PORT", err)
			}
			c, err := q.tls.Client(host)
			if err != nil {
				return err
			}
			transport = credentials.NewTLS(c)
		}
		connection, err := grpc.NewClient(q.server, grpc.WithTransportCredentials(transport),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)))
		if err != nil {
			return fmt.Errorf("--server: %w", err)
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), q.timeout)
		defer cancel()
		err = ask(ctx, ahtiv1.NewAhtiServiceClient(connection), args)
		return errors.Join(q.problem(err), connection.Close())
	}
	return cmd
}

// problem says in words what a call failed with.
func (q *question) problem(err error) error {
	s, ok := status.FromError(err)
	switch {
	case err == nil:
		return nil
	case !ok:
		return err
	case s.Code() == codes.Unavailable || s.Code() == codes.DeadlineExceeded:
		return fmt.Errorf("ask %s: %s; set --server to the address of a running ahti", q.server, s.Message())
	}
	return errors.New(s.Message())
}

// print writes an answer: JSON, or what text makes of it.
func (q *question) print(cmd *cobra.Command, m proto.Message, text func() string) error {
	out := text
	if q.output == "json" {
		out = func() string {
			line, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
			if err != nil {
				return fmt.Sprintf(`{"error": %q}`, err)
			}
			return string(line) + "\n"
		}
	}
	if _, err := fmt.Fprint(cmd.OutOrStdout(), out()); err != nil {
		return fmt.Errorf("write the answer: %w", err)
	}
	return nil
}

func (q *question) style(cmd *cobra.Command) humanoutput.Style {
	return humanoutput.Style{Color: humanoutput.WantsColor(cmd.OutOrStdout(), q.environ), Zone: time.Local}
}

// ago is a time before now; not set when d is 0.
func ago(d time.Duration) *timestamppb.Timestamp {
	if d == 0 {
		return nil
	}
	return timestamppb.New(time.Now().Add(-d))
}

// instant is a flag that holds a time.
type instant struct{ at *timestamppb.Timestamp }

// String implements pflag.Value.
func (i *instant) String() string {
	if i.at == nil {
		return ""
	}
	return i.at.AsTime().Format(time.RFC3339)
}

// Type implements pflag.Value.
func (i *instant) Type() string { return "time" }

// Set implements pflag.Value.
func (i *instant) Set(text string) error {
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return fmt.Errorf("%.80q is no time: use the form 2026-03-01T12:30:00Z", text)
	}
	i.at = timestamppb.New(at)
	return nil
}

func newWhy(environ []string) *cobra.Command {
	q := question{environ: environ}
	var at instant
	var lookback time.Duration
	var event string
	cmd := &cobra.Command{
		Use:   "why [ENTITY]",
		Short: "Explain what is wrong with something",
		Long: `why explains what is wrong with a pod, a service, a node or anything else that
ahti knows: named as namespace/name, kind/namespace/name, by its id, or by its
name alone when one namespace has that name.`,
		Example: `  ahti why shop/api
  ahti why deployment/shop/api --at 2026-03-01T12:30:00Z
  ahti why --event 01JNF0R4W0000000000000000`,
		Args:          cobra.MaximumNArgs(1),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	cmd.Flags().Var(&at, "at", "up to when to look; now when it is not set")
	cmd.Flags().DurationVar(&lookback, "lookback", time.Hour, "how far to look back from there")
	cmd.Flags().StringVar(&event, "event", "", "explain this event, by its id, instead of an entity")
	return q.command(cmd, func(ctx context.Context, client ahtiv1.AhtiServiceClient, args []string) error {
		request := &ahtiv1.WhyRequest{Cluster: q.cluster, At: at.at, LookbackSeconds: int64(lookback / time.Second), EventId: event}
		if len(args) == 1 {
			request.Entity = args[0]
		}
		if (request.GetEntity() == "") == (event == "") {
			return errors.New("name one thing to explain: ENTITY or --event")
		}
		response, err := client.Why(ctx, request)
		if err != nil {
			return err
		}
		return q.print(cmd, response, func() string {
			if len(response.GetIncidents()) == 0 {
				return humanoutput.Clean(response.GetAnswer()) + "\n"
			}
			return stories(q.style(cmd), response.GetIncidents())
		})
	})
}

// stories are incidents in full, an empty line between them.
func stories(style humanoutput.Style, incidents []*ahtiv1.Incident) string {
	texts := make([]string, len(incidents))
	for i, incident := range incidents {
		texts[i] = style.Incident(incident)
	}
	return strings.Join(texts, "\n")
}

func newIncidents(environ []string) *cobra.Command {
	q := question{environ: environ}
	var since time.Duration
	var namespace string
	var all bool
	var most int32
	cmd := &cobra.Command{
		Use:           "incidents [ID]",
		Short:         "List incidents, the newest first, or tell one in full",
		Args:          cobra.MaximumNArgs(1),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	cmd.Flags().DurationVar(&since, "since", 24*time.Hour, "only those seen within this time; 0 for all")
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "only those that touch this namespace")
	cmd.Flags().BoolVarP(&all, "all", "a", false, "those that are over, too")
	cmd.Flags().Int32Var(&most, "limit", 50, "how many at most")
	return q.command(cmd, func(ctx context.Context, client ahtiv1.AhtiServiceClient, args []string) error {
		if len(args) == 1 {
			response, err := client.GetIncident(ctx, &ahtiv1.GetIncidentRequest{Id: args[0]})
			if err != nil {
				return err
			}
			return q.print(cmd, response.GetIncident(), func() string { return q.style(cmd).Incident(response.GetIncident()) })
		}
		request := &ahtiv1.ListIncidentsRequest{Since: ago(since), Cluster: q.cluster, Namespace: namespace, PageSize: most}
		if !all {
			request.State = ahtiv1.IncidentState_INCIDENT_STATE_OPEN
		}
		response, err := client.ListIncidents(ctx, request)
		if err != nil {
			return err
		}
		return q.print(cmd, response, func() string {
			if len(response.GetIncidents()) == 0 {
				if all {
					return "No incidents.\n"
				}
				return "No open incidents. --all lists those that are over.\n"
			}
			text := q.style(cmd).Incidents(response.GetIncidents())
			if response.GetNextPageToken() != "" {
				text += "There are more: --limit shows more of them.\n"
			}
			return text
		})
	})
}

func newTimeline(environ []string) *cobra.Command {
	q := question{environ: environ}
	var since time.Duration
	var until instant
	var most int32
	cmd := &cobra.Command{
		Use:           "timeline [ENTITY]",
		Short:         "List events, the oldest first, of one thing or of all",
		Args:          cobra.MaximumNArgs(1),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	cmd.Flags().DurationVar(&since, "since", time.Hour, "how far to go back")
	cmd.Flags().Var(&until, "until", "up to when; now when it is not set")
	cmd.Flags().Int32Var(&most, "limit", 1000, "how many at most")
	return q.command(cmd, func(ctx context.Context, client ahtiv1.AhtiServiceClient, args []string) error {
		request := &ahtiv1.TimelineRequest{Cluster: q.cluster, Until: until.at, Since: ago(since), PageSize: most}
		if until.at != nil {
			request.Since = timestamppb.New(until.at.AsTime().Add(-since))
		}
		if len(args) == 1 {
			request.Entity = args[0]
		}
		for left := most; left > 0; {
			request.PageSize = left
			response, err := client.Timeline(ctx, request)
			if err != nil {
				return err
			}
			for _, e := range response.GetEvents() {
				if err := q.print(cmd, e, func() string { return q.style(cmd).StoredLine(e) + "\n" }); err != nil {
					return err
				}
			}
			left -= int32(len(response.GetEvents()))
			if request.PageToken = response.GetNextPageToken(); request.PageToken == "" {
				break
			}
		}
		return nil
	})
}
