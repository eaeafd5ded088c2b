package apiservertest_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/yairfalse/tapio/shared/kube/apiservertest"
)

// client talks to the core group.
func client(t *testing.T, config *rest.Config) *rest.RESTClient {
	scheme := runtime.NewScheme()
	require.NoError(t, corev1.AddToScheme(scheme))
	config.APIPath = "/api"
	config.GroupVersion = &corev1.SchemeGroupVersion
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	c, err := rest.RESTClientFor(config)
	require.NoError(t, err)
	return c
}

func TestServer(t *testing.T) {
	s := apiservertest.Start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()

	config, err := clientcmd.BuildConfigFromFlags("", s.Kubeconfig())
	require.NoError(t, err)
	c := client(t, config)
	create := func(name string) string {
		var made corev1.ConfigMap
		require.NoError(t, c.Post().Namespace("default").Resource("configmaps").
			Body(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}).Do(ctx).Into(&made))
		return made.ResourceVersion
	}
	first := create("first")
	create("second")

	// Objects outlive the server, which comes back at its address.
	s.KillAPI()
	s.StartAPI()
	require.NoError(t, c.Get().Namespace("default").Resource("configmaps").Name("first").Do(ctx).Error())

	// What was compacted is gone.
	s.Compact(s.Revision())
	s.StopAPI()
	s.StartAPI()
	w, err := c.Get().Namespace("default").Resource("configmaps").
		VersionedParams(&metav1.ListOptions{Watch: true, ResourceVersion: first}, metav1.ParameterCodec).Watch(ctx)
	if err == nil {
		defer w.Stop()
		e := <-w.ResultChan()
		err = apierrors.FromObject(e.Object)
	}
	require.True(t, apierrors.IsResourceExpired(err) || apierrors.IsGone(err), "%v", err)

	// Others may do what RBAC allows them: nothing.
	config = s.Config()
	config.Impersonate.UserName = "somebody"
	err = client(t, config).Get().Namespace("default").Resource("configmaps").Do(ctx).Error()
	require.True(t, apierrors.IsForbidden(err), "%v", err)
}
