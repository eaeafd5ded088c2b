package main

import "time"

// scenarios are what the suite tries, the ones that break nodes last.
func scenarios() []scenario {
	return []scenario{
		{
			name: "memory-limit", about: "a rollout lowers the memory limit: OOM kills, and callers are refused",
			faults: []string{"kubectl set resources deployment/api --limits=memory=32Mi"},
			want: []want{{
				root: "deployment/api", mode: "memory_limit_lowered", ask: "deployment/e2e-memory-limit/api",
				chain:    []string{"k8s.deployment.updated deployment/api", "k8s.replicaset.created replicaset/api-*", "container.oom_kill container/*"},
				symptoms: []string{"container.oom_kill container/*", "network.connection_refused container/app"},
				says:     []string{"OOM-killed", "memory limit 128Mi → 32Mi"},
			}},
		},
		{
			name: "leak", about: "a container leaks memory with each call: OOM kills, of which all that is known is that it is new", early: true,
			faults: []string{"kubectl scale deployment/web --replicas=1"},
			want: []want{{
				root: "deployment/leaky", mode: "first_rollout_too_small", ask: "deployment/e2e-leak/leaky",
				chain: []string{"k8s.deployment.created deployment/leaky", "container.oom_kill container/*"}, symptoms: []string{"container.oom_kill container/*"},
				says: []string{"was created", "OOM-killed"},
			}},
		},
		{
			name: "image-tag", about: "a rollout names an image that there is not",
			faults: []string{"kubectl set image deployment/api app=" + testImage + ":nowhere"},
			want: []want{{
				root: "deployment/api", mode: "image_changed", ask: "deployment/e2e-image-tag/api",
				chain: []string{"k8s.deployment.updated deployment/api", "k8s.pod.created pod/api-*", "* pod/api-*"},
				says:  []string{"cannot be pulled", testImage + ":nowhere"},
			}},
		},
		{
			name: "configmap-crash", about: "a ConfigMap changes, and pods crash after a rollout restart",
			faults: []string{
				`kubectl patch configmap settings --type=merge -p {"data":{"app.conf":"mode=evil"}}`,
				"kubectl rollout restart deployment/api",
			},
			want: []want{{
				root: "configmap/settings", mode: "config_changed", ask: "deployment/e2e-configmap-crash/api",
				chain: []string{"k8s.configmap.updated configmap/settings", "container.exit_error container/*|k8s.pod.updated pod/api-*"},
				says:  []string{"exit code 1", "ConfigMap"},
			}},
		},
		{
			name: "selector", about: "the selector of a Service matches no pod any more: callers are refused",
			faults: []string{`kubectl patch service api -p {"spec":{"selector":{"app":"apj"}}}`},
			want: []want{{
				root: "service/api", mode: "selector_changed", ask: "deployment/e2e-selector/web",
				chain:    []string{"k8s.service.updated service/api", "network.connection_* *"},
				symptoms: []string{"network.connection_refused container/app"},
				says:     []string{"refused", "selector"},
			}},
		},
		{
			name: "service-deleted", about: "a Service is deleted that others call",
			faults: []string{"kubectl delete service api"},
			want: []want{{
				root: "service/api", mode: "service_deleted", ask: "deployment/e2e-service-deleted/web",
				chain: []string{"k8s.service.deleted service/api", "network.connection_* *"},
			}},
		},
		{
			name: "scale-to-zero", about: "a Deployment that others call is scaled to zero",
			faults: []string{"kubectl scale deployment/api --replicas=0"},
			want: []want{{
				root: "deployment/api", mode: "scaled_down", ask: "deployment/e2e-scale-to-zero/web",
				chain: []string{"k8s.deployment.updated deployment/api", "network.connection_* *"},
				says:  []string{"connections of", "replicas"},
			}},
		},
		{
			name: "quota", about: "a Deployment is scaled beyond the quota of its namespace",
			faults: []string{"kubectl scale deployment/api --replicas=6"},
			want: []want{{
				root: "deployment/api", mode: "scaled_beyond_quota", ask: "deployment/e2e-quota/api",
				chain: []string{"k8s.deployment.updated deployment/api", "k8s.event.FailedCreate replicaset/api-*"},
				says:  []string{"exceeded quota", "replicas 1 → 6"},
			}},
		},
		{
			name: "unschedulable", about: "a rollout asks for more CPU than any node has; the scheduler's metrics say so too",
			faults: []string{"kubectl set resources deployment/api --requests=cpu=64"},
			want: []want{{
				root: "deployment/api", mode: "requests_raised", ask: "deployment/e2e-unschedulable/api",
				chain: []string{"k8s.deployment.updated deployment/api", "k8s.pod.created pod/api-*", "k8s.event.FailedScheduling pod/api-*|k8s.pod.updated pod/api-*"},
				later: []string{"scheduler.unschedulable *"},
				says:  []string{"no node", "CPU request"},
			}},
		},
		{
			name: "missing-secret", about: "a rollout refers to a Secret that there is not",
			faults: []string{`kubectl patch deployment api -p {"spec":{"template":{"spec":{"containers":[{"name":"app","env":[{"name":"DB_PASSWORD","valueFrom":{"secretKeyRef":{"name":"nowhere","key":"password"}}}]}]}}}}`},
			want: []want{{
				root: "deployment/api", mode: "reference_changed", ask: "deployment/e2e-missing-secret/api",
				chain: []string{"k8s.deployment.updated deployment/api", "k8s.pod.created pod/api-*", "* pod/api-*"},
				says:  []string{"cannot start"},
			}},
		},
		{
			name: "configmap-deleted", about: "a ConfigMap is deleted, and pods that need it cannot start",
			faults: []string{"kubectl delete configmap settings", "kubectl rollout restart deployment/api"},
			want: []want{{
				root: "configmap/settings", mode: "config_deleted", ask: "deployment/e2e-configmap-deleted/api",
				chain: []string{"k8s.configmap.deleted configmap/settings", "* pod/api-*"},
				says:  []string{"cannot start"},
			}},
		},
		{
			name: "bad-version", about: "a rollout sets an environment variable with which the program ends at once",
			faults: []string{"kubectl set env deployment/api MODE=evil"},
			want: []want{{
				root: "deployment/api", mode: "new_settings_fail", ask: "deployment/e2e-bad-version/api",
				chain: []string{"k8s.deployment.updated deployment/api", "k8s.pod.created pod/api-*", "container.exit_error *|k8s.pod.updated pod/api-*"},
				says:  []string{"exit code 1", "environment MODE"},
			}},
		},
		{
			name: "liveness-port", about: "a rollout has the liveness probe ask a port that nobody listens on",
			faults: []string{`kubectl patch deployment api -p {"spec":{"template":{"spec":{"containers":[{"name":"app","livenessProbe":{"tcpSocket":{"port":8099}}}]}}}}`},
			want: []want{{
				root: "deployment/api", mode: "probe_changed", ask: "deployment/e2e-liveness-port/api",
				chain: []string{"k8s.deployment.updated deployment/api", "k8s.event.Unhealthy pod/api-*"},
				says:  []string{"liveness probe"},
			}},
		},
		{
			name: "readiness-port", about: "a rollout has the readiness probe ask a port that nobody listens on",
			faults: []string{`kubectl patch deployment api -p {"spec":{"template":{"spec":{"containers":[{"name":"app","readinessProbe":{"tcpSocket":{"port":8099}}}]}}}}`},
			want: []want{{
				root: "deployment/api", mode: "probe_changed", ask: "deployment/e2e-readiness-port/api",
				chain: []string{"k8s.deployment.updated deployment/api", "k8s.pod.created pod/api-*", "k8s.event.Unhealthy pod/api-*"},
				says:  []string{"fails its probes", "8080 → 8099"},
			}},
		},
		{
			name: "storage-class", about: "a new Deployment claims storage of a class that there is not",
			unsettled: true,
			want: []want{{
				root: "pvc/data", mode: "claim_missing", ask: "deployment/e2e-storage-class/db",
				chain:    []string{"k8s.pvc.created pvc/data", "* p*"},
				symptoms: []string{"k8s.event.FailedScheduling pod/db-*", "k8s.event.ProvisioningFailed pvc/data"},
			}},
		},
		{
			name: "job-fails", about: "a Job fails each time",
			unsettled: true,
			want: []want{{
				root: "job/report", mode: "fails_from_the_start", ask: "job/e2e-job-fails/report",
				chain: []string{"k8s.job.created job/report", "container.exit_error *|k8s.pod.updated pod/report-*"},
				says:  []string{"exit code 3"},
			}},
		},
		{
			name: "healthy", about: "a rollout, scaling, a restart, a Job and a deletion that all go well: nothing is told",
			faults: []string{
				"kubectl set image deployment/api app=" + testImage + ":2",
				"kubectl rollout status deployment/api --timeout=90s",
				"kubectl scale deployment/api --replicas=3",
				"kubectl rollout status deployment/api --timeout=90s",
				"kubectl scale deployment/api --replicas=1",
				"kubectl rollout restart deployment/api",
				"kubectl rollout status deployment/api --timeout=90s",
				"kubectl delete deployment/idle",
			},
			quiet: 20 * time.Second,
		},
		{
			name: "secrets", about: "secrets are everywhere and change: none of them leaves the cluster",
			faults: []string{
				"kubectl set env deployment/api DB_PASSWORD=${SECRET} API_TOKEN=${SECRET} DATABASE_URL=postgres://app:${SECRET}@db:5432/shop",
				`kubectl patch secret login -p {"stringData":{"password":"${SECRET}"}}`,
				`kubectl patch configmap settings -p {"data":{"db.password":"${SECRET}"}}`,
				"kubectl annotate deployment/api --overwrite vault.example.com/token=${SECRET}",
				`kubectl patch deployment api --type=json -p [{"op":"add","path":"/spec/template/spec/containers/0/args/-","value":"-password=${SECRET}"}]`,
				"kubectl rollout status deployment/api --timeout=90s",
			},
			quiet: 10 * time.Second,
		},
		{
			name: "drain", about: "a node is drained: one Deployment finds no other node, one moves on", onNode: true,
			faults: []string{"kubectl drain ${NODE} --ignore-daemonsets --delete-emptydir-data --force --timeout=60s --pod-selector=e2e=drain"},
			mends:  []string{"kubectl uncordon ${NODE}"},
			want: []want{{
				root: "node/*", mode: "node_cordoned", ask: "deployment/e2e-drain/bound",
				chain: []string{"k8s.node.updated node/*", "k8s.event.FailedScheduling pod/bound-*|k8s.pod.updated pod/bound-*"},
				says:  []string{"no node"},
			}},
		},
		{
			name: "paused-node", about: "a node stops answering: it and what depends on it is one incident", onNode: true, patient: true, within: 2 * time.Minute,
			faults: []string{"docker pause ${NODE}"},
			mends:  []string{"docker unpause ${NODE}", "kubectl wait node/${NODE} --for=condition=Ready --timeout=90s"},
			want: []want{{
				root: "node/*", says: []string{"is not ready"}, ask: "node/",
				first: "k8s.node.updated node/*|k8s.event.NodeNotReady node/*",
				chain: []string{"k8s.node.updated node/*|k8s.event.NodeNotReady node/*"},
			}},
		},
	}
}
