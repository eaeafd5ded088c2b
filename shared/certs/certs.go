// Package certs makes TLS configurations from PEM files and follows the files
// when they are replaced, as cert-manager and the kubelet do with a Secret.
package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"
)

// Files are the paths of PEM files. Each may be empty.
type Files struct {
	// Cert is the certificate that is shown to the other side, with the
	// intermediate ones after it. It goes with Key.
	Cert string
	// Key is the private key of Cert.
	Key string
	// CA holds the certificates of the authorities that the other side's
	// certificate must come from.
	CA string
}

// Empty reports whether no file is named.
func (f Files) Empty() bool { return f == Files{} }

// Client returns what a client of the host serverName needs, a DNS name or an
// IP address without a port. Without CA the authorities of the system count.
// With Cert and Key the client shows a certificate of its own (mutual TLS).
//
// The files must be good now. Later changes of them hold from the next
// handshake on; while a changed file cannot be used, what it said before holds.
func (f Files) Client(serverName string) (*tls.Config, error) {
	if serverName == "" {
		return nil, errors.New("prepare TLS: the name of the server is empty: its certificate cannot be checked")
	}
	if (f.Cert == "") != (f.Key == "") {
		return nil, f.half()
	}
	s, err := open(f)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: serverName}
	if f.Cert != "" {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return s.certificate() }
	}
	if f.CA != "" {
		// RootCAs cannot change during the life of a configuration. What is
		// switched off here is done by VerifyConnection, with the authorities
		// that count now, on resumed sessions as well.
		config.InsecureSkipVerify = true
		config.VerifyConnection = func(c tls.ConnectionState) error {
			return s.verify(c.PeerCertificates, x509.VerifyOptions{DNSName: serverName})
		}
	}
	return config, nil
}

// Server returns what a server needs; Cert and Key must be named. With CA every
// client must show a certificate that comes from it (mutual TLS).
//
// Changes of the files take effect as with Client.
func (f Files) Server() (*tls.Config, error) {
	switch {
	case (f.Cert == "") != (f.Key == ""):
		return nil, f.half()
	case f.Cert == "":
		return nil, errors.New("prepare TLS: no certificate is named: a server needs a certificate file and its key file")
	}
	s, err := open(f)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.certificate() },
	}
	if f.CA != "" {
		// As for the client: ClientCAs cannot change.
		config.ClientAuth = tls.RequireAnyClientCert
		config.VerifyConnection = func(c tls.ConnectionState) error {
			return s.verify(c.PeerCertificates, x509.VerifyOptions{KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		}
	}
	return config, nil
}

func (f Files) half() error {
	if f.Key == "" {
		return fmt.Errorf("prepare TLS: certificate %s has no key: name its key file as well", f.Cert)
	}
	return fmt.Errorf("prepare TLS: key %s has no certificate: name its certificate file as well", f.Key)
}

// store holds what the files said when they were last good.
type store struct {
	files Files

	mu   sync.Mutex
	seen []os.FileInfo // the files as they were read
	cert *tls.Certificate
	pool *x509.CertPool
}

func open(f Files) (*store, error) {
	s := &store{files: f}
	return s, s.refresh()
}

// refresh reads the files if one of them was replaced or written. A rotation
// may be seen half done: then everything stays as it was, and the next call
// tries again. The caller holds the lock, or is the only one.
func (s *store) refresh() error {
	infos, err := s.stat()
	if err != nil {
		return err
	}
	if s.seen != nil && slices.EqualFunc(s.seen, infos, same) {
		return nil
	}
	cert, pool, err := s.files.load()
	if err != nil {
		return err
	}
	s.seen, s.cert, s.pool = infos, cert, pool
	return nil
}

func (s *store) stat() ([]os.FileInfo, error) {
	infos := make([]os.FileInfo, 0, 3)
	for _, file := range []struct{ role, path string }{
		{"certificate", s.files.Cert}, {"key", s.files.Key}, {"CA", s.files.CA},
	} {
		if file.path == "" {
			continue
		}
		info, err := os.Stat(file.path)
		if err != nil {
			return nil, fmt.Errorf("read the %s file: %w", file.role, err)
		}
		infos = append(infos, info)
	}
	return infos, nil
}

func same(a, b os.FileInfo) bool {
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size()
}

func (f Files) load() (cert *tls.Certificate, pool *x509.CertPool, err error) {
	if f.Cert != "" {
		pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
		if err != nil {
			return nil, nil, fmt.Errorf("read certificate %s with key %s: %w", f.Cert, f.Key, err)
		}
		cert = &pair
	}
	if f.CA != "" {
		data, err := os.ReadFile(f.CA)
		if err != nil {
			return nil, nil, fmt.Errorf("read the CA file: %w", err)
		}
		pool = x509.NewCertPool()
		if !pool.AppendCertsFromPEM(data) {
			return nil, nil, fmt.Errorf("read CA %s: it has no certificate in PEM form", f.CA)
		}
	}
	return cert, pool, nil
}

// certificate is the one that counts now. When it has expired and a newer one
// cannot be read, the reason for that is what an operator needs.
func (s *store) certificate() (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.refresh(); err != nil && s.cert.Leaf != nil && time.Now().After(s.cert.Leaf.NotAfter) {
		return nil, fmt.Errorf("certificate %s expired at %s, and: %w", s.files.Cert, s.cert.Leaf.NotAfter.Format(time.RFC3339), err)
	}
	return s.cert, nil
}

// verify checks the certificates that the other side showed.
func (s *store) verify(shown []*x509.Certificate, options x509.VerifyOptions) error {
	if len(shown) == 0 {
		return errors.New("the other side showed no certificate")
	}
	s.mu.Lock()
	stale := s.refresh() // what was good before holds
	options.Roots = s.pool
	s.mu.Unlock()
	options.Intermediates = x509.NewCertPool()
	for _, c := range shown[1:] {
		options.Intermediates.AddCert(c)
	}
	if _, err := shown[0].Verify(options); err != nil {
		err = fmt.Errorf("check the certificate of %q with CA %s: %w", shown[0].Subject.CommonName, s.files.CA, err)
		if stale != nil { // it may be what the new files say
			err = fmt.Errorf("%w, and the files changed since: %w", err, stale)
		}
		return err
	}
	return nil
}
