package polku

import (
	"errors"
	"fmt"

	"github.com/spf13/pflag"

	"github.com/yairfalse/tapio/shared/endpoint"
)

// Flags adds the flags that say where the gateway is.
func (c *Config) Flags(f *pflag.FlagSet) {
	f.StringVar(&c.Endpoint, "polku", "", "gateway to send events to: https://host:port, http://host:port for plaintext, or host:port for TLS if a file is named (also POLKU_ENDPOINT)")
	f.StringVar(&c.TLS.CA, "polku-ca", "", "PEM file with the authority of the gateway's certificate; the system's without")
	f.StringVar(&c.TLS.Cert, "polku-cert", "", "PEM file with the certificate to show to the gateway")
	f.StringVar(&c.TLS.Key, "polku-key", "", "PEM file with the key of --polku-cert")
}

// CheckFlags checks what Flags took; no gateway at all is right.
func (c *Config) CheckFlags() error {
	if c.Endpoint == "" {
		if !c.TLS.Empty() {
			return errors.New("--polku-ca, --polku-cert and --polku-key are for --polku, which is empty")
		}
		return nil
	}
	if _, err := endpoint.Parse(c.Endpoint, c.TLS); err != nil {
		return fmt.Errorf("--polku: %w", err)
	}
	return nil
}
