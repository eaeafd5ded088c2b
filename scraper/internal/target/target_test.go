package target_test

import (
	"compress/gzip"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/yairfalse/tapio/scraper/internal/exposition"
	"github.com/yairfalse/tapio/scraper/internal/target"
	"github.com/yairfalse/tapio/shared/certs"
	"github.com/yairfalse/tapio/shared/certs/certstest"
)

const (
	patience = 30 * time.Second
	page     = "scheduler_pending_pods{queue=\"active\"} 7\n"
)

// serve answers requests over TLS with a certificate of an authority.
func serve(t *testing.T, files certs.Files, handler http.HandlerFunc) string {
	config, err := files.Server()
	require.NoError(t, err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := &http.Server{Handler: handler, TLSConfig: config, ErrorLog: log.New(io.Discard, "", 0), ReadHeaderTimeout: patience}
	go func() { _ = s.ServeTLS(listener, "", "") }() // until Close
	t.Cleanup(func() { _ = s.Close() })
	return "https://" + listener.Addr().String()
}

func open(t *testing.T, c target.Config) *target.Target {
	if c.Timeout == 0 {
		c.Timeout = patience
	}
	one, err := target.New(c)
	require.NoError(t, err)
	return one
}

func answer(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) }
}

func token(t *testing.T, content string) string {
	name := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(name, []byte(content), 0o600))
	return name
}

func TestScrapeWithAToken(t *testing.T) {
	side := certstest.NewAuthority(t, "cluster").Side(t, "scheduler")
	var seen []string
	url := serve(t, certs.Files{Cert: side.Cert, Key: side.Key}, func(w http.ResponseWriter, r *http.Request) {
		seen = append(seen, r.URL.Path+" "+r.Header.Get("Authorization"))
		assert.Contains(t, r.Header.Get("Accept-Encoding"), "gzip")
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		_, _ = io.WriteString(z, page)
		_ = z.Close()
	})
	file := token(t, "first\n")
	one := open(t, target.Config{URL: url, TLS: certs.Files{CA: side.CA}, TokenFile: file})
	s, err := one.Scrape(t.Context())
	require.NoError(t, err)
	assert.Equal(t, map[string]float64{"active": 7}, s.Page.SumBy(exposition.PendingPods, "queue"))
	require.NoError(t, os.WriteFile(file, []byte("second"), 0o600)) // as the kubelet does each hour
	_, err = one.Scrape(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []string{"/metrics Bearer first", "/metrics Bearer second"}, seen)
}

func TestClientCertificate(t *testing.T) {
	authority := certstest.NewAuthority(t, "cluster")
	url := serve(t, authority.Side(t, "scheduler"), answer(page))
	mine := authority.Side(t, "scraper")
	for _, c := range []target.Config{
		{URL: url, TLS: mine},
		{URL: url, TLS: certs.Files{Cert: mine.Cert, Key: mine.Key}, Insecure: true},
	} {
		_, err := open(t, c).Scrape(t.Context())
		require.NoError(t, err)
	}
	_, err := open(t, target.Config{URL: url, TLS: certs.Files{CA: mine.CA}}).Scrape(t.Context())
	var failure *target.Failure
	require.ErrorAs(t, err, &failure)
	assert.Equal(t, target.BadTLS, failure.Class, err)
}

func TestFailures(t *testing.T) {
	side := certstest.NewAuthority(t, "cluster").Side(t, "scheduler")
	server := certs.Files{Cert: side.Cert, Key: side.Key}
	elsewhere := serve(t, server, func(http.ResponseWriter, *http.Request) { assert.Fail(t, "a redirect was followed") })
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	nobody := "https://" + closed.Addr().String()
	require.NoError(t, closed.Close())
	plain := httptest.NewServer(answer(page))
	t.Cleanup(plain.Close)
	hang := make(chan struct{})
	t.Cleanup(func() { close(hang) })
	good := token(t, "good")

	tests := map[string]struct {
		config  target.Config
		handler http.HandlerFunc // of a server; nil when config has a URL
		want    target.Class
	}{
		"nobody listens":        {target.Config{URL: nobody}, nil, target.Refused},
		"no answer":             {target.Config{Timeout: 100 * time.Millisecond}, func(http.ResponseWriter, *http.Request) { <-hang }, target.Timeout},
		"an answer without end": {target.Config{}, func(w http.ResponseWriter, _ *http.Request) { endless(w) }, target.TooLarge},
		"401":                   {target.Config{}, status(http.StatusUnauthorized), target.Unauthorized},
		"403":                   {target.Config{}, status(http.StatusForbidden), target.Forbidden},
		"500":                   {target.Config{}, status(http.StatusInternalServerError), target.BadStatus},
		"204":                   {target.Config{}, status(http.StatusNoContent), target.BadStatus},
		"a redirect":            {target.Config{}, http.RedirectHandler(elsewhere, http.StatusFound).ServeHTTP, target.Redirected},
		"a web page":            {target.Config{}, answer("<html></html>"), target.NotMetrics},
		"another component":     {target.Config{}, answer("apiserver_request_total 1\n"), target.NotMetrics},
		"cut off":               {target.Config{}, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, target.Unreachable},
		"an unknown authority":  {target.Config{TLS: certs.Files{CA: certstest.NewAuthority(t, "other").Side(t, "x").CA}}, answer(page), target.BadTLS},
		"no TLS":                {target.Config{URL: strings.Replace(plain.URL, "http:", "https:", 1)}, nil, target.BadTLS},
		"no token":              {target.Config{TokenFile: "/does/not/exist"}, answer(page), target.NoToken},
		"an empty token":        {target.Config{TokenFile: token(t, " \n")}, answer(page), target.NoToken},
		"a token of two lines":  {target.Config{TokenFile: token(t, "a\nX-Evil: b")}, answer(page), target.NoToken},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c := test.config
			if c.URL == "" {
				c.URL = serve(t, server, test.handler)
			}
			if c.TLS.Empty() {
				c.TLS.CA = side.CA
			}
			if c.TokenFile == "" {
				c.TokenFile = good
			}
			_, err := open(t, c).Scrape(t.Context())
			var failure *target.Failure
			require.ErrorAs(t, err, &failure)
			assert.Equal(t, test.want, failure.Class, err)
			assert.Contains(t, err.Error(), c.URL)
			assert.NotEmpty(t, failure.Class.Advice())
			assert.NotContains(t, err.Error(), "good", "the token stays here")
		})
	}
}

// endless writes more than anyone may answer.
func endless(w io.Writer) {
	line := []byte(strings.Repeat("x", 1<<20))
	for range 40 {
		if _, err := w.Write(line); err != nil {
			return
		}
	}
}

func TestTheTokenIsNotSentInTheClear(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		assert.Empty(t, r.Header.Get("Authorization"))
		_, _ = io.WriteString(w, page)
	}))
	t.Cleanup(s.Close)
	_, err := open(t, target.Config{URL: s.URL, TokenFile: token(t, "secret")}).Scrape(t.Context())
	require.NoError(t, err)
}

func TestBadAddresses(t *testing.T) {
	for _, url := range []string{"", "127.0.0.1:10259", "ftp://scheduler", "https://", "https://user:password@scheduler", "://"} {
		t.Run(url, func(t *testing.T) {
			_, err := target.New(target.Config{URL: url, Timeout: patience})
			require.ErrorContains(t, err, "https://host:port")
		})
	}
}
