package kube_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/yairfalse/tapio/shared/kube"
)

func newRedactor() *kube.Redactor { return kube.NewRedactor([]byte("a key of the tests")) }

func TestTextsLoseTheirSecretsAndNothingElse(t *testing.T) {
	const random = "kJ8sQ2mZ4xW7vB1nL9pR3tY6uD5fG0hA"
	for text, want := range map[string]string{
		// What secrets look like.
		"password=hunter2 and more":                                    "password=[redacted] and more",
		`{"client_secret":"a b","x":1}`:                                `{"client_secret":[redacted],"x":1}`,
		"DB_PASSWORD: 'a b' is wrong":                                  "DB_PASSWORD: [redacted] is wrong",
		"apiKey = abc, next":                                           "apiKey = [redacted], next",
		"curl -H Authorization: Bearer abc.def-ghi":                    "curl -H Authorization: [redacted] [redacted]",
		"sent Bearer abcdefgh":                                         "sent Bearer [redacted]",
		"sent Basic YXBpOmh1bnRlcjI=":                                  "sent Basic [redacted]",
		"postgres://api:p@ss/w@db:5432/x failed":                       "postgres://[redacted]@db:5432/x failed",
		"mysql --password hunter2 -h db":                               "mysql --password [redacted] -h db",
		"a -----BEGIN RSA PRIVATE KEY-----\nabc\ndef":                  "a [redacted]",
		"-----BEGIN CERTIFICATE-----\na\n-----END CERTIFICATE-----\nb": "[redacted]\nb",
		"jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln":                "jwt [redacted]",
		"id AKIAIOSFODNN7EXAMPLE":                                      "id [redacted]",
		"with ghp_0123456789abcdefghij":                                "with [redacted]",
		"with xoxb-1234-abcd":                                          "with [redacted]",
		"with sk-proj-abcdefghijklmnopqrstuvwx":                        "with [redacted]",
		"with " + random + ".":                                         "with [redacted].",
		"mount -o user=x,pass=a,b&c; failed":                           "mount -o user=x,pass=[redacted]; failed",
		"DBPASS: x":                                                    "DBPASS: [redacted]",
		"PASSWORD=a,b;c d":                                             "PASSWORD=[redacted] d",
		"https://b/x?sv=1&sig=ab%2Bc":                                  "https://b/x?sv=1&sig=[redacted]",
		"[mysqladmin ping -h db -phunter2] failed":                     "[mysqladmin ping -h db -p[redacted] failed",
		"redis-cli -a hunter2 ping":                                    "redis-cli -a [redacted] ping",
		"curl -u admin:hunter2 http://x":                               "curl -u admin:[redacted] http://x",
		// What does not.
		"tests passed: 5, -path=x": "tests passed: 5, -path=x",
		"":                         "",
		"ok":                       "ok",
		`MountVolume.SetUp failed for volume "certs" : secret "api-tls" not found`:                                                  `MountVolume.SetUp failed for volume "certs" : secret "api-tls" not found`,
		`Error: couldn't find key password in Secret shop/db`:                                                                       `Error: couldn't find key password in Secret shop/db`,
		"manifest with digest: sha256:1eeb4c7316bacb1d4c8ead65571cd92dd21e27359f0d4917f1a5822a73b75db1":                             "manifest with digest: sha256:1eeb4c7316bacb1d4c8ead65571cd92dd21e27359f0d4917f1a5822a73b75db1",
		"Basic authentication failed":                                                                                               "Basic authentication failed",
		"0/2 nodes are available: 2 Insufficient cpu.":                                                                              "0/2 nodes are available: 2 Insufficient cpu.",
		`Back-off restarting failed container api in pod task-runner-7d9c5b6f88-abcde_shop(a49e0345-24c7-4c39-b2fd-07b6b3fc99d0)`:   `Back-off restarting failed container api in pod task-runner-7d9c5b6f88-abcde_shop(a49e0345-24c7-4c39-b2fd-07b6b3fc99d0)`,
		"registry.example/team/disk-usage-exporter-service@sha256:1eeb4c7316bacb1d4c8ead65571cd92dd21e27359f0d4917f1a5822a73b75db1": "registry.example/team/disk-usage-exporter-service@sha256:1eeb4c7316bacb1d4c8ead65571cd92dd21e27359f0d4917f1a5822a73b75db1",
		"/var/lib/kubelet/pods/a49e0345-24c7-4c39-b2fd-07b6b3fc99d0/volumes/kubernetes.io~projected/x":                              "/var/lib/kubelet/pods/a49e0345-24c7-4c39-b2fd-07b6b3fc99d0/volumes/kubernetes.io~projected/x",
		"requiredDuringSchedulingIgnoredDuringExecution":                                                                            "requiredDuringSchedulingIgnoredDuringExecution",
	} {
		require.Equal(t, want, newRedactor().Text(text))
	}
	long := newRedactor().Text(strings.Repeat("ä", kube.MaxText))
	require.LessOrEqual(t, len(long), kube.MaxText)
	require.True(t, utf8.ValidString(long))
}

func TestSettingsAreToldWhenTheyAreHarmless(t *testing.T) {
	r := newRedactor()
	hidden := r.Digest
	for _, test := range []struct{ name, value, want string }{
		{"LOG_LEVEL", "info", "info"},
		{"LOG_LEVEL", "inof", hidden("inof")},
		{"WORKERS", "16", "16"},
		{"TIMEOUT", "1m30s", "1m30s"},
		{"GOMEMLIMIT", "400MiB", "400MiB"},
		{"CACHE", "1.5Gi", "1.5Gi"},
		{"ENABLED", "true", "true"},
		{"EMPTY", "", ""},
		{"PASSWORD", "", ""},
		{"USE_TOKEN_AUTH", "true", "true"},
		{"X", "$(POD_IP)", "$(POD_IP)"},
		{"SUBNET", "10.244.0.0/16", "10.244.0.0/16"},
		{"PIN", "1234", hidden("1234")},
		{"DB_PASSWORD", "123456", hidden("123456")},
		{"API_KEY", "info", hidden("info")},
		{"NAME", "anything", hidden("anything")},
		{"CARD", "4111111111111111111111", hidden("4111111111111111111111")},
		{"CART_ADDR", "cart:7070", "cart:7070"},
		{"AUTH_ADDR", "auth.shop:8080", "auth.shop:8080"},
		{"DB_HOST", "db.shop.svc", "db.shop.svc"},
		{"LISTEN", ":8080", ":8080"},
		{"listen-addr", "[::1]:80", "[::1]:80"},
		{"PORT", "8080", "8080"},
		{"SERVERS", "a:1,b:2", "a:1,b:2"},
		{"URL", "http://payment:8080", "http://payment:8080"},
		{"URL", "http://payment:8080/", "http://payment:8080"},
		{"URL", "http://payment/v1?a=b", "http://payment/" + hidden("v1?a=b")},
		{"DB_URL", "postgres://u:p@db:5432/x", "postgres://db:5432/" + hidden("u:p@db:5432/x")},
		{"DB_URL", "postgres://u:p/w@db:5432", "postgres://db:5432/" + hidden("u:p/w@db:5432")},
		{"DB_HOST", "Not a host", hidden("Not a host")},
		{"TOKEN_HOST", "hunter2", hidden("hunter2")},
		{"EXPORT", "hunter2", hidden("hunter2")},
		{"CARD", "4111111111111", hidden("4111111111111")},
		{"SINCE", "1764000000", "1764000000"},
		{"DB_HOST", "u:p@db", hidden("u:p@db")},
		{"TLS_CERT_FILE", "/etc/tls/tls.crt", "/etc/tls/tls.crt"},
		{"KEY_FILE", "hunter2", hidden("hunter2")},
	} {
		require.Equal(t, test.want, r.Setting(test.name, test.value), "%s=%s", test.name, test.value)
	}
}

func TestCommandLines(t *testing.T) {
	r := newRedactor()
	d := r.Digest
	words := []string{"/bin/app", "serve", "--listen=:80", "--level", "debug", "--token", "--x", "-pSECRET", "-v", "-Xmx512m", "A=1", "B_PASSWORD=x", "$(HOME)", "-config=/etc/app/x.yaml", "sh -c x"}
	want := []string{"/bin/app", d("serve"), "--listen=:80", "--level", "debug", "--token", d("--x"), d("-pSECRET"), "-v", "-Xmx512m", "A=1", "B_PASSWORD=" + d("x"), "$(HOME)", "-config=/etc/app/x.yaml", d("sh -c x")}
	require.Equal(t, want, r.Arguments(words, true))
	require.Equal(t, []string{"-p", "8080", "-a", d("20261122"), "-t=" + d("123456"), "-c", "$(A_NAME)"}, r.Arguments([]string{"-p", "8080", "-a", "20261122", "-t=123456", "-c", "$(A_NAME)"}, false))
	require.Equal(t, d("/bin/app"), r.Arguments(words, false)[0])
}

func TestAnnotations(t *testing.T) {
	r := newRedactor()
	for name, want := range map[string]string{
		"deployment.kubernetes.io/revision": "3", "kubectl.kubernetes.io/restartedAt": "3", "kubernetes.io/change-cause": r.Digest("3"), "anything": r.Digest("3"),
	} {
		got, told := r.Annotation(name, "3")
		require.True(t, told, name)
		require.Equal(t, want, got, name)
	}
	for _, name := range []string{"kubectl.kubernetes.io/last-applied-configuration", "control-plane.alpha.kubernetes.io/leader"} {
		_, told := r.Annotation(name, "3")
		require.False(t, told, name)
	}
}

func TestLinesOfProperties(t *testing.T) {
	r := newRedactor()
	require.Equal(t, []kube.Line{{"a", "1"}, {"db.password", r.Digest("x=y")}, {"host", "db"}}, r.Lines("# c\n\na=1\ndb.password = x=y\nhost: db\n"))
	require.Equal(t, []kube.Line{{"A_B", ""}, {"c.d", ""}}, r.Lines("A_B=\nc.d=\n"))
	for _, text := range []string{"c2VjcmV0aHVudGVyMg==\n", "c2VjcmV0aHVudGVyMjM=\n", "", "a=1", "a=1\nplain\n", "a=1\na=2\n", "-----BEGIN X-----\na=1\n", "{\n\"a\": 1\n}", strings.Repeat("a=1\n", 500), "ghp_0123456789abcdefghij=1\na=1\n"} {
		require.Empty(t, r.Lines(text), "%q", text)
	}
}

// What is evidently a secret survives nowhere, whatever stands around it.
func FuzzRedact(f *testing.F) {
	f.Add("LOG_LEVEL", "info", " and ")
	f.Add("DB_URL", "postgres://u:p@h/", "?")
	f.Add("a", "-----BEGIN", "=")
	f.Fuzz(func(t *testing.T, name, before, after string) {
		r := newRedactor()
		for _, secret := range []string{"ghp_0123456789abcdefghijABCDEFGHIJ", "AKIAIOSFODNN7EXAMPLE"} {
			text := before + " " + secret + " " + after
			told := []string{r.Text(text), r.Value(text), r.Setting(name, text), r.Path(text), r.Quantity(text)}
			annotation, _ := r.Annotation(name, text)
			told = append(told, annotation)
			told = append(told, r.Arguments([]string{name, before, secret, after, text}, true)...)
			for _, line := range r.Lines(text + "\na=" + secret) {
				told = append(told, line.Name, line.Value)
			}
			for _, s := range told {
				require.True(t, utf8.ValidString(s) || !utf8.ValidString(name+before+after))
				if !strings.Contains(name+before+after, secret) {
					require.NotContains(t, s, secret)
				}
			}
		}
	})
}

func BenchmarkText(b *testing.B) {
	r := newRedactor()
	b.ReportAllocs()
	for b.Loop() {
		r.Text(`Back-off restarting failed container api in pod task-runner-7d9c5b6f88-abcde_shop(a49e0345-24c7-4c39-b2fd-07b6b3fc99d0)`)
	}
}

func TestLabels(t *testing.T) {
	r := newRedactor()
	require.Equal(t, "web", r.Label("app", "web"))
	require.Equal(t, "7d9c5b6f88", r.Label("pod-template-hash", "7d9c5b6f88"))
	require.Equal(t, r.Digest("hunter2"), r.Label("example.org/db-password", "hunter2"))
	require.Equal(t, "v1", r.Label("security.istio.io/tlsMode-compass", "v1"))
}
