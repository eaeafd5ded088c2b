package apiservertest_test

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/rest"

	"github.com/yairfalse/tapio/shared/kube/apiservertest"
)

func TestStartsAgainWithItsData(t *testing.T) {
	s := apiservertest.Start(t)
	client, err := rest.HTTPClientFor(s.Config())
	require.NoError(t, err)
	get := func() (int, error) {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.Config().Host+"/api/v1/namespaces/default", http.NoBody)
		require.NoError(t, err)
		response, err := client.Do(request)
		if err != nil {
			return 0, err
		}
		return response.StatusCode, response.Body.Close()
	}
	status, err := get()
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status)
	s.Kill()
	_, err = get()
	require.Error(t, err)
	require.NoError(t, s.StartAPIServer())
	status, err = get()
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status)
	require.NoError(t, s.Compact("2"))
}
