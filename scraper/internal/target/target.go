// Package target reads /metrics of one kube-scheduler.
package target

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/yairfalse/tapio/scraper/internal/exposition"
	"github.com/yairfalse/tapio/scraper/internal/interval"
	"github.com/yairfalse/tapio/shared/certs"
)

const (
	// maxBody is a hundred times what a scheduler of a small cluster answers,
	// after decompression.
	maxBody = 32 << 20
	// maxHeaderBytes bounds what is read before the body.
	maxHeaderBytes = 64 << 10
	// accept prefers what kube-scheduler is tested with; the others are for
	// proxies in front of it.
	accept = "text/plain;version=0.0.4,application/openmetrics-text;version=1.0.0;q=0.5,*/*;q=0.1"
)

// Class says why a scrape failed, for machines.
type Class string

// The classes.
const (
	Refused      Class = "connection_refused"
	Timeout      Class = "timeout"
	Unreachable  Class = "unreachable"
	BadTLS       Class = "tls"
	Unauthorized Class = "unauthorized"
	Forbidden    Class = "forbidden"
	Redirected   Class = "redirect"
	BadStatus    Class = "http_status"
	TooLarge     Class = "too_large"
	NotMetrics   Class = "not_metrics"
	NoToken      Class = "token"
)

// Failure is a scrape that failed.
type Failure struct {
	Class Class
	Err   error
}

// Error implements error.
func (f *Failure) Error() string { return f.Err.Error() }

// Unwrap implements errors.
func (f *Failure) Unwrap() error { return f.Err }

// Answers tells whether something answered, which may be the scheduler itself: then
// the way to its metrics is at fault, not the scheduler.
func (c Class) Answers() bool {
	switch c {
	case Refused, Timeout, Unreachable:
		return false
	}
	return true
}

// Advice says what to do about a class of failure.
func (c Class) Advice() string {
	switch c {
	case Refused:
		return "see whether kube-scheduler runs there (its pod and log), and whether --scheduler has its address and port"
	case Timeout:
		return "see whether the host of kube-scheduler is overloaded or a firewall drops the packets"
	case Unreachable:
		return "see whether the name and the address of --scheduler are right and the network leads there"
	case BadTLS:
		return "give the authority of its certificate with --ca; kubeadm's scheduler signs its own at each start: there --insecure-skip-verify"
	case Unauthorized:
		return "see whether --token-file holds a valid service account token"
	case Forbidden:
		return `allow the service account to "get" the nonResourceURL /metrics with a ClusterRole`
	case Redirected, BadStatus, NotMetrics, TooLarge:
		return "see whether --scheduler is the address of a kube-scheduler"
	case NoToken:
		return "see whether --token-file is mounted and readable"
	}
	return ""
}

// Config says where a scheduler is and how to be let in.
type Config struct {
	URL       string // https://host:port; the path is /metrics unless it has one
	TLS       certs.Files
	Insecure  bool   // any certificate will do
	TokenFile string // read at each scrape; empty for none
	Timeout   time.Duration
}

// Target is one scheduler.
type Target struct {
	config Config
	url    *url.URL
	client *http.Client
}

// New prepares a target. It connects to nobody; the error is about the
// configuration.
func New(config Config) (*Target, error) {
	u, err := url.Parse(config.URL)
	if err != nil {
		return nil, fmt.Errorf("the address of the scheduler %q is no URL: write https://host:port", config.URL)
	}
	if u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil {
		return nil, fmt.Errorf("the address of the scheduler %q is not of the form https://host:port", config.URL)
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = "/metrics"
	}
	transport := &http.Transport{
		// A proxy of the environment would get the token, and is not meant for
		// the control plane.
		Proxy: nil,
		// HTTP/1.1: HTTP/2 has nothing for one request a connection, and hides why a
		// server that wants a certificate closed it.
		DialContext: (&net.Dialer{Timeout: config.Timeout}).DialContext,
		// A connection of its own for each scrape: one that is kept may lead to a
		// host that has gone, and would tell that only after a time.
		DisableKeepAlives:      true,
		MaxResponseHeaderBytes: maxHeaderBytes,
	}
	if u.Scheme == "https" {
		if transport.TLSClientConfig, err = tlsConfig(config, u.Hostname()); err != nil {
			return nil, err
		}
	}
	return &Target{config: config, url: u, client: &http.Client{
		Transport: transport,
		// The token must not go where a redirect points to.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

func tlsConfig(config Config, host string) (*tls.Config, error) {
	if !config.Insecure {
		return config.TLS.Client(host)
	}
	c, err := certs.Files{Cert: config.TLS.Cert, Key: config.TLS.Key}.Client(host)
	if err != nil {
		return nil, err
	}
	c.InsecureSkipVerify = true // as the user asked
	return c, nil
}

// Name is the scheduler's host and port.
func (t *Target) Name() string { return t.url.Host }

// Scrape reads the metrics once. The error is a *Failure, or that of ctx when ctx
// has ended.
func (t *Target) Scrape(ctx context.Context) (interval.Scrape, error) {
	page, err := t.scrape(ctx)
	if ctx.Err() != nil {
		return interval.Scrape{}, ctx.Err()
	}
	if err != nil {
		return interval.Scrape{}, err
	}
	return interval.Scrape{Page: page, At: time.Now()}, nil
}

func (t *Target) scrape(ctx context.Context) (*exposition.Page, error) {
	ctx, cancel := context.WithTimeout(ctx, t.config.Timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, t.url.String(), http.NoBody)
	if err != nil {
		return nil, t.fail(Unreachable, err)
	}
	request.Header.Set("Accept", accept)
	request.Header.Set("User-Agent", "scheduler-scraper")
	if err := t.authorize(request); err != nil {
		return nil, t.fail(NoToken, err)
	}
	response, err := t.client.Do(request)
	if err != nil {
		var wrapped *url.Error // says the URL again
		if errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return nil, t.fail(classify(err), err)
	}
	defer func() { _ = response.Body.Close() }() // it was only read
	if class, bad := classOf(response.StatusCode); bad {
		return nil, t.fail(class, fmt.Errorf("it answers %s", response.Status))
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, maxBody+1))
	if err != nil {
		return nil, t.fail(classify(err), err)
	}
	if len(body) > maxBody {
		return nil, t.fail(TooLarge, fmt.Errorf("the answer has more than %d MiB", maxBody>>20))
	}
	page, err := exposition.Parse(body, response.Header.Get("Content-Type"))
	if err != nil {
		return nil, t.fail(NotMetrics, err)
	}
	return page, nil
}

// authorize adds the token, which the kubelet replaces every hour. It never goes
// over the wire in the clear.
func (t *Target) authorize(request *http.Request) error {
	if t.config.TokenFile == "" || t.url.Scheme != "https" {
		return nil
	}
	content, err := os.ReadFile(t.config.TokenFile)
	if err != nil {
		return fmt.Errorf("read the token: %w", err)
	}
	token := strings.TrimSpace(string(content))
	if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fmt.Errorf("file %s holds no token", t.config.TokenFile)
	}
	request.Header.Set("Authorization", "Bearer "+token)
	return nil
}

func (t *Target) fail(class Class, err error) error {
	return &Failure{Class: class, Err: fmt.Errorf("read metrics of %s: %w", t.url.Redacted(), err)}
}

// classOf says what is wrong with a status.
func classOf(status int) (class Class, bad bool) {
	switch {
	case status == http.StatusOK:
		return "", false
	case status == http.StatusUnauthorized:
		return Unauthorized, true
	case status == http.StatusForbidden:
		return Forbidden, true
	case status >= 300 && status < 400:
		return Redirected, true
	}
	return BadStatus, true
}

// classify says why there was no answer.
func classify(err error) Class {
	var (
		record    tls.RecordHeaderError
		alert     tls.AlertError
		verify    *tls.CertificateVerificationError
		authority x509.UnknownAuthorityError
		host      x509.HostnameError
		invalid   x509.CertificateInvalidError
		timeout   net.Error
	)
	switch {
	case errors.As(err, &record), errors.As(err, &alert), errors.As(err, &verify),
		errors.As(err, &authority), errors.As(err, &host), errors.As(err, &invalid),
		strings.Contains(err.Error(), "tls: "), strings.Contains(err.Error(), "HTTP response to HTTPS client"):
		return BadTLS
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return Timeout
	case errors.Is(err, syscall.ECONNREFUSED):
		return Refused
	}
	return Unreachable
}
