// Testapp is what runs in the pods that the suite breaks. It serves, calls, or
// runs once, and misbehaves as its flags say.
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// configInterval is how often the configuration is read again.
const configInterval = time.Second

// callTimeout is how long one call may take, the look-up of the name included.
const callTimeout = 2 * time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("say what to do: serve, call or once")
	}
	switch args[0] {
	case "serve":
		return serve(ctx, args[1:])
	case "call":
		return call(ctx, args[1:])
	case "once":
		return once(ctx, args[1:])
	}
	return fmt.Errorf("%q is none of serve, call, once", args[0])
}

// serve greets whoever connects.
func serve(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("serve", flag.ExitOnError)
	address := flags.String("listen", ":8080", "address to serve on")
	memory := flags.Int("memory", 0, "MiB to hold")
	after := flags.Duration("after", 0, "when to take the memory")
	leak := flags.Int("leak", 0, "MiB to take with each call and never give back")
	config := flags.String("config", "", "file that has to have the line mode=good, then and later")
	mode := flags.String("mode", os.Getenv("MODE"), "good, or else it ends at the start")
	grace := flags.Duration("grace", 0, "how long to go on serving after SIGTERM")
	flags.String("password", "", "nothing is done with it")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *mode != "" && *mode != "good" {
		return fmt.Errorf("mode %q is not known", *mode)
	}
	if err := check(*config); err != nil {
		return err
	}
	var held [][]byte
	take := time.After(*after)
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", *address)
	if err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	defer l.Close() //nolint:errcheck // the process ends
	calls := make(chan struct{})
	go greet(l, calls)
	recheck := time.NewTicker(configInterval)
	for {
		select {
		case <-ctx.Done():
			time.Sleep(*grace) // who was told of this address may still call
			return nil
		case <-take:
			held = hold(held, *memory)
		case <-recheck.C:
			if err := check(*config); err != nil {
				return err
			}
		case <-calls:
			held = hold(held, *leak)
		}
	}
}

func greet(l net.Listener, calls chan<- struct{}) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			calls <- struct{}{}
			_, _ = io.WriteString(c, "hello\n") // whoever calls may be gone
			_ = c.Close()
		}()
	}
}

// hold takes memory and writes to it, as pages that nobody wrote take none.
func hold(held [][]byte, mib int) [][]byte {
	for range mib {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += os.Getpagesize() {
			b[i] = 1
		}
		held = append(held, b)
	}
	return held
}

func check(config string) error {
	if config == "" {
		return nil
	}
	text, err := os.ReadFile(config)
	if err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.TrimSpace(line) == "mode=good" {
			return nil
		}
	}
	return fmt.Errorf("read the configuration: %s does not say mode=good", config)
}

// call connects to an address over and over.
func call(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("call", flag.ExitOnError)
	every := flags.Duration("every", 500*time.Millisecond, "pause between calls")
	stick := flags.Bool("stick", false, "look the name up until it is found, and never again")
	if err := flags.Parse(args); err != nil {
		return err
	}
	address := flags.Arg(0)
	tick := time.NewTicker(*every)
	for {
		peer, greeting, err := ask(ctx, address)
		switch {
		case err != nil:
			fmt.Println(err)
		default:
			fmt.Print(greeting)
			if *stick {
				address = peer
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// ask returns who answered, and what.
func ask(ctx context.Context, address string) (peer, greeting string, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return "", "", err
	}
	defer c.Close() //nolint:errcheck // everything was read
	deadline, _ := ctx.Deadline()
	if err := c.SetReadDeadline(deadline); err != nil {
		return "", "", err
	}
	greeting, err = bufio.NewReader(c).ReadString('\n')
	return c.RemoteAddr().String(), greeting, err
}

// once ends with a status after a while.
func once(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("once", flag.ExitOnError)
	after := flags.Duration("after", time.Second, "how long it takes")
	status := flags.Int("status", 0, "how it ends")
	if err := flags.Parse(args); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
	case <-time.After(*after):
		if *status != 0 {
			fmt.Println("this run fails")
			os.Exit(*status)
		}
	}
	return nil
}
