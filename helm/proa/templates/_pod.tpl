{{/* Parts of pods. `component` is the component's values: .Values.frontend, ... or a pool's. */}}

{{/* dict root component account [token]: fields of a pod spec */}}
{{- define "proa.podFields" -}}
{{- $component := .component -}}
serviceAccountName: {{ include "proa.serviceAccountName" (dict "root" .root "component" .account) | quote }}
automountServiceAccountToken: {{ eq "true" (toString .token) }}
enableServiceLinks: false
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- with default .root.Values.priorityClassName $component.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with $component.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- include "proa.podSecurityContext" .root | nindent 2 }}
{{- end -}}

{{/* dict root component labels: `labels` are the arguments of proa.labels */}}
{{- define "proa.podMetadata" -}}
labels:
  {{- include "proa.labels" .labels | nindent 2 }}
  {{- with .component.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (default dict .annotations) (default dict .component.podAnnotations) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* dict prefix settings: PROA_FRONTEND_QUEUE_MAX from queueMax */}}
{{- define "proa.settingsEnv" -}}
{{- $prefix := .prefix -}}
{{- range $name, $value := .settings }}
- name: {{ printf "%s_%s" $prefix (snakecase $name | upper) }}
  value: {{ include "proa.text" $value }}
{{- end }}
{{- end -}}

{{/* What all our processes get */}}
{{- define "proa.commonEnv" -}}
- name: PROA_LOG_LEVEL
  value: {{ .Values.logLevel }}
- name: PROA_LOG_FORMAT
  value: {{ .Values.logFormat }}
- name: HOME
  value: /tmp
{{- end -}}

{{/* Of what serves: where its spans go, and as whose. Begins with a line break, or is empty. */}}
{{- define "proa.tracingEnv" -}}
{{- with .Values.tracing }}
{{- if .endpoint }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ .endpoint | quote }}
- name: OTEL_EXPORTER_OTLP_PROTOCOL
  value: {{ .protocol }}
{{- if .headers.existingSecret }}
- name: OTEL_EXPORTER_OTLP_HEADERS
  valueFrom:
    secretKeyRef: {name: {{ .headers.existingSecret | quote }}, key: {{ .headers.key | quote }}}
{{- end }}
- name: K8S_POD_NAME
  valueFrom:
    fieldRef: {fieldPath: metadata.name}
- name: OTEL_RESOURCE_ATTRIBUTES
  value: {{ printf "service.namespace=%s,k8s.namespace.name=%s,k8s.pod.name=$(K8S_POD_NAME)" (include "proa.fullname" $) $.Release.Namespace | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* A number, truth or text as a quoted text; 1000000 stays 1000000. */}}
{{- define "proa.text" -}}
{{- if kindIs "string" . -}}{{ . | quote }}{{- else -}}{{ toJson . | quote }}{{- end -}}
{{- end -}}

{{/* dict path seconds: probes on the admin port. The start may take `seconds`. */}}
{{- define "proa.probes" -}}
startupProbe:
  httpGet: {path: {{ .path }}, port: admin}
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: {{ div (add .seconds 1) 2 }}
livenessProbe:
  httpGet: {path: /livez, port: admin}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
readinessProbe:
  httpGet: {path: /readyz, port: admin}
  periodSeconds: 3
  timeoutSeconds: 5
  failureThreshold: 2
{{- end -}}

{{/* A component's values: time to serve on, to end what runs (settings.graceS), and a margin */}}
{{- define "proa.terminationSeconds" -}}
{{- $grace := default 5 (default dict .settings).graceS | float64 | ceil | int -}}
{{- add .drainSeconds $grace 10 -}}
{{- end -}}

{{/* dict root role: the certificate of a role, for calls between our services */}}
{{- define "proa.tlsEnv" -}}
{{- if .root.Values.tls.enabled -}}
- name: PROA_{{ upper .role }}_TLS_DIR
  value: /etc/proa/tls
{{- end -}}
{{- end -}}

{{- define "proa.tlsMount" -}}
{{- if .root.Values.tls.enabled -}}
- {name: tls, mountPath: /etc/proa/tls, readOnly: true}
{{- end -}}
{{- end -}}

{{- define "proa.tlsVolume" -}}
{{- if .root.Values.tls.enabled -}}
- name: tls
  secret:
    secretName: {{ include "proa.tlsSecret" . | quote }}
    defaultMode: 0440
{{- end -}}
{{- end -}}

{{/* dict root labels spread: soft spreading of the pods of `labels`; a revision by itself */}}
{{- define "proa.spread" -}}
topologySpreadConstraints:
  - maxSkew: {{ .spread.maxSkew | int }}
    topologyKey: {{ .spread.topologyKey }}
    whenUnsatisfiable: {{ .spread.whenUnsatisfiable }}
    labelSelector:
      matchLabels:
        {{- include "proa.selectorLabels" .labels | nindent 8 }}
    matchLabelKeys: [pod-template-hash]
{{- end -}}

{{/* How components without a topologySpread of their own spread */}}
{{- define "proa.spreadDefault" -}}
{{- toJson (dict "maxSkew" 1 "topologyKey" "kubernetes.io/hostname" "whenUnsatisfiable" "ScheduleAnyway") -}}
{{- end -}}
