{{- /* Labels of the component that is named. */ -}}
{{- define "tapio.labels" -}}
app.kubernetes.io/name: {{ . }}
app.kubernetes.io/part-of: tapio
{{- end }}

{{- /* Name of an image: list of the root and the component's values. */ -}}
{{- define "tapio.image" -}}
{{- $root := index . 0 }}{{ $component := index . 1 -}}
{{- with $root.Values.image.registry }}{{ trimSuffix "/" . }}/{{ end -}}
{{ $component.image }}:{{ $root.Values.image.tag | default $root.Chart.AppVersion }}
{{- end }}

{{- /* What all pods have: list of the root, the component's name and its values. */ -}}
{{- define "tapio.pod" -}}
{{- $root := index . 0 }}{{ $name := index . 1 }}{{ $component := index . 2 -}}
serviceAccountName: {{ $name }}
enableServiceLinks: false
priorityClassName: {{ $root.Values.priorityClass.name }}
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- with $component.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $component.tolerations }}
tolerations:
{{- toYaml . | nindent 0 }}
{{- end }}
{{- end }}

{{- /* The pod's security of all that is not root; true for one with volumes. */ -}}
{{- define "tapio.nonroot" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
{{- if . }}
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- /* The container's security of all that is not root. */ -}}
{{- define "tapio.unprivileged" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- /* Probes: the first may fail this often, every two seconds; the last is every so
many seconds. */ -}}
{{- define "tapio.probes" -}}
startupProbe:
  httpGet:
    path: /healthz
    port: metrics
  periodSeconds: 2
  failureThreshold: {{ index . 0 }}
livenessProbe:
  httpGet:
    path: /healthz
    port: metrics
  periodSeconds: 20
  timeoutSeconds: 5
readinessProbe:
  httpGet:
    path: /readyz
    port: metrics
  periodSeconds: {{ index . 1 }}
  timeoutSeconds: 5
{{- end }}

{{- /* Where the Secret for mutual TLS is mounted. */ -}}
{{- define "tapio.tlsDir" -}}/etc/tapio/tls{{- end }}

{{- /* Flags of who calls another component: list of the root and the flag's name. */ -}}
{{- define "tapio.clientTLS" -}}
{{- $root := index . 0 }}{{ $flag := index . 1 -}}
{{- if $root.Values.tls.secretName }}
- --{{ $flag }}-ca={{ include "tapio.tlsDir" . }}/ca.crt
- --{{ $flag }}-cert={{ include "tapio.tlsDir" . }}/tls.crt
- --{{ $flag }}-key={{ include "tapio.tlsDir" . }}/tls.key
{{- end }}
{{- end }}

{{- /* Flags of who is called: list of the root and the flag for the clients' authority. */ -}}
{{- define "tapio.serverTLS" -}}
{{- $root := index . 0 }}{{ $ca := index . 1 -}}
{{- if $root.Values.tls.secretName }}
- --tls-cert={{ include "tapio.tlsDir" . }}/tls.crt
- --tls-key={{ include "tapio.tlsDir" . }}/tls.key
- --{{ $ca }}={{ include "tapio.tlsDir" . }}/ca.crt
{{- end }}
{{- end }}

{{- define "tapio.tlsMount" -}}
{{- if .Values.tls.secretName }}
- name: tls
  mountPath: {{ include "tapio.tlsDir" . }}
  readOnly: true
{{- end }}
{{- end }}

{{- define "tapio.tlsVolume" -}}
{{- if .Values.tls.secretName }}
- name: tls
  secret:
    secretName: {{ .Values.tls.secretName | quote }}
{{- end }}
{{- end }}

{{- /* The claim of a StatefulSet: list of the root and the values for persistence. */ -}}
{{- define "tapio.claim" -}}
{{- $root := index . 0 }}{{ $persistence := index . 1 -}}
{{- if $persistence.enabled }}
volumeClaimTemplates:
- metadata:
    name: data
  spec:
    accessModes: [ReadWriteOnce]
    {{- with $persistence.storageClass | default $root.Values.storageClass }}
    storageClassName: {{ . | quote }}
    {{- end }}
    resources:
      requests:
        storage: {{ $persistence.size | quote }}
{{- end }}
{{- end }}

{{- /* The volumes of a StatefulSet: list of the root and the values for persistence. */ -}}
{{- define "tapio.volumes" -}}
{{- $root := index . 0 }}{{ $persistence := index . 1 -}}
{{- if or (not $persistence.enabled) $root.Values.tls.secretName }}
volumes:
{{- if not $persistence.enabled }}
- name: data
  emptyDir: {}
{{- end }}
{{- include "tapio.tlsVolume" $root }}
{{- end }}
{{- end }}

{{- /* Egress to whoever answers for names. */ -}}
{{- define "tapio.dns" -}}
- ports:
  - port: 53
    protocol: UDP
  - port: 53
{{- end }}

{{- define "tapio.apiServerPorts" -}}
{{- range .Values.networkPolicy.apiServerPorts }}
- port: {{ . | int }}
{{- end }}
{{- end }}

{{- /* Port of a collector's endpoint, that of OTLP over gRPC if there is none. */ -}}
{{- define "tapio.otlpPort" -}}
{{ regexFind "[0-9]+$" . | default "4317" }}
{{- end }}

{{- /* How gRPC looks to a mesh: HTTP/2 without TLS, or who knows. */ -}}
{{- define "tapio.appProtocol" -}}
{{- if not .Values.tls.secretName }}appProtocol: kubernetes.io/h2c{{ end }}
{{- end }}

{{- /* What portti watches: by API group and resource, the word of --kinds. */ -}}
{{- define "tapio.kinds" -}}
{{- $all := dict
  "" (dict
    "configmaps" "configmap" "events" "event" "limitranges" "limitrange" "namespaces" "namespace" "nodes" "node"
    "persistentvolumeclaims" "pvc" "persistentvolumes" "pv" "pods" "pod" "resourcequotas" "resourcequota"
    "secrets" "secret" "services" "service")
  "apps" (dict "daemonsets" "daemonset" "deployments" "deployment" "replicasets" "replicaset" "statefulsets" "statefulset")
  "autoscaling" (dict "horizontalpodautoscalers" "hpa")
  "batch" (dict "cronjobs" "cronjob" "jobs" "job")
  "discovery.k8s.io" (dict "endpointslices" "endpointslice")
  "networking.k8s.io" (dict "ingresses" "ingress" "networkpolicies" "networkpolicy")
  "policy" (dict "poddisruptionbudgets" "pdb") }}
{{- $watched := dict }}
{{- range $group, $kinds := $all }}
{{- range $resource, $kind := $kinds }}
{{- if not (has $kind $.Values.portti.excludeKinds) }}
{{- $_ := set $watched $group (merge (dict $resource $kind) (get $watched $group | default dict)) }}
{{- end }}
{{- end }}
{{- end }}
{{- toYaml $watched }}
{{- end }}

{{- define "tapio.serviceAccount" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ index . 1 }}
  namespace: {{ (index . 0).Release.Namespace }}
  labels:
    {{- include "tapio.labels" (index . 1) | nindent 4 }}
automountServiceAccountToken: false
{{- end }}

{{- /* Binds the ClusterRole of a component to its account. */ -}}
{{- define "tapio.binding" -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: {{ index . 1 }}
  labels:
    {{- include "tapio.labels" (index . 1) | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: {{ index . 1 }}
subjects:
- kind: ServiceAccount
  name: {{ index . 1 }}
  namespace: {{ (index . 0).Release.Namespace }}
{{- end }}
