// Package endpoint says where servers are: it reads where a gRPC server is and how
// to talk to it, and takes the address of a server of ours.
package endpoint

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/yairfalse/tapio/shared/certs"
)

// Endpoint is one server.
type Endpoint struct {
	// Address is host:port.
	Address string
	// TLS is how to secure the connection; nil for plaintext.
	TLS *tls.Config
}

// Parse reads one of
//
//	https://host:port  TLS
//	http://host:port   plaintext
//	host:port          TLS if a file is named, else plaintext
//
// Without a CA file the server's certificate must come from an authority that
// the system trusts. Files beside http:// are an error: whoever names them
// wants TLS.
func Parse(text string, files certs.Files) (Endpoint, error) {
	scheme, rest, found := strings.Cut(text, "://")
	if !found {
		scheme, rest = "http", text
		if !files.Empty() {
			scheme = "https"
		}
	}
	u, err := url.Parse(scheme + "://" + rest)
	if err != nil {
		return Endpoint{}, invalid(text, err)
	}
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	switch {
	case scheme != "http" && scheme != "https":
		return Endpoint{}, invalid(text, fmt.Errorf("scheme %q is not known", scheme))
	case u.Hostname() == "":
		return Endpoint{}, invalid(text, errors.New("the host is missing"))
	case strings.ContainsAny(u.Hostname(), "[]"):
		return Endpoint{}, invalid(text, errors.New("brackets go around an IPv6 address"))
	case u.Port() == "":
		return Endpoint{}, invalid(text, errors.New("the port is missing"))
	case err != nil || port == 0:
		return Endpoint{}, invalid(text, fmt.Errorf("port %q is none", u.Port()))
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil:
		return Endpoint{}, invalid(text, errors.New("there is more than host and port"))
	}
	e := Endpoint{Address: net.JoinHostPort(u.Hostname(), u.Port())}
	if scheme == "http" {
		if !files.Empty() {
			return Endpoint{}, fmt.Errorf("endpoint %q is plaintext, but certificate files are named: write https://, or name no files", text)
		}
		return e, nil
	}
	if e.TLS, err = files.Client(u.Hostname()); err != nil {
		return Endpoint{}, err
	}
	return e, nil
}

func invalid(text string, err error) error {
	return fmt.Errorf("endpoint %.200q: %w: want host:port, https://host:port, or http://host:port for plaintext", text, err)
}

// Credentials are what a gRPC connection to the endpoint needs.
func (e Endpoint) Credentials() credentials.TransportCredentials {
	if e.TLS == nil {
		return insecure.NewCredentials()
	}
	return credentials.NewTLS(e.TLS)
}
