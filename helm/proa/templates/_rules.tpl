{{/* Parts of the alerts. */}}

{{/* dict root name summary description: annotations of an alert */}}
{{- define "proa.alertTexts" -}}
{{- $anchor := printf "#%s" (lower .name) -}}
annotations:
  summary: {{ .summary | squote }}
  description: {{ .description | squote }}
  runbook: docs/runbook.md{{ $anchor }}
  {{- with .root.Values.monitoring.prometheusRule.runbookUrl }}
  runbook_url: {{ printf "%s%s" . $anchor | squote }}
  {{- end }}
{{- end -}}

{{/* dict root severity [model]: labels of an alert */}}
{{- define "proa.alertLabels" -}}
labels:
  severity: {{ .severity }}
  namespace: {{ .root.Release.Namespace | quote }}
  release: {{ .root.Release.Name | quote }}
  {{- with .model }}
  model: {{ . | quote }}
  {{- end }}
{{- end -}}

{{/* dict ratio budget rates: where the share of bad requests eats the error budget too fast, over a
     long and a short window. `ratio` has %s for the window; a rate that no ratio can reach is left
     out. */}}
{{- define "proa.burnRate" -}}
{{- $ratio := .ratio -}}
{{- $budget := .budget -}}
{{- $parts := list -}}
{{- range .rates -}}
{{- $limit := mulf (index . 0) $budget | printf "%g" -}}
{{- if lt (float64 $limit) 1.0 -}}
{{- $long := printf "%s > %s" (replace "WINDOW" (index . 1) $ratio) $limit -}}
{{- $short := printf "%s > %s" (replace "WINDOW" (index . 2) $ratio) $limit -}}
{{- $parts = append $parts (printf "(\n  %s\nand\n  %s\n)" $long $short) -}}
{{- end -}}
{{- end -}}
{{- join "\nor\n" $parts -}}
{{- end -}}

{{/* One entry of models: the bound of proa_frontend_request_seconds that its slo.latencyMs asks for */}}
{{- define "proa.latencyBound" -}}
{{- $wanted := divf (default 50 (default dict .spec.slo).latencyMs) 1000 -}}
{{- $found := "" -}}
{{- range $bound := splitList " " "0.001 0.0025 0.005 0.0075 0.01 0.015 0.02 0.025 0.03 0.04 0.05 0.075 0.1 0.15 0.2 0.3 0.5 0.75 1.0 2.5 5.0 10.0" -}}
{{- if and (not $found) (ge (float64 $bound) $wanted) -}}
{{- $found = $bound -}}
{{- end -}}
{{- end -}}
{{- $found -}}
{{- end -}}

{{/* dict root model: workers of both pools that ought to be there */}}
{{- define "proa.workersExpected" -}}
{{- $pool := include "proa.pool" . | fromYaml -}}
{{- $expected := $pool.replicas | int -}}
{{- with .root.Values.autoscaling.workers -}}
{{- if .enabled -}}{{- $expected = .minReplicas | int -}}{{- end -}}
{{- end -}}
{{- if include "proa.isDedicated" .model -}}
{{- $parity := include "proa.pool" (dict "root" .root "model" .model "parity" "true") | fromYaml -}}
{{- $expected = add $expected ($parity.replicas | int) -}}
{{- end -}}
{{- $expected -}}
{{- end -}}
