{{/* What the schema cannot say: rules across values. Each names the value and what to do. */}}

{{- define "proa.validate" -}}
{{- include "proa.validateImages" . -}}
{{- include "proa.validateNames" . -}}
{{- include "proa.validateDiscovery" . -}}
{{- range $index, $model := .Values.models -}}
{{- $at := printf "models[%d] (%s)" $index $model.name -}}
{{- include "proa.validateParity" (dict "at" $at "model" $model) -}}
{{- include "proa.validatePlaces" (dict "root" $ "at" $at "model" $model) -}}
{{- end -}}
{{- end -}}

{{- define "proa.validateImages" -}}
{{- if not (or .Values.image.registry .Values.global.imageRegistry) -}}
{{- fail "image.registry is empty. proa's images are built and pushed by you:\n\n  make images REGISTRY=registry.example/team\n  make push REGISTRY=registry.example/team\n\nThen: --set image.registry=registry.example/team" -}}
{{- end -}}
{{- end -}}

{{- define "proa.validateNames" -}}
{{- $full := include "proa.fullname" . -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $full) -}}
{{- fail (printf "fullnameOverride: the name %q must begin with a letter (it becomes the name of Services) and have a-z, 0-9 and '-' only" $full) -}}
{{- end -}}
{{- if gt (len (printf "%s-frontend-peers" $full)) 63 -}}
{{- fail (printf "fullnameOverride: %q has %d characters; 48 are the limit, for the names of Services. Take a shorter release name, or set fullnameOverride" $full (len $full)) -}}
{{- end -}}
{{- $seen := dict -}}
{{- range $index, $model := .Values.models -}}
{{- if hasKey $seen $model.name -}}
{{- fail (printf "models[%d].name: %q stands here twice" $index $model.name) -}}
{{- end -}}
{{- $_ := set $seen $model.name true -}}
{{- $service := include "proa.workerName" (dict "root" $ "model" $model.name) -}}
{{- if include "proa.isDedicated" $model -}}
{{- $service = include "proa.parityWorkerName" (dict "root" $ "model" $model.name) -}}
{{- end -}}
{{- if gt (len $service) 63 -}}
{{- fail (printf "models[%d].name: the Service %q would have %d characters; 63 are the limit. Take a shorter model name, release name or fullnameOverride" $index $service (len $service)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "proa.validateDiscovery" -}}
{{- if and (eq .Values.discovery.mode "kubernetes") (not .Values.rbac.create) (not .Values.serviceAccount.names.frontend) -}}
{{- fail "discovery.mode: kubernetes needs a Role that lets frontends list and watch endpointslices: set rbac.create, or serviceAccount.names.frontend to an account that has one, or discovery.mode=dns" -}}
{{- end -}}
{{- end -}}

{{/* dict at model: a rule that JSON Schema has no words for */}}
{{- define "proa.validateParity" -}}
{{- $redundancy := default dict .model.spec.redundancy -}}
{{- $rows := include "proa.r" .model | int -}}
{{- $k := default 2 $redundancy.k | int | toString -}}
{{- $programs := len (default list (index (default dict $redundancy.parity) $k)) -}}
{{- if and (eq "parity" (default "auto" $redundancy.policy)) (eq "sum" (default "sum" $redundancy.coder)) (lt $programs $rows) -}}
{{- fail (printf "%s.spec.redundancy.parity: policy parity with r %d needs %d programs under %q; %d given" .at $rows $rows $k $programs) -}}
{{- end -}}
{{- end -}}

{{/* dict root at model: where a model runs, and where its files come from */}}
{{- define "proa.validatePlaces" -}}
{{- $values := .root.Values -}}
{{- if .model.spec.model.endpoint -}}
{{- fail (printf "%s.spec.model.endpoint: a Triton outside of the release is not supported here; give program or repository" .at) -}}
{{- end -}}
{{- if and .model.faults (not $values.chaos.enabled) -}}
{{- fail (printf "%s.faults: fault injection needs chaos.enabled=true" .at) -}}
{{- end -}}
{{- if and .model.parityWorkers (not (include "proa.isDedicated" .model)) -}}
{{- fail (printf "%s.parityWorkers: only with spec.redundancy.pool dedicated" .at) -}}
{{- end -}}
{{- if and (eq "pod" (default "auto" (default dict .model.spec.redundancy).placement)) (not (and $values.encoder.enabled $values.decoder.enabled)) -}}
{{- fail (printf "%s.spec.redundancy.placement: pod needs encoder.enabled and decoder.enabled" .at) -}}
{{- end -}}
{{- include "proa.validatePool" (dict "at" (printf "%s.workers" .at) "pool" (include "proa.pool" (dict "root" .root "model" .model) | fromYaml)) -}}
{{- if include "proa.isDedicated" .model -}}
{{- include "proa.validatePool" (dict "at" (printf "%s.parityWorkers" .at) "pool" (include "proa.pool" (dict "root" .root "model" .model "parity" true) | fromYaml)) -}}
{{- end -}}
{{- end -}}

{{- define "proa.validatePool" -}}
{{- if and (eq .pool.mode "mig") (not .pool.gpu.migProfile) -}}
{{- fail (printf "%s.gpu.migProfile: mode mig needs the slice, as in 1g.10gb" .at) -}}
{{- end -}}
{{- if and (ne .pool.mode "mig") .pool.gpu.migProfile -}}
{{- fail (printf "%s.gpu.migProfile: only with mode mig, not %s" .at .pool.mode) -}}
{{- end -}}
{{- $none := list "0" "0%" -}}
{{- if and (has (toString .pool.rollingUpdate.maxUnavailable) $none) (has (toString .pool.rollingUpdate.maxSurge) $none) -}}
{{- fail (printf "%s.rollingUpdate: maxSurge and maxUnavailable cannot both be 0" .at) -}}
{{- end -}}
{{- end -}}
