// Package webhook delivers events to any HTTP server.
//
// A request is a POST with a JSON array of events, or one event a line
// (application/x-ndjson). An event is protojson with the names of the proto
// fields. The headers are those of the Standard Webhooks specification, so that
// its libraries can check them:
//
//	webhook-id         names the events of the request. A repeated request has
//	                   the same one; Idempotency-Key has it too.
//	webhook-timestamp  when it was sent, seconds since the Unix epoch
//	webhook-signature  with a secret only: "v1," and the base64 of
//	                   HMAC-SHA256(secret, webhook-id.webhook-timestamp.body)
//
// Events may come more than once: the id of each is unique for ever.
package webhook

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/http/httpguts"

	"github.com/yairfalse/tapio/polku/internal/route"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/certs"
	"github.com/yairfalse/tapio/shared/event"
)

// Format says what the body of a request looks like.
type Format string

// The formats.
const (
	FormatJSON   Format = "json"   // an array
	FormatNDJSON Format = "ndjson" // one event a line
)

// DefaultTimeout is how long the server has for one request.
const DefaultTimeout = 30 * time.Second

const (
	// maxBody is the most that a request carries, bytes: what a widely used
	// proxy takes by default.
	maxBody = 1 << 20
	// maxDrained is how much of an answer is read so that the connection can be
	// used again, bytes. Nothing is lost with the rest.
	maxDrained = 64 << 10
	// maxExcerpt is how much of an answer an error quotes, bytes.
	maxExcerpt = 200
	// maxResponseHeader bounds the headers of an answer, bytes.
	maxResponseHeader = 64 << 10
	// maxRedirects is how many redirects are followed for one request.
	maxRedirects = 3
	// longestPause is the most that a server can ask for with Retry-After: a
	// mistaken date must not stop a route for days.
	longestPause = 5 * time.Minute
	// A secret of Standard Webhooks has 24 to 64 bytes.
	minSecret, maxSecret = 24, 64
)

// Config says where to and how. URL and Registry have no default.
type Config struct {
	// URL is where to post to, http:// or https://.
	URL string
	// Format is that of the body; empty is FormatJSON.
	Format Format
	// Headers are added to each request, such as Authorization.
	Headers map[string]string
	// Timeout is how long one request may take; 0 is DefaultTimeout.
	Timeout time.Duration
	// MinSeverity holds back events that are less severe; they count as
	// delivered. An event without a severity is SEVERITY_INFO.
	MinSeverity eventv1.Severity
	// Secret signs the requests: base64 of 24 to 64 bytes, with or without the
	// prefix "whsec_". Empty signs nothing.
	Secret string
	// TLS is for https://. Without a CA the authorities of the system count.
	TLS certs.Files
	// Registry takes the metrics. Destinations that share one need a label each,
	// as prometheus.WrapRegistererWith gives.
	Registry prometheus.Registerer
}

// Destination is a route.Destination. It is safe for concurrent use.
type Destination struct {
	config  Config
	url     *url.URL
	secret  []byte
	client  *http.Client
	idle    interface{ CloseIdleConnections() }
	metrics *metrics

	mu sync.Mutex
	// notBefore is when the server wants the next request.
	notBefore time.Time
}

var _ route.Destination = (*Destination)(nil)

// New checks the configuration. It opens no connection.
func New(config Config) (*Destination, error) {
	config.Format = cmp.Or(config.Format, FormatJSON)
	config.Timeout = cmp.Or(config.Timeout, DefaultTimeout)
	u, err := parseURL(config.URL)
	if err != nil {
		return nil, err
	}
	if config.Format != FormatJSON && config.Format != FormatNDJSON {
		return nil, fmt.Errorf("webhook %s: format %q is not known: use %s or %s", u.Host, config.Format, FormatJSON, FormatNDJSON)
	}
	for name, value := range config.Headers {
		if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) {
			return nil, fmt.Errorf("webhook %s: header %q has a name or a value that HTTP does not allow", u.Host, name)
		}
	}
	if u.Scheme == "http" && !config.TLS.Empty() {
		return nil, fmt.Errorf("webhook %s: its URL is plaintext, but certificate files are named: write https://, or name no files", u.Host)
	}
	secure, err := config.TLS.Client(u.Hostname())
	if err != nil {
		return nil, fmt.Errorf("webhook %s: %w", u.Host, err)
	}
	secret, err := decodeSecret(config.Secret)
	if err != nil {
		return nil, fmt.Errorf("webhook %s: %w", u.Host, err)
	}
	m, err := newMetrics(config.Registry)
	if err != nil {
		return nil, fmt.Errorf("webhook %s: %w", u.Host, err)
	}
	transport := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		TLSClientConfig:        secure,
		ForceAttemptHTTP2:      true,
		MaxResponseHeaderBytes: maxResponseHeader,
		IdleConnTimeout:        90 * time.Second, // less than servers keep one open
	}
	return &Destination{
		config: config,
		url:    u,
		secret: secret,
		idle:   transport,
		client: &http.Client{
			Transport:     m.instrument(transport),
			CheckRedirect: checkRedirect,
			Timeout:       config.Timeout,
		},
		metrics: m,
	}, nil
}

// parseURL does not repeat the URL in its errors: many a webhook has its secret
// in the path.
func parseURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" {
		return nil, errors.New("webhook: its URL is none: write http://HOST/PATH or https://HOST/PATH")
	}
	return u, nil
}

func decodeSecret(text string) ([]byte, error) {
	if text == "" {
		return nil, nil
	}
	secret, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(text, "whsec_"))
	if err != nil || len(secret) < minSecret || len(secret) > maxSecret {
		return nil, fmt.Errorf("the secret is not base64 of %d to %d bytes: make one with 'openssl rand -base64 32'", minSecret, maxSecret)
	}
	return secret, nil
}

// checkRedirect follows what still is the same request to the same server. A
// POST that became a GET has delivered nothing, whatever it answers, and the
// events and the headers are for the host that was configured.
func checkRedirect(next *http.Request, via []*http.Request) error {
	first := via[0]
	same := next.URL.Host == first.URL.Host && next.URL.Scheme == first.URL.Scheme
	if !same || next.Method != http.MethodPost || len(via) > maxRedirects {
		return http.ErrUseLastResponse
	}
	return nil
}

// Close closes the connections that are open.
func (d *Destination) Close() error {
	d.idle.CloseIdleConnections()
	unregister(d.config.Registry, d.metrics.all())
	return nil
}

// Deliver posts the events, in several requests when one would be too large. A
// server that answers 400, 413, 415 or 422 gets the halves, down to the event that
// it has something against. Everything else is tried again, not earlier than
// Retry-After says: a wrong token or path can be mended.
func (d *Destination) Deliver(ctx context.Context, events []*eventv1.Event) error {
	items, refused := d.encode(events)
	for len(items) > 0 {
		n := fits(items)
		more, err := d.deliver(ctx, items[:n])
		if err != nil {
			return fmt.Errorf("deliver %d events to the webhook of %s: %w", len(events), d.url.Host, err)
		}
		refused = append(refused, more...)
		items = items[n:]
	}
	if len(refused) == 0 {
		return nil
	}
	slices.SortFunc(refused, func(a, b route.Refusal) int { return cmp.Compare(a.Index, b.Index) })
	return &route.Refused{Events: refused}
}

// item is an event as JSON.
type item struct {
	index int
	id    string
	json  []byte
}

func (d *Destination) encode(events []*eventv1.Event) (items []item, refused []route.Refusal) {
	for i, e := range events {
		severity := cmp.Or(e.GetSeverity(), eventv1.Severity_SEVERITY_INFO)
		if severity < d.config.MinSeverity {
			d.metrics.heldBack.Inc()
			continue
		}
		line, err := event.AppendJSON(nil, e)
		if err != nil {
			refused = append(refused, route.Refusal{Index: i, Reason: err.Error()})
			continue
		}
		items = append(items, item{index: i, id: e.GetId(), json: line})
	}
	return items, refused
}

// fits returns how many of the items go into one request, at least one.
func fits(items []item) int {
	size := 1 // an array has one byte more than a separator for each
	for i, it := range items {
		size += len(it.json) + 1
		if size > maxBody && i > 0 {
			return i
		}
	}
	return len(items)
}

// deliver posts the items in one request, or in halves of it.
func (d *Destination) deliver(ctx context.Context, items []item) ([]route.Refusal, error) {
	a, err := d.post(ctx, items)
	if err != nil {
		return nil, err
	}
	switch {
	case a.code >= 200 && a.code <= 299:
		return nil, nil
	case a.code < 400:
		return nil, fmt.Errorf("%w: this redirect is not followed: set the URL that it leads to", a)
	case !aboutContent(a.code):
		// A wrong token or path is no fault of the events, and can be mended.
		d.pause(a.retryAfter)
		return nil, a
	case len(items) > 1:
		first, err := d.deliver(ctx, items[:len(items)/2])
		if err != nil {
			return nil, err
		}
		second, err := d.deliver(ctx, items[len(items)/2:])
		return append(first, second...), err
	}
	refused := make([]route.Refusal, len(items))
	for i, it := range items {
		refused[i] = route.Refusal{Index: it.index, Reason: a.Error()}
	}
	return refused, nil
}

// aboutContent says whether a status tells of the events that were sent; every
// other one is about how they were sent, or about the server.
func aboutContent(code int) bool {
	switch code {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity:
		return true
	default:
		return false
	}
}

// answer is what the server said to a request.
type answer struct {
	code       int
	excerpt    string
	retryAfter string
}

// Error says what the server answered.
func (a *answer) Error() string {
	text := "it answered " + strconv.Itoa(a.code)
	if name := http.StatusText(a.code); name != "" {
		text += " " + name
	}
	if a.excerpt != "" {
		text += fmt.Sprintf(": %.*q", maxExcerpt, a.excerpt)
	}
	return text
}

func (d *Destination) post(ctx context.Context, items []item) (*answer, error) {
	if err := d.wait(ctx); err != nil {
		return nil, err
	}
	body := d.body(items)
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, d.url.String(), bytes.NewReader(body))
	if err != nil {
		return nil, withoutURL(err)
	}
	for name, value := range d.config.Headers {
		request.Header.Set(name, value)
		if http.CanonicalHeaderKey(name) == "Host" {
			request.Host = value
		}
	}
	d.sign(request.Header, key(items), time.Now(), body)
	request.Header.Set("Content-Type", "application/json")
	if d.config.Format == FormatNDJSON {
		request.Header.Set("Content-Type", "application/x-ndjson")
	}
	if request.Header.Get("User-Agent") == "" {
		request.Header.Set("User-Agent", "polku")
	}
	response, err := d.client.Do(request)
	if err != nil {
		return nil, withoutURL(err)
	}
	defer func() { _ = response.Body.Close() }()
	// The status has decided. Of the rest only the beginning matters, and whether
	// the connection can be used again.
	excerpt, _ := io.ReadAll(io.LimitReader(response.Body, maxExcerpt))
	_, _ = io.CopyN(io.Discard, response.Body, maxDrained)
	return &answer{
		code:       response.StatusCode,
		excerpt:    strings.TrimSpace(string(excerpt)),
		retryAfter: response.Header.Get("Retry-After"),
	}, nil
}

// withoutURL returns what went wrong without the URL, which may hold a secret.
func withoutURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

func (d *Destination) body(items []item) []byte {
	separator := byte(',')
	if d.config.Format == FormatNDJSON {
		separator = '\n'
	}
	var body []byte
	for _, it := range items {
		body = append(append(body, it.json...), separator)
	}
	if d.config.Format == FormatNDJSON {
		return body
	}
	return slices.Concat([]byte("["), body[:len(body)-1], []byte("]"))
}

// key names a request by its events.
func key(items []item) string {
	h := sha256.New()
	for _, it := range items {
		h.Write([]byte(it.id))
		h.Write([]byte{'\n'}) // which no id has
	}
	return hex.EncodeToString(h.Sum(nil))
}

func (d *Destination) sign(headers http.Header, id string, at time.Time, body []byte) {
	seconds := strconv.FormatInt(at.Unix(), 10)
	// With it net/http also sends a request again that an idle connection lost.
	headers.Set("Idempotency-Key", id)
	headers.Set("Webhook-Id", id)
	headers.Set("Webhook-Timestamp", seconds)
	if d.secret == nil {
		return
	}
	mac := hmac.New(sha256.New, d.secret)
	mac.Write([]byte(id + "." + seconds + "."))
	mac.Write(body)
	headers.Set("Webhook-Signature", "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
}

// pause keeps the next request back as the server asks for.
func (d *Destination) pause(retryAfter string) {
	now := time.Now()
	var until time.Time
	if seconds, err := strconv.ParseUint(retryAfter, 10, 31); err == nil {
		until = now.Add(time.Duration(seconds) * time.Second)
	} else if until, err = http.ParseTime(retryAfter); err != nil {
		return
	}
	if latest := now.Add(longestPause); until.After(latest) {
		until = latest
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.notBefore = until
}

// wait returns when the server wants the next request.
func (d *Destination) wait(ctx context.Context) error {
	d.mu.Lock()
	pause := time.Until(d.notBefore)
	d.mu.Unlock()
	if pause <= 0 {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(pause):
		return nil
	}
}

// metrics are those of one webhook.
type metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	heldBack prometheus.Counter
}

func newMetrics(registry prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "polku_webhook_requests_total", Help: "Requests that were answered, by status code.",
		}, []string{"code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "polku_webhook_request_duration_seconds", Help: "Time from a request to the headers of its answer.",
			Buckets: prometheus.DefBuckets,
		}, nil),
		heldBack: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "polku_webhook_events_held_back_total", Help: "Events that were not sent because they are less severe than the webhook wants.",
		}),
	}
	for i, c := range m.all() {
		if err := registry.Register(c); err != nil {
			unregister(registry, m.all()[:i])
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.requests, m.duration, m.heldBack}
}

func unregister(registry prometheus.Registerer, all []prometheus.Collector) {
	for _, c := range all {
		registry.Unregister(c)
	}
}

func (m *metrics) instrument(next http.RoundTripper) http.RoundTripper {
	return promhttp.InstrumentRoundTripperCounter(m.requests, promhttp.InstrumentRoundTripperDuration(m.duration, next))
}
