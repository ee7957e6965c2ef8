{{/* Where a model's files come from, and how they become a Triton repository. */}}

{{/* One entry of models: the folder with its files */}}
{{- define "proa.modelFiles" -}}
{{- if .source.builtin -}}
/opt/proa/models/{{ .source.builtin }}
{{- else -}}
/models/{{ .name }}
{{- end -}}
{{- end -}}

{{/* dict model pool: the volume of the files, where they are not in the worker image */}}
{{- define "proa.modelVolume" -}}
{{- if .model.source.pvc -}}
- name: files
  persistentVolumeClaim: {claimName: {{ .model.source.pvc.claimName | quote }}, readOnly: true}
{{- else if not .model.source.builtin -}}
- name: files
  emptyDir: {sizeLimit: {{ .pool.storage.models }}}
{{- end -}}
{{- end -}}

{{/* dict root model pool: the init container that brings the files, where one is needed */}}
{{- define "proa.modelSource" -}}
{{- if .model.source.image -}}
{{- $image := .model.source.image -}}
- name: copy
  image: {{ $image.ref | quote }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  command: [cp, -R, {{ printf "%s/." (trimSuffix "/" $image.path) | quote }}, {{ include "proa.modelFiles" .model }}]
  resources:
    {{- toYaml .pool.resources | nindent 4 }}
  securityContext:
    {{- include "proa.containerSecurityContext" .root | nindent 4 }}
  volumeMounts:
    - {name: files, mountPath: {{ include "proa.modelFiles" .model }}}
{{- else if or .model.source.http .model.source.s3 -}}
- name: fetch
  image: {{ include "proa.workerImage" (dict "root" .root "pool" .pool) }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  args: [fetch]
  env:
    {{- include "proa.commonEnv" .root | nindent 4 }}
    {{- include "proa.fetchEnv" .model | nindent 4 }}
  resources:
    {{- toYaml .pool.resources | nindent 4 }}
  securityContext:
    {{- include "proa.containerSecurityContext" .root | nindent 4 }}
  volumeMounts:
    - {name: files, mountPath: {{ include "proa.modelFiles" .model }}}
    - {name: tmp, mountPath: /tmp}
{{- end -}}
{{- end -}}

{{/* One entry of models with source http or s3 */}}
{{- define "proa.fetchEnv" -}}
{{- $source := default .source.s3 .source.http -}}
- name: PROA_FETCH_URL
  value: {{ $source.url | quote }}
- name: PROA_FETCH_SHA256
  value: {{ $source.sha256 | quote }}
- name: PROA_FETCH_OUT
  value: {{ include "proa.modelFiles" . }}
{{- with $source.bytesMax }}
- name: PROA_FETCH_BYTES_MAX
  value: {{ include "proa.text" . }}
{{- end }}
{{- with .source.s3 }}
{{- include "proa.s3Env" (dict "prefix" "PROA_FETCH" "s3" .) }}
{{- end }}
{{- end -}}

{{/* dict prefix s3: endpoint, region and credentials. Begins with a line break, or is empty. */}}
{{- define "proa.s3Env" -}}
{{- $prefix := .prefix -}}
{{- with .s3.endpoint }}
- name: {{ $prefix }}_S3_ENDPOINT
  value: {{ . | quote }}
{{- end }}
{{- with .s3.region }}
- name: {{ $prefix }}_S3_REGION
  value: {{ . | quote }}
{{- end }}
{{- with .s3.existingSecret }}
{{- $secret := . }}
{{- range $key := list "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY" "AWS_SESSION_TOKEN" }}
- name: {{ $key }}
  valueFrom:
    secretKeyRef: {name: {{ $secret | quote }}, key: {{ $key }}, optional: {{ eq $key "AWS_SESSION_TOKEN" }}}
{{- end }}
{{- end }}
{{- end -}}

{{/* dict policy: to where models come from and snapshots go */}}
{{- define "proa.fetchEgress" -}}
- ports:
    {{- range .policy.fetchPorts }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
  {{- with .policy.fetchTo }}
  to: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{/* dict root model pool: programs are checked, tried out and laid out for Triton */}}
{{- define "proa.packContainer" -}}
{{- $files := include "proa.modelFiles" .model -}}
- name: pack
  image: {{ include "proa.workerImage" (dict "root" .root "pool" .pool) }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  command:
    - proa
    - pack
    - /etc/proa/models/{{ .model.name }}.yaml
    - --files
    - {{ $files }}
    - --out
    - /repository
    {{- if ne .pool.mode "cpu" }}
    - --device
    - gpu
    {{- end }}
    {{- if .model.faults }}
    - --faults
    {{- end }}
  env:
    {{- include "proa.commonEnv" .root | nindent 4 }}
  resources:
    {{- toYaml .pool.resources | nindent 4 }}
  securityContext:
    {{- include "proa.containerSecurityContext" .root | nindent 4 }}
  volumeMounts:
    - {name: models, mountPath: /etc/proa/models, readOnly: true}
    {{- if .model.source.pvc }}
    - name: files
      mountPath: {{ $files }}
      readOnly: true
      {{- with .model.source.pvc.path }}
      subPath: {{ trimPrefix "/" . | quote }}
      {{- end }}
    {{- else if not .model.source.builtin }}
    - {name: files, mountPath: {{ $files }}, readOnly: true}
    {{- end }}
    - {name: repository, mountPath: /repository}
    - {name: tmp, mountPath: /tmp}
{{- end -}}
