package change_test

import (
	"encoding/base64"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/yairfalse/tapio/portti/internal/change"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
)

// planted is the secret of these tests. It has no form that anybody could know it
// by: only its place, or what stands before it, tells that it is one.
const planted = "hunter2-PLANTED"

// Objects with the secret in each place that may hold one. SECRET stands for it,
// BASE64 for its encoding.
const objectsWithSecrets = `
apiVersion: v1
kind: Secret
metadata:
  {name: s, namespace: ns, uid: u1, resourceVersion: "1", annotations: {kubectl.kubernetes.io/last-applied-configuration: '{"stringData":{"a":"SECRET"}}', note: SECRET}}
data: {password: BASE64, tls.key: BASE64}
stringData: {password: SECRET}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: c, namespace: ns, uid: u2, resourceVersion: "1", annotations: {kubernetes.io/change-cause: kubectl set env PASSWORD=SECRET, kubernetes.io/psp: "password=SECRET"}}
data:
  plain: SECRET
  DB_PASSWORD: SECRET
  LOG_LEVEL: SECRET
  DB_URL: "postgres://user:SECRET@db:5432/app?password=SECRET#SECRET"
  HOOK_URL: "https://hooks.example/services/SECRET"
  AMQP_ADDR: "amqp://user:pass/SECRET@mq:5672"
  DSN_SERVER: "user:SECRET@tcp(db:3306)/app"
  CERT_FILE: SECRET
  app.properties: "a=1\ndb.password=SECRET\nother=SECRET\nurl=http://u:SECRET@h/\n"
  colon.properties: "a: 1\nb: SECRET\n"
  config.json: "{\n  \"password\": \"SECRET\",\n  \"x\": \"SECRET\"\n}"
  htpasswd: "SECRET\nadmin:SECRET\n"
  script.sh: "#!/bin/sh\nexport TOKEN=SECRET\n"
binaryData: {blob: BASE64}
---
apiVersion: v1
kind: Pod
metadata:
  {name: p, namespace: ns, uid: u3, resourceVersion: "1", annotations: {vault.example/token: SECRET, kubectl.kubernetes.io/last-applied-configuration: SECRET}, labels: {note: "token=SECRET", db-password: SECRET}, managedFields: [{manager: SECRET}]}
spec: &spec
  volumes:
  - {name: a, csi: {driver: d, volumeAttributes: {password: SECRET, share: "//nas/SECRET", plain: SECRET}}}
  - {name: b, flexVolume: {driver: d, options: {secret: SECRET, mountOptions: "user=x,pass=SECRET"}}}
  - {name: d, azureDisk: {diskName: d, diskURI: "https://disk.example/vhd?sv=1&x=SECRET"}}
  - {name: c, gitRepo: {repository: "https://user:SECRET@git.example/repo.git"}}
  initContainers:
  - {name: i, image: i, command: [sh, -c, "login --password SECRET"], env: [{name: A, value: SECRET}]}
  ephemeralContainers:
  - {name: e, image: i, args: [SECRET], env: [{name: A, value: SECRET}]}
  containers:
  - name: c
    image: i
    command: [/bin/app, SECRET, "--password=SECRET", "--token", SECRET, -pSECRET, -SECRET, "SECRET=1", "PASSWORD=SECRET", "--url=http://u:SECRET@h/SECRET?t=SECRET", "--header", "Authorization: SECRET", -D, "key=SECRET"]
    args: [SECRET, "--listen", SECRET, "-password=SECRET", "--db.url", "postgres://u:SECRET@h/db", "--password", "--SECRET"]
    env:
    - {name: PLAIN, value: SECRET}
    - {name: DB_PASSWORD, value: SECRET}
    - {name: DB_HOST, value: SECRET}
    - {name: DB_URL, value: "mysql://root:SECRET@db:3306/x?password=SECRET"}
    - {name: DB_URLS, value: "http://a:1,http://u:SECRET@b:2"}
    - {name: WEBHOOK_URL, value: "https://chat.example/hooks/SECRET"}
    - {name: REDIS_ADDR, value: ":SECRET@redis:6379"}
    - {name: KEY_FILE, value: SECRET}
    - {name: MULTI, value: "a=1\npassword=SECRET\n"}
    livenessProbe: {exec: {command: [check, SECRET, --password, SECRET]}}
    readinessProbe: {httpGet: {path: "/ready?token=SECRET", port: 1, httpHeaders: [{name: Authorization, value: SECRET}, {name: X-Token, value: SECRET}, {name: X-Any, value: SECRET}]}}
    startupProbe: {httpGet: {path: "/", port: 1, httpHeaders: [{name: Cookie, value: SECRET}]}}
    lifecycle: {preStop: {exec: {command: [curl, -H, "Authorization: Bearer SECRET"]}}, postStart: {httpGet: {path: "/?SECRET", port: 1, httpHeaders: [{name: A, value: SECRET}]}}}
status:
  message: "cannot log in with password=SECRET"
  reason: Failed
  conditions: [{type: Ready, status: "False", message: "Get http://user:SECRET@10.0.0.1:80/: refused"}]
  containerStatuses:
  - name: c
    state: {terminated: {reason: Error, exitCode: 1, message: "DB_PASSWORD=\"SECRET\" is wrong; Authorization: Bearer SECRET; {\"token\":\"SECRET\"} --api-key SECRET\n-----BEGIN PRIVATE KEY-----\nSECRET\n-----END PRIVATE KEY-----\n"}}
    lastState: {terminated: {reason: Error, exitCode: 1, message: "secret: 'SECRET' client_secret=SECRET&x=1 passwd = SECRET"}}
    "state2": {waiting: {reason: X, message: "X-Auth-Token: SECRET"}}
---
apiVersion: v1
kind: Event
metadata: {name: e, namespace: ns, uid: u4, resourceVersion: "1", annotations: {x: SECRET}}
involvedObject: {kind: Pod, namespace: ns, name: p, uid: u3, fieldPath: "spec.containers{c}"}
type: Warning
reason: Unhealthy
message: "Liveness probe failed: mysql://root:SECRET@db refused; password: SECRET; -----BEGIN RSA PRIVATE KEY-----\nSECRET"
lastTimestamp: "2026-03-03T14:00:00Z"
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: d, namespace: ns, uid: u5, resourceVersion: "1"}
spec:
  template:
    metadata: {annotations: {a: SECRET}}
    spec:
      containers: [{name: c, image: i, args: ["--password", SECRET], env: [{name: A, value: SECRET}, {name: A, value: "SECRET"}]}]
status: {conditions: [{type: Progressing, message: "pods \"x\" is forbidden: token=SECRET"}]}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: j, namespace: ns, uid: u6, resourceVersion: "1"}
spec: {jobTemplate: {spec: {template: {spec: {containers: [{name: c, image: i, command: [sh, -c, "curl -u x:SECRET"], env: [{name: A, value: SECRET}]}]}}}}}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: v, uid: u7, resourceVersion: "1"}
spec: {csi: {driver: d, volumeHandle: h, volumeAttributes: {storage.kubernetes.io/csiProvisionerIdentity: SECRET, a: SECRET}}, flexVolume: {options: {a: SECRET}}}
`

func TestNoSecretLeaves(t *testing.T) {
	p := newProjector(nil)
	encoded := base64.StdEncoding.EncodeToString([]byte(planted))
	fill := func(secret string) string {
		return strings.NewReplacer("SECRET", secret, "BASE64", base64.StdEncoding.EncodeToString([]byte(secret)), "&spec", "").Replace(objectsWithSecrets)
	}
	before, after := parse(t, fill("something else")), parse(t, fill(planted))
	require.Len(t, after, 7)
	for i, o := range after {
		k := kindOf(t, o)
		older, err := p.Version(k, before[i])
		require.NoError(t, err)
		v, err := p.Version(k, o)
		require.NoError(t, err)
		safe := func(what string, data []byte) {
			t.Helper()
			for _, secret := range []string{planted, strings.ToLower(planted), "PLANTED", encoded} {
				require.NotContains(t, string(data), secret, "%s of a %s", what, k.Kind)
			}
		}
		kept, err := v.MarshalBinary()
		require.NoError(t, err)
		safe("what is kept", kept)
		for what, e := range map[string]*eventv1.Event{
			"created": p.Created(k, v, change.Origin{SeenAt: seen()}), "deleted": p.Deleted(k, v, change.Origin{SeenAt: seen()}),
			"updated": p.Updated(k, older, v, change.Origin{SeenAt: seen()}),
		} {
			if e == nil {
				continue
			}
			valid(t, e)
			wire, err := proto.Marshal(e)
			require.NoError(t, err)
			safe(what, wire)
			text, err := protojson.Marshal(e)
			require.NoError(t, err)
			safe(what, text)
		}
		if k.Kind == "Secret" || k.Kind == "ConfigMap" {
			require.NotEmpty(t, p.Updated(k, older, v, change.Origin{SeenAt: seen()}).GetK8S().GetChanges(), "that a %s changed is seen", k.Kind)
		}
	}
}

// A digest must not be that of another key: whoever has the events could try words.
func TestDigestsNeedTheKey(t *testing.T) {
	const text = `
kind: Secret
metadata: {name: s, namespace: ns, uid: u, resourceVersion: "1"}
data: {password: aHVudGVyMg==}
`
	o := parse(t, text)[0]
	k := kindOf(t, o)
	of := func(key string) string {
		v, err := change.NewProjector(change.Config{DigestKey: []byte(key)}).Version(k, o)
		require.NoError(t, err)
		return v.Field("data[password]")
	}
	require.Regexp(t, `^digest:[0-9a-f]{16}$`, of("one"))
	require.Equal(t, of("one"), of("one"))
	require.NotEqual(t, of("one"), of("two"))
}
