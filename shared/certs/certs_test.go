package certs_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/yairfalse/tapio/shared/certs"
)

// authority signs certificates for a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return &authority{cert: cert, key: key}
}

// write puts the authority's certificate to a file.
func (a *authority) write(t *testing.T, file string) {
	write(t, file, "CERTIFICATE", a.cert.Raw)
}

// issue puts a certificate for 127.0.0.1 and localhost and its key to files.
func (a *authority) issue(t *testing.T, name, certFile, keyFile string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, key.Public(), a.key)
	require.NoError(t, err)
	write(t, certFile, "CERTIFICATE", der)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	write(t, keyFile, "PRIVATE KEY", keyDER)
}

// write replaces a file as one step, as a rotation does.
func write(t *testing.T, file, kind string, der []byte) {
	next := file + ".next"
	require.NoError(t, os.WriteFile(next, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	require.NoError(t, os.Rename(next, file))
}

// files are the paths of one side, in a directory of its own.
func files(t *testing.T) certs.Files {
	dir := t.TempDir()
	return certs.Files{
		Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key"), CA: filepath.Join(dir, "ca.crt"),
	}
}

// connect does one handshake over a loopback connection and returns the names
// in the certificates that each side saw.
func connect(t *testing.T, client, server *tls.Config) (seenByClient, seenByServer string, clientErr, serverErr error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = l.Close() }()
	type result struct {
		name string
		err  error
	}
	done := make(chan result, 1)
	go func() {
		raw, err := l.Accept()
		if err != nil {
			done <- result{err: err}
			return
		}
		conn := tls.Server(raw, server)
		_, err = conn.Write([]byte("x")) // the client sees a refusal when it reads
		done <- result{name: peer(conn), err: err}
		_ = conn.Close()
	}()
	raw, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	conn := tls.Client(raw, client)
	_, clientErr = io.ReadFull(conn, make([]byte, 1))
	seenByClient = peer(conn)
	_ = conn.Close()
	r := <-done
	return seenByClient, r.name, clientErr, r.err
}

func peer(c *tls.Conn) string {
	if shown := c.ConnectionState().PeerCertificates; len(shown) > 0 {
		return shown[0].Subject.CommonName
	}
	return ""
}

func TestMutualTLSFollowsItsFiles(t *testing.T) {
	old, next := newAuthority(t, "old"), newAuthority(t, "next")
	s, c := files(t), files(t)
	old.issue(t, "server 1", s.Cert, s.Key)
	old.write(t, s.CA)
	old.issue(t, "client 1", c.Cert, c.Key)
	old.write(t, c.CA)
	server, err := s.Server()
	require.NoError(t, err)
	client, err := c.Client("127.0.0.1")
	require.NoError(t, err)
	try := func() (string, string, error, error) { return connect(t, client, server) }

	byClient, byServer, clientErr, serverErr := try()
	require.NoError(t, clientErr)
	require.NoError(t, serverErr)
	require.Equal(t, []string{"server 1", "client 1"}, []string{byClient, byServer})

	// The server's certificate is renewed by an authority that the client
	// does not know yet.
	next.issue(t, "server 2", s.Cert, s.Key)
	_, _, clientErr, _ = try()
	require.ErrorContains(t, clientErr, c.CA)
	next.write(t, c.CA)
	byClient, _, clientErr, _ = try()
	require.NoError(t, clientErr)
	require.Equal(t, "server 2", byClient)

	// The same the other way.
	next.issue(t, "client 2", c.Cert, c.Key)
	_, _, _, serverErr = try()
	require.ErrorContains(t, serverErr, s.CA)
	next.write(t, s.CA)
	_, byServer, clientErr, serverErr = try()
	require.NoError(t, clientErr)
	require.NoError(t, serverErr)
	require.Equal(t, "client 2", byServer)

	// Broken or missing files change nothing.
	require.NoError(t, os.WriteFile(s.Key, []byte("half a ke"), 0o600))
	require.NoError(t, os.Remove(c.CA))
	byClient, byServer, clientErr, serverErr = try()
	require.NoError(t, clientErr)
	require.NoError(t, serverErr)
	require.Equal(t, []string{"server 2", "client 2"}, []string{byClient, byServer})
}

func TestServerRefusesAClientWithoutCertificate(t *testing.T) {
	a := newAuthority(t, "a")
	s := files(t)
	a.issue(t, "server", s.Cert, s.Key)
	a.write(t, s.CA)
	server, err := s.Server()
	require.NoError(t, err)
	client, err := certs.Files{CA: s.CA}.Client("localhost")
	require.NoError(t, err)
	_, _, clientErr, serverErr := connect(t, client, server)
	require.ErrorContains(t, clientErr, "certificate required")
	require.Error(t, serverErr)
}

func TestClientChecksTheName(t *testing.T) {
	a := newAuthority(t, "a")
	s := files(t)
	a.issue(t, "server", s.Cert, s.Key)
	a.write(t, s.CA)
	server, err := certs.Files{Cert: s.Cert, Key: s.Key}.Server()
	require.NoError(t, err)
	for name, want := range map[string]string{"localhost": "", "127.0.0.1": "", "elsewhere": "elsewhere", "127.0.0.2": "127.0.0.2"} {
		client, err := certs.Files{CA: s.CA}.Client(name)
		require.NoError(t, err)
		_, _, clientErr, _ := connect(t, client, server)
		if want == "" {
			require.NoError(t, clientErr, name)
		} else {
			require.ErrorContains(t, clientErr, want)
		}
	}
	// The authorities of the system do not know this one.
	client, err := certs.Files{}.Client("localhost")
	require.NoError(t, err)
	_, _, clientErr, _ := connect(t, client, server)
	require.ErrorContains(t, clientErr, "unknown authority")
}

func TestBadFiles(t *testing.T) {
	a := newAuthority(t, "a")
	good := files(t)
	a.issue(t, "server", good.Cert, good.Key)
	a.write(t, good.CA)
	other := files(t)
	a.issue(t, "other", other.Cert, other.Key)
	missing := filepath.Join(t.TempDir(), "missing.pem")
	text := filepath.Join(t.TempDir(), "text.pem")
	require.NoError(t, os.WriteFile(text, []byte("no PEM\n"), 0o600))

	for _, c := range []struct {
		name  string
		files certs.Files
		want  []string
	}{
		{"cert alone", certs.Files{Cert: good.Cert}, []string{good.Cert, "key file"}},
		{"key alone", certs.Files{Key: good.Key}, []string{good.Key, "certificate file"}},
		{"no cert", certs.Files{Cert: missing, Key: good.Key}, []string{missing, "certificate file"}},
		{"no key", certs.Files{Cert: good.Cert, Key: missing}, []string{missing, "key file"}},
		{"no CA", certs.Files{Cert: good.Cert, Key: good.Key, CA: missing}, []string{missing, "CA file"}},
		{"empty CA", certs.Files{Cert: good.Cert, Key: good.Key, CA: text}, []string{text, "PEM"}},
		{"no PEM", certs.Files{Cert: text, Key: good.Key}, []string{text, "PEM"}},
		{"other key", certs.Files{Cert: good.Cert, Key: other.Key}, []string{good.Cert, other.Key}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, serverErr := c.files.Server()
			_, clientErr := c.files.Client("localhost")
			for _, want := range c.want {
				require.ErrorContains(t, serverErr, want)
				require.ErrorContains(t, clientErr, want)
			}
		})
	}
	_, err := certs.Files{}.Server()
	require.ErrorContains(t, err, "certificate")
	_, err = good.Client("")
	require.ErrorContains(t, err, "name of the server")
}
