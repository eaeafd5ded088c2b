package endpoint_test

import (
	"net"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/yairfalse/tapio/shared/certs"
	"github.com/yairfalse/tapio/shared/endpoint"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		text, address string
		tls           bool
	}{
		{"127.0.0.1:4317", "127.0.0.1:4317", false},
		{"polku.tapio.svc:50051", "polku.tapio.svc:50051", false},
		{"[::1]:4317", "[::1]:4317", false},
		{"http://[::1]:4317/", "[::1]:4317", false},
		{"https://polku:443", "polku:443", true},
	} {
		e, err := endpoint.Parse(c.text, certs.Files{})
		require.NoError(t, err)
		require.Equal(t, c.address, e.Address)
		require.Equal(t, c.tls, e.TLS != nil)
		want := "insecure"
		if c.tls {
			want = "tls"
		}
		require.Equal(t, want, e.Credentials().Info().SecurityProtocol)
	}
}

func TestParseRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"":                       "host is missing",
		"polku":                  "port is missing",
		"polku:":                 "port is missing",
		":4317":                  "host is missing",
		"polku:0":                `port "0"`,
		"polku:65536":            `port "65536"`,
		"polku:http":             "port",
		"grpc://polku:1":         `scheme "grpc"`,
		"http://polku:1/v1/logs": "more than host and port",
		"http://a@polku:1":       "more than host and port",
		"::1:4317":               "want host:port",
		"pol ku:1":               "want host:port",
	} {
		_, err := endpoint.Parse(text, certs.Files{})
		require.ErrorContains(t, err, want, "%q", text)
		require.ErrorContains(t, err, "http://host:port for plaintext", "%q", text)
	}
	missing := filepath.Join(t.TempDir(), "ca.crt")
	_, err := endpoint.Parse("polku:1", certs.Files{CA: missing})
	require.ErrorContains(t, err, missing, "a file makes it TLS")
	_, err = endpoint.Parse("http://polku:1", certs.Files{CA: missing})
	require.ErrorContains(t, err, "plaintext, but certificate files are named")
}

func FuzzParse(f *testing.F) {
	for _, text := range []string{"host:1", "http://[::1]:2/", "https://a:3", "a://b", "[::%25eth0]:1", "://"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		e, err := endpoint.Parse(text, certs.Files{})
		if err != nil {
			return
		}
		host, port, err := net.SplitHostPort(e.Address)
		require.NoError(t, err)
		require.NotEmpty(t, host)
		require.NotEmpty(t, port)
	})
}
