package cli_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/yairfalse/tapio/polku/internal/cli"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	polkuv1 "github.com/yairfalse/tapio/proto/polku/v1"
	"github.com/yairfalse/tapio/shared/event"
)

// polku runs a command line that ends by itself.
func polku(t *testing.T, environ []string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs strings.Builder
	status = cli.Run(t.Context(), args, environ, &out, &errs)
	return status, out.String(), errs.String()
}

func TestMistakesAreTold(t *testing.T) {
	tests := []struct {
		args string
		want []string
	}{
		{"--operator-listen 0.0.0.0:1", []string{"--operator-listen", "loopback"}},
		{"--operator-listen :1", []string{"--operator-listen", "loopback"}},
		{"--tls-key k", []string{"--tls-cert"}},
		{"--max-message 1KiB", []string{"--max-message is 1KiB", "64KiB to 64MiB"}},
		{"--max-message 4XB", []string{"--max-message", `"4XB"`, "512MiB"}},
		{"--max-connections 0", []string{"--max-connections is 0"}},
		{"--rate-limit -1", []string{"--rate-limit is -1"}},
		{"--rate-limit +Inf", []string{"--rate-limit is +Inf"}},
		{"--nats-url nats://x --nats-replicas 2", []string{"--nats-replicas is 2: use 1, 3 or 5"}},
		{"--ahti-tls-ca ca.pem", []string{"--ahti-* settings but no such route: set --ahti"}},
		{"--otlp-tls-cert c.pem --otlp-tls-key k.pem", []string{"set --otlp"}},
		{"--webhook-secret c2VjcmV0", []string{"set --webhook"}},
		{"--rate-limit NaN", []string{"--rate-limit is NaN"}},
		{"--rate-limit 1e19", []string{"--rate-limit is 1e+19", "at most 1000000000 events a second"}},
		{"--data-dir=", []string{"--data-dir is empty", "--nats-url"}},
		{"--nats-replicas 3", []string{"need --nats-url"}},
		{"--nats-url nats://x:1 --nats-replicas 9", []string{"--nats-replicas is 9"}},
		{"--log-max-bytes 1MiB", []string{"--log-max-bytes is 1MiB", "16MiB"}},
		{"--log-retention -1h", []string{"--log-retention is -1h"}},
		{"--webhook-min-severity loud", []string{"--webhook-min-severity", `"loud"`}},
		{"--log-level loud", []string{"--log-level", `"loud"`}},
		{"--ahti http:// --data-dir DIR --listen 127.0.0.1:0 --operator-listen 127.0.0.1:0 --http-listen=", []string{"route ahti", "host is missing"}},
		{"--listen 127.0.0.1:99999", []string{"set --listen"}},
		{"--listen 127.0.0.1:0 --operator-listen 127.0.0.1:0 --http-listen= --data-dir /dev/null/x", []string{"--data-dir"}},
		{"--nats-url nats://u:hidden@%zz --listen 127.0.0.1:0 --operator-listen 127.0.0.1:0 --http-listen=", []string{"connect to NATS at a malformed URL", "--nats-url"}},
		{"replay --from -1h --operator 127.0.0.1:1 ahti", []string{"127.0.0.1:1", "is it running there?"}},
		{"replay ahti", []string{`"from"`}},
		{"replay --from yesterday ahti", []string{"--from", `"yesterday"`, "RFC"}},
		{"tail --severity loud", []string{"--severity", `"loud"`}},
		{"status --operator 127.0.0.1:1", []string{"127.0.0.1:1", "is it running there?"}},
		{"status --output xml", []string{"--output", `"xml"`}},
		{"watch", []string{`unknown command "watch"`}},
	}
	for _, tt := range tests {
		t.Run(tt.args, func(t *testing.T) {
			status, stdout, stderr := polku(t, nil, strings.Fields(strings.ReplaceAll(tt.args, "DIR", t.TempDir()))...)
			assert.Equal(t, 1, status)
			assert.Empty(t, stdout)
			assert.NotContains(t, stderr, "hidden")
			_, last, _ := strings.Cut(stderr, "polku: ")
			for _, want := range tt.want {
				assert.Contains(t, last, strings.ReplaceAll(want, "RFC", "2026-03-04T05:06:07Z"))
			}
		})
	}
}

func TestEnvironment(t *testing.T) {
	_, _, stderr := polku(t, []string{"POLKU_LOG_MAX_BYTES=1MiB"})
	require.Contains(t, stderr, "--log-max-bytes is 1MiB")
	_, _, stderr = polku(t, []string{"POLKU_DATADIR=/x"})
	require.Contains(t, stderr, "POLKU_DATADIR")
	_, _, stderr = polku(t, []string{"POLKU_OPERATOR_LISTEN=127.0.0.1:1", "POLKU_LISTEN=:7"}, "status")
	require.Contains(t, stderr, "127.0.0.1:1", "commands work in the gateway's own environment")
}

func TestVersionAndHelp(t *testing.T) {
	for _, args := range [][]string{{"version"}, {"--version"}} {
		status, stdout, stderr := polku(t, nil, args...)
		require.Zero(t, status)
		require.Empty(t, stderr)
		require.Regexp(t, `^polku \S+\ncommit \S+( \(modified\))?\nbuilt with go`, stdout)
	}
	status, stdout, _ := polku(t, nil, "--help")
	require.Zero(t, status)
	for _, want := range []string{"POLKU_DATA_DIR", "--log-max-bytes", "(default 4GiB)", "replay", "dead-letters", "--ahti ", "--otlp "} {
		require.Contains(t, stdout, want)
	}
}

func TestOperatorsCommands(t *testing.T) {
	out, err := os.CreateTemp(t.TempDir(), "out")
	require.NoError(t, err)
	defer func() { require.NoError(t, out.Close()) }()
	p := runIn(t, nil, out, "--data-dir", t.TempDir(), "--stdout")

	status, stdout, _ := p.command(t, "status")
	require.Zero(t, status)
	require.Contains(t, stdout, "route stdout")
	require.Contains(t, stdout, "delivered everything")
	require.Regexp(t, `log +0 B of 4 GiB, 0 messages`, stdout)

	// A tail of one kind sees what comes after it, and only that.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, w := io.Pipe()
	tailed := make(chan int, 1)
	go func() {
		tailed <- cli.Run(ctx, []string{"tail", "--operator", p.operator, "--kind", "network.", "--severity", "error", "--output", "json"}, nil, w, io.Discard)
		_ = w.Close() // of a pipe, never fails
	}()
	seen := make(chan string)
	go func() {
		for s := bufio.NewScanner(r); s.Scan(); {
			seen <- s.Text()
		}
	}()
	f := event.NewFactory()
	gap := f.New(event.KindAgentGap, time.Now(), "tapio")
	client := p.client(t)
	var first eventv1.Event
	require.Eventually(t, func() bool { // until the tail is there
		for _, e := range []*eventv1.Event{gap, typical(f, 0)} {
			ack, err := client.SendEvent(t.Context(), &polkuv1.IngestEvent{Source: "tapio", Cluster: "prod", Payload: &polkuv1.IngestEvent_Event{Event: e}})
			require.NoError(t, err)
			require.Len(t, ack.GetEventIds(), 1)
		}
		select {
		case line := <-seen:
			return protojson.Unmarshal([]byte(line), &first) == nil
		case <-time.After(100 * time.Millisecond):
			return false
		}
	}, patience, time.Millisecond)
	require.Equal(t, "network.connection_refused", first.GetEventType())
	require.Equal(t, "prod", first.GetMetadata()[event.K8sClusterName])
	cancel()
	go func() {
		for range seen {
			continue
		}
	}()
	require.Zero(t, <-tailed, "the user had enough")

	require.Eventually(t, func() bool { return len(lines(t, out)) >= 2 }, patience, 10*time.Millisecond)
	before := len(lines(t, out))
	status, stdout, _ = p.command(t, "replay", "--from", "-1h", "stdout")
	require.Zero(t, status)
	require.Regexp(t, `^\d+ events delivered to stdout again\n$`, stdout)
	require.Greater(t, len(lines(t, out)), before)
	status, _, stderr := p.command(t, "replay", "--from", "-1h", "ahti")
	require.Equal(t, 1, status)
	require.Equal(t, "polku: no such route: \"ahti\": use one of stdout\n", stderr)

	status, stdout, _ = p.command(t, "dead-letters")
	require.Zero(t, status)
	require.Empty(t, stdout)
	status, stdout, _ = p.command(t, "status", "--output", "json")
	require.Zero(t, status)
	require.True(t, json.Valid([]byte(stdout)))

	for path, want := range map[string]string{"healthz": "ok", "readyz": "[+] log", "metrics": "polku_gateway_events_stored_total "} {
		response, err := http.Get("http://" + p.http + "/" + path) //nolint:noctx // a test that ends
		require.NoError(t, err)
		body, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		require.Equal(t, http.StatusOK, response.StatusCode)
		require.Contains(t, string(body), want)
	}
	p.stop(t)
}

// A stop comes in the middle of a stream: what was taken is acknowledged.
func TestAStopLosesNothing(t *testing.T) {
	dir := t.TempDir()
	p := run(t, "--data-dir", dir)
	s := newSource(20_000)
	told := false
	err := s.send(t.Context(), p.client(t), 50, func() bool {
		if len(s.acked) > 2000 && !told {
			told = true
			assert.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
		}
		return false
	})
	require.Error(t, err, "the stream ends")
	require.NoError(t, <-p.ended, p.said())
	count := held(t, dir)
	for id := range s.acked {
		require.Equal(t, 1, count[id], id)
	}
}

// A gateway that starts before its NATS servers waits for them, and says so.
func TestNATSMayStartLater(t *testing.T) {
	nats, probes := freePort(t), "127.0.0.1:"+strconv.Itoa(freePort(t))
	arguments := []string{"--nats-url", fmt.Sprintf("nats://127.0.0.1:%d", nats), "--http-listen", probes}
	probe := func(path string) (int, string) {
		answer, err := http.Get("http://" + probes + path)
		if err != nil {
			return 0, err.Error()
		}
		body, err := io.ReadAll(answer.Body)
		require.NoError(t, errors.Join(err, answer.Body.Close()))
		return answer.StatusCode, string(body)
	}
	waits := func(p *process) {
		require.Eventually(t, func() bool { return strings.Contains(p.said(), "waiting for NATS") }, patience, 10*time.Millisecond)
		require.Eventually(t, func() bool { status, _ := probe("/healthz"); return status == http.StatusOK }, patience, 10*time.Millisecond, "it is alive")
		status, body := probe("/readyz")
		require.Equal(t, http.StatusServiceUnavailable, status)
		require.Contains(t, body, "[-] log: being opened")
	}

	stopped := start(t, nil, os.Stderr, arguments...)
	waits(stopped)
	stopped.stop(t)

	p := start(t, nil, os.Stderr, arguments...)
	waits(p)
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: nats, NoSigs: true, NoLog: true, JetStream: true, StoreDir: t.TempDir()})
	require.NoError(t, err)
	s.Start()
	defer s.WaitForShutdown()
	defer s.Shutdown()
	p.awaitReady(t)
	require.Eventually(t, func() bool { status, _ := probe("/readyz"); return status == http.StatusOK }, patience, 10*time.Millisecond)
	ack, err := p.client(t).SendEvent(t.Context(), &polkuv1.IngestEvent{Source: "s", Payload: &polkuv1.IngestEvent_Event{Event: typical(event.NewFactory(), 1)}})
	require.NoError(t, err)
	require.Empty(t, ack.GetErrors())
	p.stop(t)
}

// freePort is a port that nobody has for now.
func freePort(t *testing.T) int {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { require.NoError(t, l.Close()) }()
	address, ok := l.Addr().(*net.TCPAddr)
	require.True(t, ok)
	return address.Port
}

// Clients that connect and say nothing keep nobody out, take little memory, and
// do not have the garbage collector run all the time for it.
func TestIdleClientsKeepNobodyOut(t *testing.T) {
	const (
		mostPerClient = 40 << 10 // bytes, with garbage
		mostPerStream = 110 << 10
	)
	clients, streams := 10_000, 4000
	if testing.Short() {
		clients, streams = 1000, 1500
	}
	p := run(t, "--data-dir", t.TempDir())
	require.NoError(t, newSource(1000).send(t.Context(), p.client(t), 100, never))
	before := p.lives(t)
	greeting := []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00") // and empty settings
	for i := range clients {
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", p.gateway)
		require.NoError(t, err)
		defer func() { _ = conn.Close() }() // the gateway may be gone
		if i%10 > 0 {
			_, err = conn.Write(greeting)
			require.NoError(t, err)
		}
	}
	idle := p.lives(t)
	for range streams {
		stream, err := p.client(t).StreamEvents(t.Context())
		require.NoError(t, err)
		_, err = stream.Header() // it is accepted
		require.NoError(t, err)
	}
	s := newSource(1000)
	require.NoError(t, s.send(t.Context(), p.client(t), 100, never))
	streaming := p.lives(t)
	t.Logf("bytes a client: %.0f, a stream: %.0f", (idle-before)/float64(clients), (streaming-idle)/float64(streams))
	require.Less(t, idle-before, float64(clients*mostPerClient))
	require.Less(t, streaming-idle, float64(streams*mostPerStream))
	require.Eventually(t, func() bool { return p.metric(t, "go_gc_gomemlimit_bytes") > 1.5*streaming }, patience, 100*time.Millisecond)
}

// lives is how many bytes of memory are in use.
func (p *process) lives(t *testing.T) float64 {
	t.Helper()
	return p.metric(t, "go_memstats_heap_alloc_bytes") + p.metric(t, "go_memstats_stack_inuse_bytes")
}

// metric reads a metric without labels.
func (p *process) metric(t *testing.T, name string) float64 {
	t.Helper()
	answer, err := http.Get("http://" + p.http + "/metrics") //nolint:noctx // a test that ends
	require.NoError(t, err)
	body, err := io.ReadAll(answer.Body)
	require.NoError(t, errors.Join(err, answer.Body.Close()))
	for line := range strings.Lines(string(body)) {
		if text, found := strings.CutPrefix(line, name+" "); found {
			value, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
			require.NoError(t, err)
			return value
		}
	}
	t.Fatalf("%s is missing", name)
	return 0
}

func TestAMemoryLimitOfTheEnvironmentStays(t *testing.T) {
	t.Setenv("GOMEMLIMIT", "1GiB")
	p := run(t, "--data-dir", t.TempDir())
	require.EqualValues(t, 1<<30, p.metric(t, "go_gc_gomemlimit_bytes"))
}

// Only clients with a certificate of the right authority get in.
func TestCertificates(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	cert, key := ours.issue(t)
	p := run(t, "--data-dir", t.TempDir(), "--tls-cert", cert, "--tls-key", key, "--tls-client-ca", ours.file)
	dial := func(shown *authority) error {
		config := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: x509.NewCertPool(), ServerName: "127.0.0.1"}
		config.RootCAs.AddCert(ours.cert)
		if shown != nil {
			c, k := shown.issue(t)
			pair, err := tls.LoadX509KeyPair(c, k)
			require.NoError(t, err)
			config.Certificates = []tls.Certificate{pair}
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		_, err := p.client(t, grpc.WithTransportCredentials(credentials.NewTLS(config))).Health(ctx, &polkuv1.HealthRequest{})
		return err
	}
	require.Error(t, dial(nil))
	require.Error(t, dial(theirs))
	_, err := p.client(t).Health(t.Context(), &polkuv1.HealthRequest{})
	require.Error(t, err, "without encryption")
	require.NoError(t, dial(ours))
}

// authority issues certificates for 127.0.0.1.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return &authority{cert, key, writePEM(t, "CERTIFICATE", der)}
}

func (a *authority) issue(t *testing.T) (cert, key string) {
	t.Helper()
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "node"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, &own.PublicKey, a.key)
	require.NoError(t, err)
	encoded, err := x509.MarshalPKCS8PrivateKey(own)
	require.NoError(t, err)
	return writePEM(t, "CERTIFICATE", der), writePEM(t, "PRIVATE KEY", encoded)
}

func writePEM(t *testing.T, kind string, der []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "pem")
	require.NoError(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	return file
}
