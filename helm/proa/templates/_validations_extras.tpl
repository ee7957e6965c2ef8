{{/* Rules across the values of locks and scaling. Each names the value and what to do. */}}

{{- define "proa.validateExtras" -}}
{{- include "proa.validateTls" . -}}
{{- include "proa.validateScaling" . -}}
{{- include "proa.validateChaos" . -}}
{{- include "proa.validateTracing" . -}}
{{- include "proa.validateStore" . -}}
{{- end -}}

{{- define "proa.validateStore" -}}
{{- with .Values.store -}}
{{- if .enabled -}}
{{- if not .image -}}
{{- fail "store.image: needs an image of Valkey 8 or later, or Redis 7 or later, as in registry.example/valkey:8.1" -}}
{{- end -}}
{{- if not .auth.existingSecret -}}
{{- fail "store.auth.existingSecret: needs a Secret with the passwords of the users `agent` and `reader`:\n\n  kubectl create secret generic store-users --from-literal=agent=... --from-literal=reader=..." -}}
{{- end -}}
{{- if lt (.shards | int) (add .k .r | int) -}}
{{- fail (printf "store.shards: %d are fewer than the k + r = %d blocks of a stripe" (.shards | int) (add .k .r | int)) -}}
{{- end -}}
{{- if and (not $.Values.rbac.create) (not $.Values.serviceAccount.names.coordinator) -}}
{{- fail "store.enabled: coordinators need a Role for their Lease and ConfigMap: set rbac.create, or serviceAccount.names.coordinator to an account that has one" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "proa.validateTracing" -}}
{{- with .Values.tracing -}}
{{- if and .endpoint (eq .protocol "grpc") (not .workerEndpoint) -}}
{{- fail "tracing.workerEndpoint: with protocol grpc, name the collector's address for OTLP over HTTP too, as in http://otel-collector.observability:4318: Triton speaks no gRPC to it" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "proa.validateChaos" -}}
{{- $chaos := .Values.chaos -}}
{{- if $chaos.experiments -}}
{{- if not $chaos.enabled -}}
{{- fail "chaos.experiments: experiments need chaos.enabled=true" -}}
{{- end -}}
{{- if not (and .Values.rbac.create .Values.serviceAccount.create) -}}
{{- fail "chaos.experiments: need rbac.create and serviceAccount.create; without them, take `proa chaos manifest`" -}}
{{- end -}}
{{- if and .Values.auth.tokens.existingSecret (not $chaos.token.existingSecret) -}}
{{- fail "chaos.token.existingSecret: frontends want tokens (auth.tokens), so experiments need one with `faults: true`" -}}
{{- end -}}
{{- $names := list -}}
{{- range $chaos.experiments -}}
{{- if has .name $names -}}
{{- fail (printf "chaos.experiments: %q stands there twice" .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- if and (dig "spec" "workload" "store" "" (fromYaml .file)) (not $.Values.store.enabled) -}}
{{- fail (printf "chaos.experiments: %q trains rows of a store; that takes store.enabled=true" .name) -}}
{{- end -}}
{{- $job := printf "%s-chaos-%s" (include "proa.fullname" $) .name -}}
{{- if gt (len $job) 63 -}}
{{- fail (printf "chaos.experiments: the Job %q has %d characters; 63 are the limit" $job (len $job)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The certificates that cert-manager is to issue: roles, separated by blanks */}}
{{- define "proa.issuedRoles" -}}
{{- $roles := list -}}
{{- range $role := .Values.store.enabled | ternary (list "frontend" "encoder" "decoder" "worker" "store" "client") (list "frontend" "encoder" "decoder" "worker" "client") -}}
{{- if not (index $.Values.tls.existingSecrets $role) -}}
{{- $roles = append $roles $role -}}
{{- end -}}
{{- end -}}
{{- if .Values.tls.enabled -}}{{- join " " $roles -}}{{- end -}}
{{- end -}}

{{- define "proa.validateTls" -}}
{{- with include "proa.issuedRoles" . -}}
{{- if not $.Values.tls.certManager.enabled -}}
{{- fail (printf "tls.existingSecrets: no secret is named for %s, and tls.certManager.enabled is false: name them, or let cert-manager issue them" .) -}}
{{- end -}}
{{- if not (include "proa.hasApi" (dict "root" $ "api" "cert-manager.io/v1")) -}}
{{- fail "tls.certManager.enabled: the cluster has no API cert-manager.io/v1: install cert-manager, or name all of tls.existingSecrets. For a render without a cluster: --set 'apiVersions={cert-manager.io/v1}'" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.tls.clientAuth (not .Values.tls.enabled) -}}
{{- fail "tls.clientAuth: asks for certificates, which needs tls.enabled" -}}
{{- end -}}
{{- end -}}

{{- define "proa.validateScaling" -}}
{{- $scaling := .Values.autoscaling.workers -}}
{{- if $scaling.enabled -}}
{{- if gt ($scaling.minReplicas | int) ($scaling.maxReplicas | int) -}}
{{- fail (printf "autoscaling.workers.minReplicas: %d is above maxReplicas, %d" ($scaling.minReplicas | int) ($scaling.maxReplicas | int)) -}}
{{- end -}}
{{- if eq $scaling.kind "keda" -}}
{{- if not $scaling.prometheusAddress -}}
{{- fail "autoscaling.workers.prometheusAddress: empty; kind keda asks Prometheus there for proa_queue_depth" -}}
{{- end -}}
{{- if not (include "proa.hasApi" (dict "root" . "api" "keda.sh/v1alpha1")) -}}
{{- fail "autoscaling.workers.kind: keda, and the cluster has no API keda.sh/v1alpha1: install KEDA, or take hpa. For a render without a cluster: --set 'apiVersions={keda.sh/v1alpha1}'" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
