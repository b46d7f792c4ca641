{{- define "sidecast.name" -}}
{{- if contains "sidecast" .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-sidecast{{ end }}
{{- end }}

{{- define "sidecast.selector" -}}
app.kubernetes.io/name: sidecast
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end }}

{{- define "sidecast.labels" -}}
app.kubernetes.io/name: sidecast
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "sidecast.account" -}}
{{ .Values.serviceAccount.name | default (ternary (include "sidecast.name" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{- define "sidecast.claim" -}}
{{ .Values.models.existingClaim | default (printf "%s-models" (include "sidecast.name" .)) }}
{{- end }}

{{- /* A quarter of a second for each task, twice what was measured, in probes two seconds apart. */ -}}
{{- define "sidecast.startupProbes" -}}
{{ divf (addf .Values.fetchSeconds (mulf .Values.tasks.count 0.25)) 2 | ceil | int }}
{{- end }}

{{- /* As a manifest writes it: whole GiB where it is. */ -}}
{{- define "sidecast.memory" -}}
{{- $mebibytes := add (int .Values.memoryMebibytes) (ceil (mulf .Values.tasks.count .Values.tasks.mebibytes) | int) -}}
{{- if mod $mebibytes 1024 }}{{ $mebibytes }}Mi{{ else }}{{ div $mebibytes 1024 }}Gi{{ end }}
{{- end }}

{{- /* Kubernetes asks gRPC for its health without TLS alone; with TLS it asks the metrics port, and checks no certificate. */ -}}
{{- define "sidecast.probe" -}}
{{- $root := index . 0 -}}
{{- if $root.Values.access.tlsSecret -}}
httpGet:
  path: {{ index . 1 }}
  port: 8002
  scheme: HTTPS
{{- else -}}
grpc:
  port: 8001
{{- end }}
{{- end }}
