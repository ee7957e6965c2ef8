{{/* Names, labels and images. Where a helper takes a dict, `root` is the chart's top context. */}}

{{- define "proa.name" -}}
{{- default .Chart.Name .Values.nameOverride -}}
{{- end -}}

{{/* Nothing is cut off: _validations.tpl refuses names that are too long. */}}
{{- define "proa.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains (include "proa.name" .) .Release.Name -}}
{{- .Release.Name -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "proa.name" .) -}}
{{- end -}}
{{- end -}}

{{/* dict root component [model]: what selectors use; it must not change in an upgrade. */}}
{{- define "proa.selectorLabels" -}}
app.kubernetes.io/name: {{ include "proa.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- with .model }}
proa.dev/model: {{ . | quote }}
{{- end }}
{{- end -}}

{{/* dict root component [model] [role] */}}
{{- define "proa.labels" -}}
{{ include "proa.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: proa
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- with .role }}
proa.dev/role: {{ . }}
{{- end }}
{{- end -}}

{{/* dict root component [model] [role]: labels of objects that are no pods */}}
{{- define "proa.objectLabels" -}}
{{ include "proa.labels" . }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* dict root image: `image` is services, worker or workerGpu */}}
{{- define "proa.image" -}}
{{- $image := index .root.Values.image .image -}}
{{- $registry := default (default "" .root.Values.image.registry) .root.Values.global.imageRegistry -}}
{{- $place := printf "%s/%s" (trimSuffix "/" $registry) $image.repository -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $place $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $place (default .root.Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}

{{/* dict root api: "true" where the cluster, or apiVersions, has it */}}
{{- define "proa.hasApi" -}}
{{- if or (.root.Capabilities.APIVersions.Has .api) (has .api .root.Values.apiVersions) -}}true{{- end -}}
{{- end -}}

{{/* dict root component: frontend, encoder, decoder, worker, store or coordinator */}}
{{- define "proa.serviceAccountName" -}}
{{- $given := index .root.Values.serviceAccount.names .component -}}
{{- if $given -}}
{{- $given -}}
{{- else if .root.Values.serviceAccount.create -}}
{{- printf "%s-%s" (include "proa.fullname" .root) .component -}}
{{- else -}}
default
{{- end -}}
{{- end -}}

{{/* dict root role: frontend, encoder, decoder, worker, store or client */}}
{{- define "proa.tlsSecret" -}}
{{- $given := index .root.Values.tls.existingSecrets .role -}}
{{- default (printf "%s-tls-%s" (include "proa.fullname" .root) .role) $given -}}
{{- end -}}

{{- define "proa.podSecurityContext" -}}
{{- toYaml .Values.podSecurity.podContext -}}
{{- end -}}

{{- define "proa.containerSecurityContext" -}}
{{- toYaml .Values.podSecurity.containerContext -}}
{{- end -}}

{{/* dict root model: the name of a model's worker objects */}}
{{- define "proa.workerName" -}}
{{- printf "%s-worker-%s" (include "proa.fullname" .root) .model -}}
{{- end -}}

{{/* dict root model: the same of its parity workers, with pool dedicated */}}
{{- define "proa.parityWorkerName" -}}
{{- printf "%s-parity-worker-%s" (include "proa.fullname" .root) .model -}}
{{- end -}}

{{/* One entry of models: "true" with redundancy.pool dedicated */}}
{{- define "proa.isDedicated" -}}
{{- if eq "dedicated" (default "shared" (default dict .spec.redundancy).pool) -}}true{{- end -}}
{{- end -}}

{{/* One entry of models: its r */}}
{{- define "proa.r" -}}
{{- default 1 (default dict .spec.redundancy).r | int -}}
{{- end -}}

{{/* dict root model [parity]: a pool's values: `workers` with the model's own values over them.
     Parity workers start from the model's workers, with r for every k of them. */}}
{{- define "proa.pool" -}}
{{- $pool := mergeOverwrite (deepCopy .root.Values.workers) (deepCopy (default dict .model.workers)) -}}
{{- if .parity -}}
{{- $k := default 2 (default dict .model.spec.redundancy).k | int -}}
{{- $_ := set $pool "replicas" (div (add (mul ($pool.replicas | int) (include "proa.r" .model | int)) (sub $k 1)) $k | int) -}}
{{- $pool = mergeOverwrite $pool (deepCopy (default dict .model.parityWorkers)) -}}
{{- end -}}
{{- toYaml $pool -}}
{{- end -}}
