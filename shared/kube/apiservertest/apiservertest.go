// Package apiservertest runs a real kube-apiserver with a real etcd on loopback.
// A fake client knows nothing of resource versions, watch caches and compaction,
// which are what a watcher is about.
package apiservertest

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// AssetsVariable names the directory that has the programs etcd and
// kube-apiserver, as in other projects of the field.
const AssetsVariable = "KUBEBUILDER_ASSETS"

// Tokens of users: the first may do everything, the second what a test binds to
// the user's name.
const (
	AdminToken   = "admin-token"
	LimitedToken = "limited-token"
	LimitedUser  = "limited"
)

// startWithin is how long a server may take to work, on a machine that has much
// else to do.
const startWithin = 2 * time.Minute

// Server is an API server and its etcd. They can be killed and started again, on
// the same ports with the same data.
type Server struct {
	dir, assets          string
	etcdPort, securePort int
	extra                []string
	etcd, apiserver      program
}

type program struct {
	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{}
}

// Start runs both until the test ends. It skips the test where the programs are not.
// The arguments are further flags of kube-apiserver.
func Start(t testing.TB, arguments ...string) *Server {
	t.Helper()
	assets := os.Getenv(AssetsVariable)
	if _, err := os.Stat(filepath.Join(assets, "kube-apiserver")); err != nil {
		t.Skipf("%s is %q: name a directory that has etcd and kube-apiserver, as `make test` does", AssetsVariable, assets)
	}
	s, err := New(arguments...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Stop()
		if t.Failed() {
			t.Logf("kube-apiserver ended its log with\n%s", s.LogEnd())
		}
		if err := s.Remove(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// New starts both for who has no test.
func New(arguments ...string) (*Server, error) {
	dir, err := os.MkdirTemp(memory(), "apiserver-")
	if err != nil {
		return nil, fmt.Errorf("make a place for the data of etcd: %w", err)
	}
	s := &Server{dir: dir, assets: os.Getenv(AssetsVariable), extra: arguments}
	err = s.prepare()
	if err == nil {
		err = s.StartEtcd()
	}
	if err == nil {
		err = s.StartAPIServer()
	}
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, s.LogEnd())
		s.Stop()
		return nil, errors.Join(err, s.Remove())
	}
	return s, nil
}

// memory is a directory in memory, where etcd is as fast as it gets.
func memory() string {
	const shared = "/dev/shm"
	if info, err := os.Stat(shared); err == nil && info.IsDir() {
		return shared
	}
	return ""
}

func (s *Server) path(name string) string { return filepath.Join(s.dir, name) }

func (s *Server) prepare() error {
	var err error
	if s.etcdPort, err = FreePort(); err != nil {
		return err
	}
	if s.securePort, err = FreePort(); err != nil {
		return err
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return fmt.Errorf("make the key of service accounts: %w", err)
	}
	block := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	if err := os.WriteFile(s.path("sa.key"), block, 0o600); err != nil {
		return err
	}
	tokens := fmt.Sprintf("%s,admin,1,system:masters\n%s,%s,2\n", AdminToken, LimitedToken, LimitedUser)
	return os.WriteFile(s.path("tokens"), []byte(tokens), 0o600)
}

// FreePort finds a port of loopback that nobody listens at. It lies below those
// that the kernel gives to connections: a client that dials one of those while
// its server is down may meet itself.
func FreePort() (int, error) {
	const first, last, tries = 15_000, 30_000, 100
	var err error
	for range tries {
		port := first + mathrand.IntN(last-first)
		var l net.Listener
		if l, err = (&net.ListenConfig{}).Listen(context.Background(), "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err == nil {
			return port, l.Close()
		}
	}
	return 0, fmt.Errorf("find a free port: %w", err)
}

// StartEtcd starts etcd and waits until it answers.
func (s *Server) StartEtcd() error {
	peer, err := FreePort()
	if err != nil {
		return err
	}
	client, peers := s.etcdURL(), fmt.Sprintf("http://127.0.0.1:%d", peer)
	err = s.etcd.start(exec.Command(filepath.Join(s.assets, "etcd"), //nolint:gosec // the test names it
		"--data-dir", s.path("etcd"), "--unsafe-no-fsync", "--log-level", "error", "--quota-backend-bytes", strconv.Itoa(8<<30),
		"--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peers,
		"--initial-advertise-peer-urls", peers, "--initial-cluster", "default="+peers), s.path("etcd.log"))
	if err != nil {
		return err
	}
	return s.etcd.await("etcd", func() error {
		return ask(http.DefaultClient, client+"/health", "")
	})
}

// StartAPIServer starts kube-apiserver and waits until it is ready.
func (s *Server) StartAPIServer() error {
	arguments := append([]string{
		"--etcd-servers", s.etcdURL(), "--etcd-compaction-interval", "0",
		"--secure-port", strconv.Itoa(s.securePort), "--bind-address", "127.0.0.1", "--advertise-address", "127.0.0.1",
		"--endpoint-reconciler-type", "none", "--cert-dir", s.path("certs"),
		"--service-account-issuer", "https://kubernetes.default.svc", "--service-account-key-file", s.path("sa.key"),
		"--service-account-signing-key-file", s.path("sa.key"), "--service-cluster-ip-range", "10.0.0.0/16",
		"--token-auth-file", s.path("tokens"), "--authorization-mode", "RBAC",
		// Controllers that would make accounts and taints tolerable are not there.
		"--disable-admission-plugins", "ServiceAccount,TaintNodesByCondition,DefaultTolerationSeconds",
		"--max-requests-inflight", "0", "--max-mutating-requests-inflight", "0", "--enable-priority-and-fairness=false",
	}, s.extra...)
	if err := s.apiserver.start(exec.Command(filepath.Join(s.assets, "kube-apiserver"), arguments...), s.path("kube-apiserver.log")); err != nil { //nolint:gosec // the test names it
		return err
	}
	client, err := rest.HTTPClientFor(s.Config())
	if err != nil {
		return err
	}
	client.Timeout = 10 * time.Second
	if err := s.apiserver.await("kube-apiserver", func() error { return ask(client, s.url()+"/readyz", "") }); err != nil {
		return err
	}
	// The default namespace is made by a loop of its own.
	return s.apiserver.await("the default namespace", func() error {
		return ask(client, s.url()+"/api/v1/namespaces/default", "")
	})
}

func (s *Server) etcdURL() string { return fmt.Sprintf("http://127.0.0.1:%d", s.etcdPort) }
func (s *Server) url() string     { return fmt.Sprintf("https://127.0.0.1:%d", s.securePort) }

// ask sends a request, with a body as POST, and wants status 200.
func ask(client *http.Client, url, body string) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	method := http.MethodGet
	if body != "" {
		method = http.MethodPost
	}
	request, err := http.NewRequestWithContext(ctx, method, url, bytes.NewBufferString(body))
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, response.Body.Close()) }()
	text, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %.500s", url, response.Status, text)
	}
	return err
}

// Config connects as the user that may do everything.
func (s *Server) Config() *rest.Config { return s.ConfigOf(AdminToken) }

// ConfigOf connects with a token.
func (s *Server) ConfigOf(token string) *rest.Config {
	return &rest.Config{
		Host: s.url(), BearerToken: token, QPS: -1,
		TLSClientConfig: rest.TLSClientConfig{Insecure: true}, // a certificate that the server made for itself
	}
}

// Kubeconfig writes a file that connects with a token.
func (s *Server) Kubeconfig(token string) (string, error) {
	config := clientcmdapi.NewConfig()
	config.Clusters["test"] = &clientcmdapi.Cluster{Server: s.url(), InsecureSkipTLSVerify: true}
	config.AuthInfos["test"] = &clientcmdapi.AuthInfo{Token: token}
	config.Contexts["test"] = &clientcmdapi.Context{Cluster: "test", AuthInfo: "test"}
	config.CurrentContext = "test"
	file := s.path("kubeconfig-" + token)
	return file, clientcmd.WriteToFile(*config, file)
}

// Compact makes etcd forget everything that is older than a revision, which is a
// resource version.
func (s *Server) Compact(resourceVersion string) error {
	request, err := json.Marshal(map[string]any{"revision": resourceVersion, "physical": true})
	if err != nil {
		return err
	}
	return ask(http.DefaultClient, s.etcdURL()+"/v3/kv/compaction", string(request))
}

// Kill kills the API server as kill -9 does.
func (s *Server) Kill() { s.apiserver.stop(syscall.SIGKILL) }

// Pause stops the API server from doing anything until Resume.
func (s *Server) Pause() { s.apiserver.signal(syscall.SIGSTOP) }

// Resume ends a Pause.
func (s *Server) Resume() { s.apiserver.signal(syscall.SIGCONT) }

// Stop kills both.
func (s *Server) Stop() {
	s.apiserver.stop(syscall.SIGKILL)
	s.etcd.stop(syscall.SIGKILL)
}

// Remove removes the data; call Stop before.
func (s *Server) Remove() error { return os.RemoveAll(s.dir) }

// LogEnd is the last part of the API server's log.
func (s *Server) LogEnd() string {
	const most = 4000
	text, err := os.ReadFile(s.path("kube-apiserver.log"))
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-most):])
}

func (p *program) start(cmd *exec.Cmd, log string) error {
	f, err := os.OpenFile(log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open the log of %s: %w", cmd.Path, err)
	}
	defer func() { _ = f.Close() }() // the program has its own
	cmd.Stdout, cmd.Stderr = f, f
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait() // killed, or await tells that it is gone
		close(done)
	}()
	p.mu.Lock()
	p.cmd, p.done = cmd, done
	p.mu.Unlock()
	return nil
}

func (p *program) await(name string, works func() error) error {
	const pause = 100 * time.Millisecond
	for end := time.Now().Add(startWithin); ; {
		err := works()
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s ended at its start: %w", name, err)
		case <-time.After(pause):
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s does not work within %s: %w", name, startWithin, err)
		}
	}
}

func (p *program) signal(s syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		_ = p.cmd.Process.Signal(s) // it has ended
	}
}

func (p *program) stop(s syscall.Signal) {
	p.signal(s)
	p.mu.Lock()
	done := p.done
	p.cmd = nil
	p.mu.Unlock()
	if done != nil {
		<-done
	}
}
