// Package kube is what our programs share of the Kubernetes API: how they connect
// to it, and what of its objects may leave the cluster.
package kube

import (
	"errors"
	"fmt"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/yairfalse/tapio/shared/version"
)

// Config says which cluster to connect to.
type Config struct {
	// Kubeconfig is a file; empty for the files of KUBECONFIG, else
	// ~/.kube/config, else the account of the pod that this runs in.
	Kubeconfig string
	// Context of the file; empty for its current one.
	Context string
}

// ErrNoCluster tells that nobody said which cluster to connect to.
var ErrNoCluster = errors.New("no cluster: name a kubeconfig, or run in a pod with a service account")

// Connect returns how to connect, as the named program. It contacts nobody. The
// error is ErrNoCluster when there is neither a file nor an account.
func (c Config) Connect(program string) (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = c.Kubeconfig
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: c.Context})
	config, err := loader.ClientConfig()
	if err != nil {
		if clientcmd.IsEmptyConfig(err) && c.Kubeconfig == "" && c.Context == "" {
			return nil, ErrNoCluster
		}
		return nil, fmt.Errorf("read the kubeconfig: %w", err)
	}
	config.UserAgent = fmt.Sprintf("%s/%s", program, version.Number())
	// The API server's priority and fairness decides who waits; a limit here
	// would only hide that.
	config.QPS = -1
	return config, nil
}
