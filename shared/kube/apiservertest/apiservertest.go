// Package apiservertest runs a real Kubernetes API server for tests: etcd and
// kube-apiserver as processes of their own, on loopback, without nodes and
// controllers.
package apiservertest

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/yairfalse/tapio/shared/certs/certstest"
)

// AssetsVariable names the environment variable with the folder that holds the
// programs etcd and kube-apiserver. Other projects use the same.
const AssetsVariable = "KUBEBUILDER_ASSETS"

const (
	// token is that of a user who may do anything. Others are had by
	// impersonation: rest.Config.Impersonate.
	token = "administrator"
	// startWithin is generous: a loaded machine with two cores takes a while.
	startWithin = 90 * time.Second
	stopWithin  = 30 * time.Second
)

// Server is an API server and its etcd. Its methods fail the test when
// something cannot be done; they may not be called at the same time.
type Server struct {
	t      testing.TB
	dir    string
	assets string
	flags  []string

	apiPort, etcdPort int
	etcd, apiserver   *process
	ca, cert, key     string
}

// Start starts both programs, kube-apiserver with further flags, and ends them
// with the test. It skips the test where AssetsVariable is not set.
func Start(t testing.TB, flags ...string) *Server {
	t.Helper()
	assets := os.Getenv(AssetsVariable)
	if assets == "" {
		t.Skipf("%s does not name a folder with etcd and kube-apiserver", AssetsVariable)
	}
	authority := certstest.NewAuthority(t, "apiservertest")
	files := authority.Side(t, "kube-apiserver")
	ports := freePorts(t, 3)
	s := &Server{
		t: t, dir: t.TempDir(), assets: assets, flags: flags,
		apiPort: ports[0], etcdPort: ports[1],
		ca: files.CA, cert: files.Cert, key: files.Key,
	}
	require.NoError(t, os.WriteFile(filepath.Join(s.dir, "tokens"), []byte(token+",admin,1,system:masters\n"), 0o600))

	peer := fmt.Sprintf("http://127.0.0.1:%d", ports[2])
	s.etcd = s.start("etcd",
		"--data-dir="+filepath.Join(s.dir, "etcd"), "--unsafe-no-fsync", "--log-level=error",
		"--listen-client-urls="+s.etcdURL(), "--advertise-client-urls="+s.etcdURL(),
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=default="+peer)
	t.Cleanup(func() { s.etcd.end(syscall.SIGKILL) })
	s.StartAPI()
	return s
}

// Config returns how to connect as a user who may do anything. The caller may
// change it.
func (s *Server) Config() *rest.Config {
	return &rest.Config{
		Host: fmt.Sprintf("https://127.0.0.1:%d", s.apiPort), BearerToken: token,
		TLSClientConfig: rest.TLSClientConfig{CAFile: s.ca}, QPS: -1,
	}
}

// Kubeconfig writes a kubeconfig of Config and returns its path.
func (s *Server) Kubeconfig() string {
	s.t.Helper()
	const name = "test"
	config := clientcmdapi.NewConfig()
	config.Clusters[name] = &clientcmdapi.Cluster{Server: s.Config().Host, CertificateAuthority: s.ca}
	config.AuthInfos[name] = &clientcmdapi.AuthInfo{Token: token}
	config.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	config.CurrentContext = name
	file := filepath.Join(s.dir, "kubeconfig")
	require.NoError(s.t, clientcmd.WriteToFile(*config, file))
	return file
}

// StartAPI starts the API server, which was stopped or killed before, and waits
// until it is ready. It has the address it had.
func (s *Server) StartAPI() {
	s.t.Helper()
	args := append([]string{
		"--etcd-servers=" + s.etcdURL(),
		"--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--secure-port=" + strconv.Itoa(s.apiPort),
		"--endpoint-reconciler-type=none", "--service-cluster-ip-range=10.96.0.0/16",
		"--cert-dir=" + s.dir, "--tls-cert-file=" + s.cert, "--tls-private-key-file=" + s.key,
		"--token-auth-file=" + filepath.Join(s.dir, "tokens"), "--authorization-mode=RBAC",
		"--service-account-issuer=https://apiservertest", "--service-account-key-file=" + s.cert, "--service-account-signing-key-file=" + s.key,
		// Without its controller nobody makes the accounts that it asks for.
		"--disable-admission-plugins=ServiceAccount", "--allow-privileged",
	}, s.flags...)
	s.apiserver = s.start("kube-apiserver", args...)
	p := s.apiserver
	s.t.Cleanup(func() { p.end(syscall.SIGKILL) })
	s.awaitReady()
}

// StopAPI ends the API server in order.
func (s *Server) StopAPI() { s.apiserver.end(syscall.SIGTERM) }

// KillAPI ends the API server at once.
func (s *Server) KillAPI() { s.apiserver.end(syscall.SIGKILL) }

// PauseAPI lets the API server hang, with its connections open, until ResumeAPI.
func (s *Server) PauseAPI() {
	s.t.Helper()
	require.NoError(s.t, s.apiserver.cmd.Process.Signal(syscall.SIGSTOP))
}

// ResumeAPI ends a PauseAPI.
func (s *Server) ResumeAPI() {
	s.t.Helper()
	require.NoError(s.t, s.apiserver.cmd.Process.Signal(syscall.SIGCONT))
}

// Revision returns etcd's current revision, which is the newest
// resourceVersion.
func (s *Server) Revision() int64 {
	s.t.Helper()
	var answer struct {
		Header struct {
			Revision int64 `json:"revision,string"`
		} `json:"header"`
	}
	s.call("kv/range", map[string]any{"key": base64.StdEncoding.EncodeToString([]byte("/registry")), "keys_only": true}, &answer)
	return answer.Header.Revision
}

// Compact makes etcd forget everything before a revision. A watch from before
// it gets 410 Gone once the API server's own memory of it is gone, too, which a
// restart does.
func (s *Server) Compact(revision int64) {
	s.t.Helper()
	s.call("kv/compaction", map[string]any{"revision": strconv.FormatInt(revision, 10), "physical": true}, &struct{}{})
}

// call calls etcd through its HTTP gateway.
func (s *Server) call(method string, request, answer any) {
	s.t.Helper()
	body, err := json.Marshal(request)
	require.NoError(s.t, err)
	ctx, cancel := context.WithTimeout(context.Background(), startWithin)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.etcdURL()+"/v3/"+method, bytes.NewReader(body))
	require.NoError(s.t, err)
	response, err := http.DefaultClient.Do(r)
	require.NoError(s.t, err)
	defer func() { _ = response.Body.Close() }() // only read
	text, err := io.ReadAll(response.Body)
	require.NoError(s.t, err)
	require.Equal(s.t, http.StatusOK, response.StatusCode, "etcd %s: %s", method, text)
	require.NoError(s.t, json.Unmarshal(text, answer))
}

func (s *Server) etcdURL() string { return fmt.Sprintf("http://127.0.0.1:%d", s.etcdPort) }

func (s *Server) awaitReady() {
	s.t.Helper()
	transport, err := rest.TransportFor(s.Config())
	require.NoError(s.t, err)
	client := &http.Client{Transport: transport, Timeout: time.Second}
	defer client.CloseIdleConnections()
	deadline := time.Now().Add(startWithin)
	for {
		response, err := client.Get(s.Config().Host + "/readyz")
		if err == nil {
			_ = response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return
			}
			err = errors.New(response.Status)
		}
		select {
		case <-s.apiserver.ended:
			s.t.Fatalf("kube-apiserver ended:\n%s", s.apiserver.tail())
		case <-s.etcd.ended:
			s.t.Fatalf("etcd ended:\n%s", s.etcd.tail())
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("kube-apiserver is not ready after %s: %v\n%s", startWithin, err, s.apiserver.tail())
		}
	}
}

// process is one of the two programs.
type process struct {
	cmd   *exec.Cmd
	log   string
	ended chan struct{}
}

func (s *Server) start(program string, args ...string) *process {
	s.t.Helper()
	log, err := os.CreateTemp(s.dir, program+"-*.log")
	require.NoError(s.t, err)
	defer func() { _ = log.Close() }() // the process has its own
	cmd := exec.Command(filepath.Join(s.assets, program), args...)
	cmd.Stdout, cmd.Stderr = log, log
	// They end with the test binary, even if that is killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	require.NoError(s.t, cmd.Start(), "start %s", program)
	p := &process{cmd: cmd, log: log.Name(), ended: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // how it ended is in its log
		close(p.ended)
	}()
	return p
}

// end ends the process, by force if it takes long.
func (p *process) end(signal syscall.Signal) {
	_ = p.cmd.Process.Signal(signal) // it may have ended
	select {
	case <-p.ended:
	case <-time.After(stopWithin):
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
}

// tail returns the end of what the process has said.
func (p *process) tail() string {
	const much = 4096
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-much):])
}

// freePorts returns ports of loopback that nobody listens on. Somebody may take
// one before it is used, which ends the test with a message that says so.
func freePorts(t testing.TB, n int) []int {
	t.Helper()
	ports := make([]int, n)
	for i := range ports {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer func() { _ = listener.Close() }() // all at the end, so that they differ
		address, err := netip.ParseAddrPort(listener.Addr().String())
		require.NoError(t, err)
		ports[i] = int(address.Port())
	}
	return ports
}
