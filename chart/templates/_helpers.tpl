{{/* The chart's name. */}}
{{- define "backupd.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 44 | trimSuffix "-" }}
{{- end }}

{{/* The name of all objects, where need be with a suffix. A CronJob's may have 52 characters, and -refresh has 8. */}}
{{- define "backupd.fullname" -}}
{{- $name := include "backupd.name" . }}
{{- $both := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) }}
{{- default $both .Values.fullnameOverride | trunc 44 | trimSuffix "-" }}
{{- end }}

{{/* What selects this release's pods; a component's, where one is given. Takes root, component. */}}
{{- define "backupd.selectorLabels" -}}
app.kubernetes.io/name: {{ include "backupd.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end }}

{{/* Takes root, component. */}}
{{- define "backupd.labels" -}}
{{ include "backupd.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{/*
An object's metadata. Takes root, component, suffix (of its name) or name, annotations (its own), and cluster (true
where it is in no namespace).
*/}}
{{- define "backupd.metadata" -}}
name: {{ default (print (include "backupd.fullname" .root) .suffix) .name }}
{{- if not .cluster }}
namespace: {{ .root.Release.Namespace }}
{{- end }}
labels:
  {{- include "backupd.labels" . | nindent 2 }}
{{- with merge (dict) (.annotations | default dict) .root.Values.annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "backupd.serviceAccountName" -}}
{{- default (.Values.serviceAccount.create | ternary (include "backupd.fullname" .) "default") .Values.serviceAccount.name }}
{{- end }}

{{/* Where a component restores to, as YAML: a refresh has a server of its own. Takes root, component. */}}
{{- define "backupd.target" -}}
{{- eq .component "refresh" | ternary .root.Values.refresh.target .root.Values.restore.target | toYaml }}
{{- end }}

{{/* Whether the certificate authority is the target's too: it is not asked for unless sslmode does. */}}
{{- define "backupd.targetAuthority" -}}
{{- $target := include "backupd.target" . | fromYaml }}
{{- with .root.Values.source.tls }}
{{- if and .existingSecret .caKey $target.host (hasPrefix "verify-" $target.sslmode) }}true{{ end }}
{{- end }}
{{- end }}

{{/* Whether a component has the signing key: who only restores vouches for nothing. Takes root, component. */}}
{{- define "backupd.signs" -}}
{{- if and .root.Values.signing.existingSecret (has .component (list "backup" "drill" "toolbox" "doctor")) }}true{{ end }}
{{- end }}

{{/* Whether a component has the private keys of encryption: nothing that runs beside the source can open its backups. */}}
{{- define "backupd.opens" -}}
{{- if and .root.Values.encryption.existingSecret (has .component (list "restore" "drill" "refresh")) }}true{{ end }}
{{- end }}

{{/* Whether a component talks to the source. A page or digest of several servers has none that is its own. Takes root, component. */}}
{{- define "backupd.hasSource" -}}
{{- $many := and (has .component (list "status" "digest")) .root.Values.source.services }}
{{- if not (or $many (has .component (list "drill" "refresh"))) }}true{{ end }}
{{- end }}

{{- define "backupd.claimName" -}}
{{- default (include "backupd.fullname" .) .Values.store.pvc.existingClaim }}
{{- end }}

{{/* The image: the digest wins over the tag. */}}
{{- define "backupd.image" -}}
{{- with .Values.image.registry }}{{ . }}/{{ end }}{{ .Values.image.repository }}
{{- with .Values.image.digest }}@{{ . }}{{ else }}:{{ default .Chart.AppVersion .Values.image.tag }}{{ end }}
{{- end }}

{{/* A value as a variable's text. A number in a values file is a float to Helm, and would be written as 1e+06. */}}
{{- define "backupd.text" -}}
{{- if kindIs "slice" . }}{{ join "," . }}
{{- else if kindIs "float64" . }}{{ int64 . }}
{{- else if not (kindIs "invalid" .) }}{{ . }}
{{- end }}
{{- end }}

{{/*
A quantity in bytes; nothing where it is no whole number with a unit, or no 64 bits hold it.
The division finds an overflow, and int64 gives 0 for what is too long for it.
*/}}
{{- define "backupd.bytes" -}}
{{- $text := include "backupd.text" . }}
{{- if regexMatch "^[1-9][0-9]*([KMGTPE]i|[kMGTPE])?$" $text }}
{{- $number := regexFind "^[0-9]+" $text | int64 }}
{{- $unit := 1 | int64 }}
{{- $base := hasSuffix "i" $text | ternary 1024 1000 }}
{{- range until (index (dict "" 0 "k" 1 "K" 1 "M" 2 "G" 3 "T" 4 "P" 5 "E" 6) (regexFind "[kKMGTPE]" $text)) }}
{{- $unit = mul $unit $base }}
{{- end }}
{{- $bytes := mul $number $unit }}
{{- if and (gt $number 0) (eq (div $bytes $unit) $number) }}{{ $bytes }}{{ end }}
{{- end }}
{{- end }}

{{/* What scratch may hold: a tenth less than the volume, since a full one gets the pod evicted, and its log with it. */}}
{{- define "backupd.scratchLimit" -}}
{{- with include "backupd.bytes" .Values.scratch.size }}{{ mul (div (int64 .) 10) 9 }}{{ end }}
{{- end }}

{{/* How many indexes the Job of a fan-out has. */}}
{{- define "backupd.completions" -}}
{{- default .Values.source.databases .Values.source.services | len }}
{{- end }}
