{{/* A pool of workers of one model. dict root model parity: `parity` "true" for parity workers. */}}

{{- define "proa.workerPool" -}}
{{- $root := .root -}}
{{- $model := .model -}}
{{- $pool := include "proa.pool" . | fromYaml -}}
{{- $role := ternary "parity-worker" "worker" (not (empty .parity)) -}}
{{- $name := printf "%s-%s" $role $model.name -}}
{{- $labels := dict "root" $root "component" $role "role" $role "model" $model.name -}}
{{- /* What a worker packs. A change of policy or SLO is for frontends alone: no worker rolls. */ -}}
{{- $code := pick (default dict $model.spec.redundancy) "k" "r" "coder" "parity" -}}
{{- $entry := dict "model" $model.spec.model "code" $code "protection" (pick (default dict $model.spec.protection) "mode" "strict" "scheme" "plan" "maxOverheadPercent" "onFault") "source" $model.source "faults" (default false $model.faults) -}}
{{- $annotations := dict "proa.dev/model-checksum" (toJson $entry | sha256sum) -}}
{{- $leased := and $root.Values.tls.enabled $root.Values.rbac.create -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ include "proa.fullname" $root }}-{{ $name }}
  namespace: {{ $root.Release.Namespace | quote }}
  labels:
    {{- include "proa.objectLabels" $labels | nindent 4 }}
spec:
  {{- if or (not $root.Values.autoscaling.workers.enabled) .parity }}
  replicas: {{ $pool.replicas | int }}
  {{- end }}
  revisionHistoryLimit: 3
  progressDeadlineSeconds: {{ add 600 ($pool.startSeconds | int) }}
  strategy:
    type: RollingUpdate
    rollingUpdate:
      {{- include "proa.workerUpdate" (dict "root" $root "model" $model "pool" $pool "parity" .parity) | nindent 6 }}
  selector:
    matchLabels:
      {{- include "proa.selectorLabels" $labels | nindent 6 }}
  template:
    metadata:
      {{- include "proa.podMetadata" (dict "component" $pool "labels" $labels "annotations" $annotations) | nindent 6 }}
    spec:
      {{- include "proa.podFields" (dict "root" $root "component" $pool "account" "worker" "token" $leased) | nindent 6 }}
      terminationGracePeriodSeconds: {{ include "proa.terminationSeconds" $pool }}
      {{- with include "proa.workerNodes" $pool }}
      {{- . | trim | nindent 6 }}
      {{- end }}
      {{- if $pool.topologySpread.enabled }}
      {{- include "proa.spread" (dict "labels" $labels "spread" $pool.topologySpread) | nindent 6 }}
      {{- end }}
      initContainers:
        {{- with include "proa.modelSource" (dict "root" $root "model" $model "pool" $pool) }}
        {{- . | nindent 8 }}
        {{- end }}
        {{- include "proa.packContainer" (dict "root" $root "model" $model "pool" $pool) | nindent 8 }}
      containers:
        - name: worker
          image: {{ include "proa.workerImage" (dict "root" $root "pool" $pool) }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          args: [worker]
          env:
            {{- include "proa.workerEnv" (dict "root" $root "name" $name "pool" $pool "leased" $leased) | nindent 12 }}
          ports:
            - {name: grpc, containerPort: 8001}
            - {name: metrics, containerPort: 8002}
            - {name: admin, containerPort: 9090}
          {{- include "proa.probes" (dict "path" "/readyz" "seconds" (add $pool.startSeconds 30)) | nindent 10 }}
          resources:
            {{- include "proa.workerResources" $pool | nindent 12 }}
          securityContext:
            {{- include "proa.containerSecurityContext" $root | nindent 12 }}
          volumeMounts:
            - {name: repository, mountPath: /repository, readOnly: true}
            - {name: scratch, mountPath: /scratch}
            - {name: tmp, mountPath: /tmp}
            - {name: shm, mountPath: /dev/shm}
            {{- with include "proa.tlsMount" (dict "root" $root) }}
            {{- . | nindent 12 }}
            {{- end }}
            {{- with $pool.extraVolumeMounts }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
      volumes:
        - name: models
          configMap:
            name: {{ include "proa.fullname" $root }}-models
            items:
              - {key: {{ $model.name }}.yaml, path: {{ $model.name }}.yaml}
        {{- with include "proa.modelVolume" (dict "model" $model "pool" $pool) }}
        {{- . | nindent 8 }}
        {{- end }}
        - name: repository
          emptyDir: {sizeLimit: {{ $pool.storage.repository }}}
        - name: scratch
          emptyDir: {sizeLimit: {{ $pool.storage.scratch }}}
        - name: tmp
          emptyDir: {sizeLimit: {{ $pool.storage.tmp }}}
        - name: shm
          emptyDir: {medium: Memory, sizeLimit: {{ $pool.storage.shm }}}
        {{- with include "proa.tlsVolume" (dict "root" $root "role" "worker") }}
        {{- . | nindent 8 }}
        {{- end }}
        {{- with $pool.extraVolumes }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
---
{{ include "proa.headless" (dict "root" $root "name" $name "labels" $labels) }}
{{- if $leased }}
---
# Workers hold it while they restart Triton with a new certificate: one at a time.
apiVersion: coordination.k8s.io/v1
kind: Lease
metadata:
  name: {{ include "proa.fullname" $root }}-{{ $name }}
  namespace: {{ $root.Release.Namespace | quote }}
  labels:
    {{- include "proa.objectLabels" $labels | nindent 4 }}
spec: {}
{{- end }}
{{- end -}}

{{/* dict root model pool parity: at most r of a model's workers are missing, and not all, unless
     there is no other way (maxSurge 0) */}}
{{- define "proa.workerUpdate" -}}
{{- $least := .pool.replicas | int -}}
{{- if and .root.Values.autoscaling.workers.enabled (not .parity) -}}
{{- $least = .root.Values.autoscaling.workers.minReplicas | int -}}
{{- end -}}
maxSurge: {{ .pool.rollingUpdate.maxSurge }}
{{- if kindIs "invalid" .pool.rollingUpdate.maxUnavailable }}
{{- $needed := ternary 1 0 (has (toString .pool.rollingUpdate.maxSurge) (list "0" "0%")) }}
maxUnavailable: {{ max $needed (min (include "proa.r" .model | int) (sub $least 1)) }}
{{- else }}
maxUnavailable: {{ .pool.rollingUpdate.maxUnavailable }}
{{- end }}
{{- end -}}

{{/* dict root pool */}}
{{- define "proa.workerImage" -}}
{{- include "proa.image" (dict "root" .root "image" (ternary "worker" "workerGpu" (eq .pool.mode "cpu"))) -}}
{{- end -}}

{{/* A pool's values: GPU nodes are found by their label, and their taint is tolerated. */}}
{{- define "proa.workerNodes" -}}
{{- $pool := . -}}
{{- $nodes := deepCopy (default dict $pool.nodeSelector) -}}
{{- $tolerations := $pool.tolerations -}}
{{- $runtime := $pool.runtimeClassName -}}
{{- if ne $pool.mode "cpu" -}}
{{- with $pool.gpu.product -}}
{{- $_ := set $nodes "nvidia.com/gpu.product" . -}}
{{- end -}}
{{- $tolerations = append $tolerations (dict "key" "nvidia.com/gpu" "operator" "Exists" "effect" "NoSchedule") -}}
{{- $runtime = default $runtime $pool.gpu.runtimeClassName -}}
{{- end -}}
{{- include "proa.nodes" (dict "nodeSelector" $nodes "tolerations" $tolerations "runtimeClassName" $runtime) -}}
{{- end -}}

{{/* A pool's values: resources, with the GPU or the slice among the limits */}}
{{- define "proa.workerResources" -}}
{{- $pool := . -}}
{{- $resources := deepCopy $pool.resources -}}
{{- if ne $pool.mode "cpu" -}}
{{- $gpu := ternary (printf "nvidia.com/mig-%s" $pool.gpu.migProfile) "nvidia.com/gpu" (eq $pool.mode "mig") -}}
{{- $_ := set $resources "limits" (merge (dict $gpu ($pool.gpu.count | int)) (default dict $resources.limits)) -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{/* dict root name pool leased */}}
{{- define "proa.workerEnv" -}}
{{- $pool := .pool -}}
{{ include "proa.commonEnv" .root }}
{{- include "proa.tracingEnv" .root }}
{{- with .root.Values.tracing }}
{{- if and .endpoint .workerEndpoint }}
- name: PROA_WORKER_TRACE_URL
  value: {{ .workerEndpoint | quote }}
{{- end }}
{{- end }}
- name: PROA_WORKER_REPOSITORY
  value: /repository
- name: PROA_WORKER_SCRATCH
  value: /scratch
- name: PROA_WORKER_THREADS
  value: {{ include "proa.text" $pool.threads }}
- name: PROA_WORKER_START_S_MAX
  value: {{ include "proa.text" $pool.startSeconds }}
- name: PROA_WORKER_DRAIN_S
  value: {{ include "proa.text" $pool.drainSeconds }}
{{- if .root.Values.tls.enabled }}
{{ include "proa.tlsEnv" (dict "root" .root "role" "worker") }}
{{- end }}
{{- if .leased }}
- name: PROA_WORKER_RESTART_LEASE
  value: {{ include "proa.fullname" .root }}-{{ .name }}
{{- end }}
{{- include "proa.settingsEnv" (dict "prefix" "PROA_WORKER" "settings" $pool.settings) }}
{{- with $pool.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}
