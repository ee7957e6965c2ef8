{{/* What the templates for networks, certificates, monitoring, scaling and tests share. */}}

{{/* Matchers of this release's series. */}}
{{- define "proa.series" -}}
{{- $own := printf "namespace=%q,app_kubernetes_io_instance=%q" .Release.Namespace .Release.Name -}}
{{- default $own .Values.monitoring.selector -}}
{{- end -}}

{{/* dict root components (list): labels of the pods of several components, as a selector */}}
{{- define "proa.anyOf" -}}
matchLabels:
  {{- include "proa.selectorLabels" (dict "root" .root) | nindent 2 }}
matchExpressions:
  - key: app.kubernetes.io/component
    operator: In
    values: {{ .components | toJson }}
{{- end -}}

{{/* An egress rule of a NetworkPolicy: names. */}}
{{- define "proa.dnsEgress" -}}
- ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
  {{- with .Values.networkPolicy.dnsTo }}
  to: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{/* An egress rule of a NetworkPolicy: the Kubernetes API. */}}
{{- define "proa.apiEgress" -}}
- ports:
    {{- range .Values.networkPolicy.apiServerPorts }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
  {{- with .Values.networkPolicy.apiServerTo }}
  to: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{/* dict root direction components port: a rule of a NetworkPolicy; direction is from or to */}}
{{- define "proa.edge" -}}
- ports:
    - {port: {{ .port }}, protocol: TCP}
  {{ .direction }}:
    - podSelector:
        {{- include "proa.anyOf" . | nindent 8 }}
{{- end -}}

{{/* One entry of models: "true" where a prediction can be reconstructed on demand */}}
{{- define "proa.isCoded" -}}
{{- $redundancy := default dict .spec.redundancy -}}
{{- $policy := default "auto" $redundancy.policy -}}
{{- $k := default 2 $redundancy.k | toString -}}
{{- $coder := default "sum" $redundancy.coder -}}
{{- $enforced := ne "observe" (default "enforce" $redundancy.mode) -}}
{{- $hasParity := or (ne "sum" $coder) (hasKey (default dict $redundancy.parity) $k) -}}
{{- if and $enforced $hasParity (has $policy (list "auto" "parity")) -}}true{{- end -}}
{{- end -}}

{{/* Behaviour of an autoscaler of workers. */}}
{{- define "proa.scaling" -}}
scaleUp:
  stabilizationWindowSeconds: 0
# A worker that goes takes the answers it owes along unless it can finish them: one at a time.
scaleDown:
  stabilizationWindowSeconds: {{ .Values.autoscaling.workers.scaleDownStabilizationSeconds | int }}
  selectPolicy: Min
  policies:
    - {type: Pods, value: 1, periodSeconds: 60}
{{- end -}}

{{/* dict root component [model] name count: a PodDisruptionBudget */}}
{{- define "proa.pdb" }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "proa.objectLabels" . | nindent 4 }}
spec:
  maxUnavailable: {{ .count }}
  # A pod that is broken anyhow must not hold up the drain of its node.
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "proa.selectorLabels" . | nindent 6 }}
{{- end }}

{{/* dict root name models [reconstruct]: the pod of a helm test; `models` are names */}}
{{- define "proa.testPod" -}}
{{- $tls := .root.Values.tls -}}
{{- $token := .root.Values.tests.token -}}
apiVersion: v1
kind: Pod
metadata:
  name: {{ include "proa.fullname" .root }}-test-{{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "proa.labels" (dict "root" .root "component" "test") | nindent 4 }}
  annotations:
    helm.sh/hook: test
    helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
spec:
  {{- include "proa.podFields" (dict "root" .root "component" .root.Values.frontend "account" "frontend" "token" false) | nindent 2 }}
  restartPolicy: Never
  {{- with include "proa.nodes" .root.Values.frontend | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  containers:
    - name: smoke
      image: {{ include "proa.image" (dict "root" .root "image" "services") }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy }}
      args: [smoke]
      env:
        - name: PROA_SMOKE_ADDRESS
          value: {{ printf "%s-frontend.%s.svc:8001" (include "proa.fullname" .root) .root.Release.Namespace }}
        - name: PROA_SMOKE_SPECS
          value: /etc/proa/models
        - name: PROA_SMOKE_TIMEOUT_S
          value: "60"
        {{- if .reconstruct }}
        - name: PROA_SMOKE_RECONSTRUCT
          value: "true"
        {{- end }}
        {{- if $tls.enabled }}
        - name: PROA_SMOKE_TLS_CA
          value: /etc/proa/tls/ca.crt
        {{- if $tls.clientAuth }}
        - name: PROA_SMOKE_TLS_CERT
          value: /etc/proa/tls/tls.crt
        - name: PROA_SMOKE_TLS_KEY
          value: /etc/proa/tls/tls.key
        {{- end }}
        {{- end }}
        {{- if $token.existingSecret }}
        - name: PROA_SMOKE_TOKEN_FILE
          value: /etc/proa/token/{{ $token.key }}
        {{- end }}
      resources:
        requests: {cpu: 50m, memory: 128Mi}
        limits: {memory: 256Mi}
      securityContext:
        {{- include "proa.containerSecurityContext" .root | nindent 8 }}
      volumeMounts:
        - {name: models, mountPath: /etc/proa/models, readOnly: true}
        - {name: tmp, mountPath: /tmp}
        {{- if $tls.enabled }}
        - {name: tls, mountPath: /etc/proa/tls, readOnly: true}
        {{- end }}
        {{- if $token.existingSecret }}
        - {name: token, mountPath: /etc/proa/token, readOnly: true}
        {{- end }}
  volumes:
    - name: models
      configMap:
        name: {{ include "proa.fullname" .root }}-models
        items:
          {{- range .models }}
          - {key: {{ . }}.yaml, path: {{ . }}.yaml}
          {{- end }}
    - name: tmp
      emptyDir: {sizeLimit: 16Mi}
    {{- if $tls.enabled }}
    - name: tls
      secret:
        secretName: {{ include "proa.tlsSecret" (dict "root" .root "role" "client") }}
        defaultMode: 0440
        items:
          - {key: ca.crt, path: ca.crt}
          {{- if $tls.clientAuth }}
          - {key: tls.crt, path: tls.crt}
          - {key: tls.key, path: tls.key}
          {{- end }}
    {{- end }}
    {{- if $token.existingSecret }}
    - name: token
      secret:
        secretName: {{ $token.existingSecret }}
        defaultMode: 0440
    {{- end }}
{{- end -}}

{{/* "true" where helm tests can ask: with tokens they need one */}}
{{- define "proa.hasTests" -}}
{{- $unlocked := or (not .Values.auth.tokens.existingSecret) .Values.tests.token.existingSecret -}}
{{- if and .Values.tests.enabled .Values.models $unlocked -}}true{{- end -}}
{{- end -}}
