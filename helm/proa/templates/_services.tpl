{{/* Parts of the services' own objects. */}}

{{/* A component's values: which nodes */}}
{{- define "proa.nodes" -}}
{{- with .runtimeClassName }}
runtimeClassName: {{ . | quote }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* dict root name labels: a headless Service. Its labels go on to its EndpointSlices, by which
     frontends find their peers, workers and coders. */}}
{{- define "proa.headless" -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ include "proa.fullname" .root }}-{{ .name }}
  namespace: {{ .root.Release.Namespace | quote }}
  labels:
    {{- include "proa.objectLabels" .labels | nindent 4 }}
spec:
  clusterIP: None
  publishNotReadyAddresses: false
  selector:
    {{- include "proa.selectorLabels" .labels | nindent 4 }}
  ports:
    - {name: grpc, port: {{ default 8001 .port }}, targetPort: grpc}
    - {name: admin, port: 9090, targetPort: admin}
{{- end -}}

{{- define "proa.frontendEnv" -}}
{{ include "proa.commonEnv" . }}
- name: PROA_FRONTEND_SPECS
  value: /etc/proa/models
- name: PROA_FRONTEND_DISCOVERY
  value: {{ .Values.discovery.mode }}
- name: PROA_FRONTEND_POD
  valueFrom:
    fieldRef: {fieldPath: {{ ternary "metadata.name" "status.podIP" (eq .Values.discovery.mode "kubernetes") }}}
{{- if eq .Values.discovery.mode "kubernetes" }}
- name: PROA_FRONTEND_NAMESPACE
  value: {{ .Release.Namespace | quote }}
- name: PROA_FRONTEND_INSTANCE
  value: {{ .Release.Name | quote }}
{{- else }}
- name: PROA_FRONTEND_DNS_PREFIX
  value: {{ include "proa.fullname" . }}
- name: PROA_FRONTEND_DNS_SUFFIX
  value: {{ printf ".%s.svc.%s" .Release.Namespace .Values.discovery.clusterDomain }}
{{- end }}
{{- include "proa.tracingEnv" . }}
{{- if .Values.tracing.endpoint }}
- name: PROA_TRACE_SAMPLE
  value: {{ include "proa.text" .Values.tracing.sample }}
- name: PROA_TRACE_SLOW_MS
  value: {{ include "proa.text" .Values.tracing.slowMs }}
{{- end }}
- name: PROA_FRONTEND_READY_WHEN
  value: {{ .Values.frontend.readyWhen }}
- name: PROA_FRONTEND_DRAIN_S
  value: {{ include "proa.text" .Values.frontend.drainSeconds }}
{{- if .Values.tls.enabled }}
{{ include "proa.tlsEnv" (dict "root" . "role" "frontend") }}
- name: PROA_FRONTEND_CLIENT_TLS_DIR
  value: /etc/proa/client-tls
{{- end }}
{{- if .Values.auth.tokens.existingSecret }}
- name: PROA_FRONTEND_TOKENS
  value: {{ printf "/etc/proa/tokens/%s" .Values.auth.tokens.key | quote }}
{{- end }}
{{- if and .Values.chaos.enabled .Values.auth.tokens.existingSecret }}
- name: PROA_FRONTEND_FAULTS
  value: "true"
{{- end }}
{{- include "proa.settingsEnv" (dict "prefix" "PROA_FRONTEND" "settings" .Values.frontend.settings) }}
{{- with .Values.frontend.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* dict root role port: Deployment and Service of the encoder or the decoder */}}
{{- define "proa.stateless" -}}
{{- $root := .root -}}
{{- $component := index $root.Values .role -}}
{{- $labels := dict "root" $root "component" .role "role" .role -}}
{{- $prefix := printf "PROA_%s" (upper .role) -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ include "proa.fullname" $root }}-{{ .role }}
  namespace: {{ $root.Release.Namespace | quote }}
  labels:
    {{- include "proa.objectLabels" $labels | nindent 4 }}
spec:
  replicas: {{ $component.replicas | int }}
  revisionHistoryLimit: 3
  strategy:
    type: RollingUpdate
    rollingUpdate: {maxSurge: 1, maxUnavailable: 0}
  selector:
    matchLabels:
      {{- include "proa.selectorLabels" $labels | nindent 6 }}
  template:
    metadata:
      {{- include "proa.podMetadata" (dict "component" $component "labels" $labels) | nindent 6 }}
    spec:
      {{- include "proa.podFields" (dict "root" $root "component" $component "account" .role "token" false) | nindent 6 }}
      terminationGracePeriodSeconds: {{ include "proa.terminationSeconds" $component }}
      {{- with include "proa.nodes" $component }}
      {{- . | trim | nindent 6 }}
      {{- end }}
      {{- include "proa.spread" (dict "labels" $labels "spread" (include "proa.spreadDefault" $root | fromJson)) | nindent 6 }}
      containers:
        - name: {{ .role }}
          image: {{ include "proa.image" (dict "root" $root "image" "services") }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          args: [{{ .role }}]
          env:
            {{- include "proa.commonEnv" $root | nindent 12 }}
            {{- with include "proa.tracingEnv" $root }}
            {{- . | trim | nindent 12 }}
            {{- end }}
            - name: {{ $prefix }}_DRAIN_S
              value: {{ include "proa.text" $component.drainSeconds }}
            {{- if $root.Values.chaos.enabled }}
            - name: {{ $prefix }}_FAULTS
              value: "true"
            {{- end }}
            {{- with include "proa.tlsEnv" . }}
            {{- . | nindent 12 }}
            {{- end }}
            {{- with include "proa.settingsEnv" (dict "prefix" $prefix "settings" $component.settings) }}
            {{- . | trim | nindent 12 }}
            {{- end }}
            {{- with $component.extraEnv }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          ports:
            - {name: grpc, containerPort: {{ .port }}}
            - {name: admin, containerPort: 9090}
          {{- include "proa.probes" (dict "path" "/livez" "seconds" 60) | nindent 10 }}
          resources:
            {{- toYaml $component.resources | nindent 12 }}
          securityContext:
            {{- include "proa.containerSecurityContext" $root | nindent 12 }}
          volumeMounts:
            - {name: tmp, mountPath: /tmp}
            {{- with include "proa.tlsMount" . }}
            {{- . | nindent 12 }}
            {{- end }}
            {{- with $component.extraVolumeMounts }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
      volumes:
        - name: tmp
          emptyDir: {sizeLimit: 64Mi}
        {{- with include "proa.tlsVolume" . }}
        {{- . | nindent 8 }}
        {{- end }}
        {{- with $component.extraVolumes }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
---
{{ include "proa.headless" (dict "root" $root "name" .role "labels" $labels "port" .port) }}
{{- end -}}
