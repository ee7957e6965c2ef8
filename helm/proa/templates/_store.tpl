{{/* Parts of the store's objects. Its coordinators have the component `coordinator`. */}}

{{/* dict root ports: rules of a NetworkPolicy: from the store's own pods, from experiments, and from
     its clients */}}
{{- define "proa.storeIngress" -}}
{{- $callers := .root.Values.chaos.enabled | ternary (list "store" "coordinator" "chaos") (list "store" "coordinator") -}}
{{- range .ports }}
{{ include "proa.edge" (dict "root" $.root "direction" "from" "components" $callers "port" .) }}
{{- end }}
- ports:
    {{- range .ports }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
  {{- with .root.Values.networkPolicy.storeClientsFrom }}
  from: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{/* Rules of a NetworkPolicy: to the agents and servers of all shards */}}
{{- define "proa.storeEgress" -}}
{{ include "proa.edge" (dict "root" . "direction" "to" "components" (list "store") "port" 8020) }}
{{ include "proa.edge" (dict "root" . "direction" "to" "components" (list "store") "port" 6379) }}
{{- end -}}

{{/* AGENT|SERVER@DOMAIN of each shard. A pod is a domain of its own: no two of them share a node. */}}
{{- define "proa.storeShards" -}}
{{- $shards := list -}}
{{- range $shard := until (.Values.store.shards | int) -}}
{{- $pod := printf "%s-store-%d" (include "proa.fullname" $) $shard -}}
{{- $host := printf "%s.%s-store.%s.svc" $pod (include "proa.fullname" $) $.Release.Namespace -}}
{{- $shards = append $shards (printf "%s:8020|%s:6379@%s" $host $host $pod) -}}
{{- end -}}
{{- join "," $shards -}}
{{- end -}}

{{/* Of agents and coordinators */}}
{{- define "proa.storeEnv" -}}
- name: PROA_STORE_READER_USER
  value: reader
- name: PROA_STORE_READER_PASSWORD_FILE
  value: /etc/proa/users/reader
{{- with include "proa.tlsEnv" (dict "root" . "role" "store") }}
{{ . }}
{{- end }}
{{- end -}}

{{/* Shards on nodes of their own */}}
{{- define "proa.storeAffinity" -}}
{{- $term := dict "topologyKey" .Values.store.spread.topologyKey "labelSelector" (dict "matchLabels" (include "proa.selectorLabels" (dict "root" . "component" "store") | fromYaml)) -}}
{{- if eq .Values.store.spread.whenUnsatisfiable "DoNotSchedule" -}}
{{- toJson (dict "podAntiAffinity" (dict "requiredDuringSchedulingIgnoredDuringExecution" (list $term))) -}}
{{- else -}}
{{- toJson (dict "podAntiAffinity" (dict "preferredDuringSchedulingIgnoredDuringExecution" (list (dict "weight" 100 "podAffinityTerm" $term)))) -}}
{{- end -}}
{{- end -}}

{{/* dict root name component ports: a headless Service. Who is not ready is found too: agents are
     asked long before their shard is whole, and one coordinator of several listens. */}}
{{- define "proa.storeService" -}}
{{- $labels := dict "root" .root "component" .component -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace | quote }}
  labels:
    {{- include "proa.objectLabels" $labels | nindent 4 }}
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  selector:
    {{- include "proa.selectorLabels" $labels | nindent 4 }}
  ports:
    {{- range $name, $port := .ports }}
    - {name: {{ $name }}, port: {{ $port }}, targetPort: {{ $name }}}
    {{- end }}
{{- end -}}

{{/* The container of a shard's Valkey or Redis */}}
{{- define "proa.storeServer" -}}
{{- $store := .Values.store -}}
{{- $limit := printf "%dMi" (add (div (mul ($store.memoryMiB | int) 5) 4) 64) -}}
- name: server
  image: {{ $store.image | quote }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  command: [sh, /etc/proa/server/valkey.sh]
  env:
    - {name: RUN, value: /run/proa}
    - {name: DATA, value: /data}
    - {name: PASSWORDS, value: /etc/proa/users}
    - {name: PORT, value: "6379"}
    - {name: MAXMEMORY, value: {{ mul ($store.memoryMiB | int) 1048576 | quote }}}
    - {name: APPENDONLY, value: {{ ternary "yes" "no" $store.persistence.enabled | quote }}}
    - {name: FAULTS, value: {{ ternary "yes" "no" .Values.chaos.enabled | quote }}}
    - {name: TLS, value: {{ ternary "/etc/proa/tls" "" .Values.tls.enabled | quote }}}
  ports:
    - {name: server, containerPort: 6379}
  # Its agent asks it all the time: these see that something listens.
  livenessProbe:
    tcpSocket: {port: server}
    initialDelaySeconds: 10
    periodSeconds: 20
    failureThreshold: 3
  readinessProbe:
    tcpSocket: {port: server}
    periodSeconds: 20
  resources:
    requests: {cpu: {{ $store.cpu }}, memory: {{ $limit }}}
    limits: {memory: {{ $limit }}}
  securityContext:
    {{- include "proa.containerSecurityContext" . | nindent 4 }}
  volumeMounts:
    - {name: data, mountPath: /data}
    - {name: run, mountPath: /run/proa}
    - {name: script, mountPath: /etc/proa/server, readOnly: true}
    - {name: users, mountPath: /etc/proa/users, readOnly: true}
    {{- with include "proa.tlsMount" (dict "root" .) }}
    {{- . | nindent 4 }}
    {{- end }}
{{- end -}}
