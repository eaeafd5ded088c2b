package certs_test

import (
	"crypto/tls"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/yairfalse/tapio/shared/certs"
	"github.com/yairfalse/tapio/shared/certs/certstest"
)

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
	old, next := certstest.NewAuthority(t, "old"), certstest.NewAuthority(t, "next")
	s, c := certstest.Files(t), certstest.Files(t)
	old.Issue(t, "server 1", s.Cert, s.Key)
	old.Write(t, s.CA)
	old.Issue(t, "client 1", c.Cert, c.Key)
	old.Write(t, c.CA)
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
	next.Issue(t, "server 2", s.Cert, s.Key)
	_, _, clientErr, _ = try()
	require.ErrorContains(t, clientErr, c.CA)
	next.Write(t, c.CA)
	byClient, _, clientErr, _ = try()
	require.NoError(t, clientErr)
	require.Equal(t, "server 2", byClient)

	// The same the other way.
	next.Issue(t, "client 2", c.Cert, c.Key)
	_, _, _, serverErr = try()
	require.ErrorContains(t, serverErr, s.CA)
	next.Write(t, s.CA)
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

// Who is refused because a new CA cannot be read is told so.
func TestARefusalTellsOfFilesThatCannotBeRead(t *testing.T) {
	older, newer := certstest.NewAuthority(t, "older"), certstest.NewAuthority(t, "newer")
	s := certstest.Files(t)
	older.Issue(t, "server", s.Cert, s.Key)
	older.Write(t, s.CA)
	client, err := certs.Files{CA: s.CA}.Client("localhost")
	require.NoError(t, err)
	newer.Issue(t, "server", s.Cert, s.Key)
	server, err := certs.Files{Cert: s.Cert, Key: s.Key}.Server()
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(s.CA, []byte("half a certifi"), 0o600))
	_, _, clientErr, _ := connect(t, client, server)
	require.ErrorContains(t, clientErr, "unknown authority")
	require.ErrorContains(t, clientErr, "no certificate in PEM form")
}

func TestServerRefusesAClientWithoutCertificate(t *testing.T) {
	a := certstest.NewAuthority(t, "a")
	s := certstest.Files(t)
	a.Issue(t, "server", s.Cert, s.Key)
	a.Write(t, s.CA)
	server, err := s.Server()
	require.NoError(t, err)
	client, err := certs.Files{CA: s.CA}.Client("localhost")
	require.NoError(t, err)
	_, _, clientErr, serverErr := connect(t, client, server)
	require.ErrorContains(t, clientErr, "certificate required")
	require.Error(t, serverErr)
}

func TestClientChecksTheName(t *testing.T) {
	a := certstest.NewAuthority(t, "a")
	s := certstest.Files(t)
	a.Issue(t, "server", s.Cert, s.Key)
	a.Write(t, s.CA)
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
	a := certstest.NewAuthority(t, "a")
	good := certstest.Files(t)
	a.Issue(t, "server", good.Cert, good.Key)
	a.Write(t, good.CA)
	other := certstest.Files(t)
	a.Issue(t, "other", other.Cert, other.Key)
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
