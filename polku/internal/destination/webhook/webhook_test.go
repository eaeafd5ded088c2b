package webhook_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/yairfalse/tapio/polku/internal/destination/webhook"
	"github.com/yairfalse/tapio/polku/internal/route"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/certs"
)

// request is what the server got.
type request struct {
	headers http.Header
	host    string
	path    string
	body    []byte
}

// ids are those of the events in a body of either format.
func (r request) ids(t *testing.T) []string {
	t.Helper()
	var ids []string
	var lines []json.RawMessage
	if r.headers.Get("Content-Type") == "application/json" {
		require.NoError(t, json.Unmarshal(r.body, &lines))
	} else {
		for line := range bytes.Lines(r.body) {
			lines = append(lines, line)
		}
	}
	for _, line := range lines {
		var e eventv1.Event
		require.NoError(t, protojson.Unmarshal(line, &e))
		ids = append(ids, e.GetId())
	}
	return ids
}

// receiver is a server that keeps what it gets and answers as it is told.
type receiver struct {
	*httptest.Server

	mu       sync.Mutex
	requests []request
}

func receive(t testing.TB, answer func(w http.ResponseWriter, n int, r request)) *receiver {
	s := &receiver{}
	s.Server = httptest.NewServer(s.handler(t, answer))
	t.Cleanup(s.Close)
	return s
}

func (s *receiver) handler(t testing.TB, answer func(w http.ResponseWriter, n int, r request)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		assert.NoError(t, err)
		assert.Equal(t, http.MethodPost, r.Method)
		got := request{headers: r.Header, host: r.Host, path: r.URL.Path, body: body}
		s.mu.Lock()
		s.requests = append(s.requests, got)
		n := len(s.requests)
		s.mu.Unlock()
		if answer != nil {
			answer(w, n, got)
		}
	}
}

func (s *receiver) received() []request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]request(nil), s.requests...)
}

func status(code int) func(http.ResponseWriter, int, request) {
	return func(w http.ResponseWriter, _ int, _ request) { w.WriteHeader(code) }
}

func open(t testing.TB, config webhook.Config) *webhook.Destination {
	if config.Registry == nil {
		config.Registry = prometheus.NewRegistry()
	}
	d, err := webhook.New(config)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, d.Close()) })
	return d
}

func events(n int) []*eventv1.Event {
	all := make([]*eventv1.Event, n)
	for i := range all {
		all[i] = &eventv1.Event{Id: strconv.Itoa(i), EventType: "agent.gap", Severity: eventv1.Severity_SEVERITY_WARNING}
	}
	return all
}

func assertRetried(t *testing.T, err error) {
	t.Helper()
	require.Error(t, err)
	var refused *route.Refused
	assert.NotErrorAs(t, err, &refused)
}

func TestPostsEvents(t *testing.T) {
	for format, contentType := range map[webhook.Format]string{
		"":                   "application/json",
		webhook.FormatJSON:   "application/json",
		webhook.FormatNDJSON: "application/x-ndjson",
	} {
		t.Run(string(format), func(t *testing.T) {
			s := receive(t, status(http.StatusAccepted))
			d := open(t, webhook.Config{
				URL: s.URL + "/in", Format: format,
				Headers: map[string]string{"Authorization": "Bearer x", "host": "events.example"},
			})
			require.NoError(t, d.Deliver(t.Context(), events(3)))
			require.Len(t, s.received(), 1)
			r := s.received()[0]
			assert.Equal(t, []string{"0", "1", "2"}, r.ids(t))
			assert.Contains(t, string(r.body), `"event_type":"agent.gap"`, "the names of the proto fields")
			assert.Equal(t, contentType, r.headers.Get("Content-Type"))
			assert.Equal(t, "Bearer x", r.headers.Get("Authorization"))
			assert.Equal(t, "polku", r.headers.Get("User-Agent"))
			assert.Equal(t, "events.example", r.host)
			assert.Equal(t, "/in", r.path)
			assert.Empty(t, r.headers.Get("Webhook-Signature"), "there is no secret")
		})
	}
}

func TestDeliversNothing(t *testing.T) {
	s := receive(t, nil)
	require.NoError(t, open(t, webhook.Config{URL: s.URL}).Deliver(t.Context(), nil))
	assert.Empty(t, s.received())
}

// The receiver must be able to tell who sent a request, and when.
func TestSignsAsStandardWebhooksDoes(t *testing.T) {
	secret := bytes.Repeat([]byte{7}, 32)
	for _, prefix := range []string{"", "whsec_"} {
		s := receive(t, nil)
		d := open(t, webhook.Config{URL: s.URL, Secret: prefix + base64.StdEncoding.EncodeToString(secret)})
		require.NoError(t, d.Deliver(t.Context(), events(2)))
		r := s.received()[0]
		seconds, err := strconv.ParseInt(r.headers.Get("Webhook-Timestamp"), 10, 64)
		require.NoError(t, err)
		assert.WithinDuration(t, time.Now(), time.Unix(seconds, 0), time.Minute)
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(r.headers.Get("Webhook-Id") + "." + r.headers.Get("Webhook-Timestamp") + "."))
		mac.Write(r.body)
		assert.Equal(t, "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)), r.headers.Get("Webhook-Signature"))
	}
}

func TestARepeatedRequestHasTheSameKey(t *testing.T) {
	s := receive(t, func(w http.ResponseWriter, n int, _ request) {
		if n == 1 {
			w.WriteHeader(http.StatusBadGateway)
		}
	})
	d := open(t, webhook.Config{URL: s.URL})
	assertRetried(t, d.Deliver(t.Context(), events(2)))
	require.NoError(t, d.Deliver(t.Context(), events(2)))
	require.NoError(t, d.Deliver(t.Context(), events(3)))
	var keys []string
	for _, r := range s.received() {
		keys = append(keys, r.headers.Get("Idempotency-Key"))
		assert.Equal(t, r.headers.Get("Webhook-Id"), r.headers.Get("Idempotency-Key"))
	}
	require.Len(t, keys, 3)
	assert.Equal(t, keys[0], keys[1])
	assert.NotEqual(t, keys[1], keys[2], "other events, another request")
}

func TestStatusDecides(t *testing.T) {
	for _, tt := range []struct {
		code    int
		retried bool
		refused bool
	}{
		{200, false, false},
		{204, false, false},
		{304, true, false},
		{400, false, true},
		{401, true, false},
		{404, true, false},
		{408, true, false},
		{410, true, false},
		{413, false, true},
		{415, false, true},
		{422, false, true},
		{425, true, false},
		{429, true, false},
		{500, true, false},
		{503, true, false},
		{599, true, false},
	} {
		t.Run(strconv.Itoa(tt.code), func(t *testing.T) {
			s := receive(t, func(w http.ResponseWriter, _ int, _ request) {
				w.WriteHeader(tt.code)
				if tt.code != 204 && tt.code != 304 {
					_, _ = io.WriteString(w, "because")
				}
			})
			err := open(t, webhook.Config{URL: s.URL}).Deliver(t.Context(), events(2))
			switch {
			case tt.retried:
				assertRetried(t, err)
				require.ErrorContains(t, err, strconv.Itoa(tt.code))
			case tt.refused:
				var refused *route.Refused
				require.ErrorAs(t, err, &refused)
				require.Len(t, refused.Events, 2)
				assert.Equal(t, 0, refused.Events[0].Index)
				assert.Equal(t, 1, refused.Events[1].Index)
				assert.Contains(t, refused.Events[0].Reason, strconv.Itoa(tt.code))
				assert.Contains(t, refused.Events[0].Reason, `"because"`)
			default:
				require.NoError(t, err)
			}
		})
	}
}

// One bad event must not take its neighbors to the dead letters.
func TestFindsTheEventThatTheServerHasSomethingAgainst(t *testing.T) {
	taken := map[string]bool{}
	s := receive(t, func(w http.ResponseWriter, _ int, r request) {
		ids := r.ids(t)
		for _, id := range ids {
			if id == "5" {
				http.Error(w, "no fives", http.StatusUnprocessableEntity)
				return
			}
		}
		for _, id := range ids {
			taken[id] = true
		}
	})
	err := open(t, webhook.Config{URL: s.URL}).Deliver(t.Context(), events(8))
	var refused *route.Refused
	require.ErrorAs(t, err, &refused)
	require.Len(t, refused.Events, 1)
	assert.Equal(t, 5, refused.Events[0].Index)
	assert.Contains(t, refused.Events[0].Reason, "no fives")
	assert.Len(t, taken, 7)
}

func TestSplitsLargeDeliveries(t *testing.T) {
	s := receive(t, func(w http.ResponseWriter, _ int, r request) {
		if len(r.body) > 600<<10 { // less than what the client thinks is allowed
			w.WriteHeader(http.StatusRequestEntityTooLarge)
		}
	})
	all := events(10)
	for _, e := range all {
		e.Source = strings.Repeat("x", 300<<10)
	}
	require.NoError(t, open(t, webhook.Config{URL: s.URL}).Deliver(t.Context(), all))
	var ids []string
	for _, r := range s.received() {
		assert.LessOrEqual(t, len(r.body), 1<<20)
		if len(r.body) <= 600<<10 {
			ids = append(ids, r.ids(t)...)
		}
	}
	assert.Equal(t, []string{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"}, ids)
}

func TestHoldsBackWhatIsNotSevereEnough(t *testing.T) {
	s := receive(t, nil)
	registry := prometheus.NewRegistry()
	d := open(t, webhook.Config{URL: s.URL, MinSeverity: eventv1.Severity_SEVERITY_WARNING, Registry: registry})
	all := events(4)
	all[0].Severity = eventv1.Severity_SEVERITY_UNSPECIFIED
	all[1].Severity = eventv1.Severity_SEVERITY_INFO
	all[3].Severity = eventv1.Severity_SEVERITY_CRITICAL
	require.NoError(t, d.Deliver(t.Context(), all))
	require.NoError(t, d.Deliver(t.Context(), all[:1]), "nothing is left to send")
	require.Len(t, s.received(), 1)
	assert.Equal(t, []string{"2", "3"}, s.received()[0].ids(t))
	require.NoError(t, testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP polku_webhook_events_held_back_total Events that were not sent because they are less severe than the webhook wants.
# TYPE polku_webhook_events_held_back_total counter
polku_webhook_events_held_back_total 3
# HELP polku_webhook_requests_total Requests that were answered, by status code.
# TYPE polku_webhook_requests_total counter
polku_webhook_requests_total{code="200"} 1
`), "polku_webhook_events_held_back_total", "polku_webhook_requests_total"))
}

func TestRefusesWhatJSONCannotHold(t *testing.T) {
	s := receive(t, nil)
	all := events(3)
	all[1].Source = "\xff"
	var refused *route.Refused
	require.ErrorAs(t, open(t, webhook.Config{URL: s.URL}).Deliver(t.Context(), all), &refused)
	require.Len(t, refused.Events, 1)
	assert.Equal(t, 1, refused.Events[0].Index)
	assert.Equal(t, []string{"0", "2"}, s.received()[0].ids(t))
}

// The next request waits as long as the server wants, or until the route stops.
func TestHonorsRetryAfter(t *testing.T) {
	for name, value := range map[string]string{
		"seconds": "3600",
		"date":    time.Now().Add(time.Hour).UTC().Format(http.TimeFormat),
	} {
		t.Run(name, func(t *testing.T) {
			s := receive(t, func(w http.ResponseWriter, _ int, _ request) {
				w.Header().Set("Retry-After", value)
				w.WriteHeader(http.StatusTooManyRequests)
			})
			d := open(t, webhook.Config{URL: s.URL})
			assertRetried(t, d.Deliver(t.Context(), events(1)))
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			require.ErrorIs(t, d.Deliver(ctx, events(1)), context.DeadlineExceeded)
			assert.Len(t, s.received(), 1, "the second delivery never asked")
		})
	}
	for name, value := range map[string]string{
		"none": "", "nonsense": "soon", "past": "Thu, 01 Jan 1970 00:00:00 GMT", "negative": "-5", "a second": "1",
	} {
		t.Run(name, func(t *testing.T) {
			s := receive(t, func(w http.ResponseWriter, n int, _ request) {
				if n == 1 {
					w.Header().Set("Retry-After", value)
					w.WriteHeader(http.StatusServiceUnavailable)
				}
			})
			d := open(t, webhook.Config{URL: s.URL})
			assertRetried(t, d.Deliver(t.Context(), events(1)))
			require.NoError(t, d.Deliver(t.Context(), events(1)))
		})
	}
}

// Events and credentials are for the server that was configured.
func TestRedirects(t *testing.T) {
	for _, tt := range []struct {
		name string
		code int
		same bool // to the same server
		ok   bool
	}{
		{"same server", http.StatusTemporaryRedirect, true, true},
		{"same server for good", http.StatusPermanentRedirect, true, true},
		{"other server", http.StatusTemporaryRedirect, false, false},
		{"POST becomes GET", http.StatusFound, true, false},
		{"POST becomes GET elsewhere", http.StatusSeeOther, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			other := receive(t, nil)
			s := receive(t, nil)
			s.Config.Handler = s.handler(t, func(w http.ResponseWriter, _ int, r request) {
				if r.path == "/moved" {
					return
				}
				to := other.URL
				if tt.same {
					to = s.URL + "/moved"
				}
				w.Header().Set("Location", to)
				w.WriteHeader(tt.code)
			})
			d := open(t, webhook.Config{URL: s.URL, Headers: map[string]string{"Authorization": "secret"}})
			err := d.Deliver(t.Context(), events(2))
			assert.Empty(t, other.received())
			if tt.ok {
				require.NoError(t, err)
				assert.Equal(t, []string{"0", "1"}, s.received()[1].ids(t), "the events went along")
				return
			}
			assertRetried(t, err)
			require.ErrorContains(t, err, "this redirect is not followed")
			assert.Len(t, s.received(), 1)
		})
	}
	t.Run("in circles", func(t *testing.T) {
		s := receive(t, func(w http.ResponseWriter, _ int, _ request) {
			w.Header().Set("Location", "/")
			w.WriteHeader(http.StatusTemporaryRedirect)
		})
		assertRetried(t, open(t, webhook.Config{URL: s.URL}).Deliver(t.Context(), events(1)))
		assert.Len(t, s.received(), 4)
	})
}

// An answer without end must not fill the memory or stop the route.
func TestEndlessAnswer(t *testing.T) {
	s := receive(t, func(w http.ResponseWriter, _ int, _ request) {
		w.WriteHeader(http.StatusBadRequest)
		for {
			if _, err := w.Write(bytes.Repeat([]byte("x"), 4096)); err != nil {
				return
			}
		}
	})
	err := open(t, webhook.Config{URL: s.URL}).Deliver(t.Context(), events(1))
	var refused *route.Refused
	require.ErrorAs(t, err, &refused)
	assert.Less(t, len(refused.Events[0].Reason), 300)
}

func TestHangingServerIsRetried(t *testing.T) {
	release := make(chan struct{})
	s := receive(t, func(http.ResponseWriter, int, request) { <-release })
	t.Cleanup(func() { close(release) })
	assertRetried(t, open(t, webhook.Config{URL: s.URL, Timeout: 50 * time.Millisecond}).Deliver(t.Context(), events(1)))
}

// Many a webhook has its secret in the path; errors end in logs.
func TestErrorsDoNotTellTheURL(t *testing.T) {
	s := receive(t, nil)
	url := s.URL
	s.Close()
	err := open(t, webhook.Config{URL: url + "/hooks/geheim?token=geheim"}).Deliver(t.Context(), events(1))
	assertRetried(t, err)
	assert.NotContains(t, err.Error(), "geheim")
	require.ErrorContains(t, err, strings.TrimPrefix(url, "http://"))

	_, err = webhook.New(webhook.Config{URL: "geheim://x", Registry: prometheus.NewRegistry()})
	require.Error(t, err)
	assert.NotContains(t, err.Error(), "geheim")
}

func TestTLS(t *testing.T) {
	s := &receiver{}
	s.Server = httptest.NewTLSServer(s.handler(t, nil))
	t.Cleanup(s.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600))
	require.NoError(t, open(t, webhook.Config{URL: s.URL, TLS: certs.Files{CA: ca}}).Deliver(t.Context(), events(1)))
	err := open(t, webhook.Config{URL: s.URL}).Deliver(t.Context(), events(1))
	assertRetried(t, err)
	require.ErrorContains(t, err, "certificate")
}

func TestRefusesBadConfiguration(t *testing.T) {
	const url = "http://127.0.0.1:1/"
	for _, tt := range []struct {
		name   string
		config webhook.Config
		want   string
	}{
		{"no URL", webhook.Config{}, "its URL is none"},
		{"no scheme", webhook.Config{URL: "example.com/x"}, "its URL is none"},
		{"other scheme", webhook.Config{URL: "file:///etc/passwd"}, "its URL is none"},
		{"no host", webhook.Config{URL: "https:///x"}, "its URL is none"},
		{"files for plaintext", webhook.Config{URL: url, TLS: certs.Files{CA: "ca.pem"}}, "write https://"},
		{"missing files", webhook.Config{URL: "https://127.0.0.1:1/", TLS: certs.Files{CA: "missing.pem"}}, "missing.pem"},
		{"format", webhook.Config{URL: url, Format: "xml"}, `format "xml" is not known`},
		{"header name", webhook.Config{URL: url, Headers: map[string]string{"a b": "c"}}, `header "a b"`},
		{"header value", webhook.Config{URL: url, Headers: map[string]string{"A": "b\r\nC: d"}}, `header "A"`},
		{"short secret", webhook.Config{URL: url, Secret: "aGFsbG8="}, "openssl rand -base64 32"},
		{"secret that is no base64", webhook.Config{URL: url, Secret: strings.Repeat("!", 32)}, "openssl rand -base64 32"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.config.Registry = prometheus.NewRegistry()
			_, err := webhook.New(tt.config)
			require.ErrorContains(t, err, tt.want)
		})
	}
}

// A route that is configured anew registers its metrics again.
func TestCloseGivesTheMetricsBack(t *testing.T) {
	registry := prometheus.NewRegistry()
	for range 2 {
		d, err := webhook.New(webhook.Config{URL: "http://127.0.0.1:1/", Registry: registry})
		require.NoError(t, err)
		_, err = webhook.New(webhook.Config{URL: "http://127.0.0.1:1/", Registry: registry})
		require.ErrorContains(t, err, "register metrics")
		count, err := testutil.GatherAndCount(registry, "polku_webhook_events_held_back_total")
		require.NoError(t, err)
		require.Equal(t, 1, count, "the first still has its own")
		require.NoError(t, d.Close())
	}
}

func BenchmarkDeliver(b *testing.B) {
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }))
	b.Cleanup(s.Close)
	d := open(b, webhook.Config{URL: s.URL})
	const n = 500
	all := events(n)
	b.ReportAllocs()
	for b.Loop() {
		if err := d.Deliver(b.Context(), all); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "events/s")
}
