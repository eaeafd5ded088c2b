package endpoint

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
)

// Listen takes the address of a server, HOST:PORT; port 0 takes a free one. The
// error names what is served and the flag, without dashes, that sets the address.
func Listen(ctx context.Context, served, address, flag string) (net.Listener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err == nil {
		return l, nil
	}
	hint := "set --" + flag + " to an address of this machine, HOST:PORT"
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		hint = "another process has this address; set --" + flag + " to a free one"
	case errors.Is(err, syscall.EACCES):
		hint = "ports below 1024 need privileges; set --" + flag + " to a higher one"
	}
	return nil, fmt.Errorf("serve %s on %q: %w: %s", served, address, err, hint)
}
