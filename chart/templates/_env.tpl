{{/*
A container's variables. Each part takes root and component, and is a list in YAML; empty values are left out, since to
backupd an empty variable is a mistake. What extraEnv names is left to it: Helm 4 refuses a name that comes twice.
*/}}
{{- define "backupd.env" -}}
{{- $own := list }}
{{- range .root.Values.extraEnv }}{{ $own = append $own .name }}{{ end }}
{{- $env := list }}
{{- range include "backupd.env.parts" . | fromYamlArray }}
{{- if not (has .name $own) }}{{ $env = append $env . }}{{ end }}
{{- end }}
{{- concat $env .root.Values.extraEnv | toYaml }}
{{- end }}

{{/*
No component has more than it needs: a drill and a refresh no password of the source, a restore no retention that is
wrong.
*/}}
{{- define "backupd.env.parts" -}}
{{- if include "backupd.hasSource" . }}
{{- include "backupd.env.source" . }}
{{- else if not .root.Values.source.services }}
- name: BACKUPD_SOURCE__SERVER
  value: {{ default .root.Release.Name .root.Values.source.server | quote }}
{{- end }}
{{- if has .component (list "restore" "refresh" "toolbox" "doctor") }}
{{- include "backupd.env.target" . }}
{{- end }}
{{- include "backupd.env.store" . }}
{{- include "backupd.env.section" (dict "section" "SIGNING" "values" (pick .root.Values.signing "publicKeys")) }}
{{- if include "backupd.signs" . }}
- name: BACKUPD_SIGNING__KEY_FILE
  value: /etc/backupd/signing/key
{{- end }}
{{- include "backupd.env.section" (dict "section" "ENCRYPTION" "values" (pick .root.Values.encryption "recipients")) }}
{{- if include "backupd.opens" . }}
- name: BACKUPD_ENCRYPTION__IDENTITIES_FILE
  value: /etc/backupd/encryption/identities
{{- end }}
{{- if has .component (list "backup" "toolbox" "doctor" "status" "digest") }}
{{- include "backupd.env.retention" . }}
{{- end }}
{{- include "backupd.env.notify" . }}
{{- if has .component (list "backup" "toolbox") }}
{{- include "backupd.env.section" (dict "section" "STORE" "values" (pick .root.Values.store "limitRate")) }}
{{- end }}
{{- if has .component (list "backup" "drill" "status" "digest") }}
{{- include "backupd.env.section" (dict "section" "EXPECT" "values" .root.Values.expect) }}
{{- end }}
{{- if has .component (list "backup" "drill") }}
{{- include "backupd.env.section" (dict "section" "METRICS" "values" .root.Values.metrics) }}
{{- end }}
{{- include "backupd.env.how" . }}
{{- if eq .component "backup" }}
{{- with int64 .root.Values.backup.wait }}
- name: BACKUPD_BACKUP_WAIT
  value: {{ . | quote }}
{{- end }}
{{- else if eq .component "status" }}
{{- $name := printf "deployment/%s-toolbox" (include "backupd.fullname" .root) }}
{{- $toolbox := printf "kubectl -n %s exec %s -c backupd -- backupd" .root.Release.Namespace $name }}
{{- $serve := pick .root.Values.status "refresh" "command" "runbooksUrl" }}
{{- if .root.Values.toolbox.enabled }}{{ $serve = merge $serve (dict "command" $toolbox) }}{{ end }}
{{- include "backupd.env.section" (dict "section" "SERVE" "values" $serve) }}
{{- if .root.Values.status.existingSecret }}
- name: BACKUPD_SERVE__TOKEN_FILE
  value: /etc/backupd/token/token
{{- end }}
{{- else if eq .component "restore" }}
- name: BACKUPD_COMMAND
  value: restore
{{- else if eq .component "refresh" }}
{{- $refresh := .root.Values.refresh }}
- name: BACKUPD_COMMAND
  value: restore
- name: BACKUPD_RESTORE_BACKUP
  value: {{ $refresh.backup | replace "$" "$$" | quote }}
- name: BACKUPD_RESTORE_REPLACE
  value: {{ $refresh.database | replace "$" "$$" | quote }}
# It never looks like the one that was backed up: it is in another cluster, and has another name.
- name: BACKUPD_RESTORE_YES_REPLACE
  value: {{ $refresh.database | replace "$" "$$" | quote }}
{{- if $refresh.sql.key }}
- name: BACKUPD_RESTORE_SQL
  value: /etc/backupd/sql/{{ $refresh.sql.key }}
{{- end }}
{{- else if eq .component "doctor" }}
{{- with .root.Values.source.services }}
- name: PGSERVICE
  value: {{ (first .).name | quote }}
{{- end }}
{{- else if eq .component "drill" }}
- name: BACKUPD_DRILL__URL
  value: postgresql://postgres@127.0.0.1/postgres?sslmode=disable
- name: BACKUPD_DRILL__PASSWORD
  value: drill
{{- if .root.Values.drill.backup }}
- name: BACKUPD_DRILL_BACKUP
  value: {{ .root.Values.drill.backup | quote }}
{{- else }}
- name: BACKUPD_DRILL_NEWEST_UNDRILLED
  value: "true"
{{- end }}
{{- end }}
{{- end }}

{{/*
The settings of one section, by their names. Takes section, values.
$(NAME) in a variable's value is another one's to Kubernetes, unless the dollar is doubled.
*/}}
{{- define "backupd.env.section" -}}
{{- range $name, $value := .values }}
{{- with include "backupd.text" $value }}
- name: BACKUPD_{{ $.section }}__{{ $name | snakecase | upper }}
  value: {{ . | replace "$" "$$" | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* A missing ConfigMap, Secret or key would hang the pod: so each is optional, and backupd says what is missing. */}}
{{- define "backupd.env.source" -}}
{{- $source := .root.Values.source }}
{{- $values := pick $source "databases" "host" "port" "user" "sslmode" }}
{{- include "backupd.env.section" (dict "section" "SOURCE" "values" $values) }}
{{- range $name, $key := $source.configMapKeys }}
{{- if $key }}
- name: BACKUPD_SOURCE__{{ upper $name }}
  valueFrom:
    configMapKeyRef:
      name: {{ $source.existingConfigMap }}
      key: {{ $key }}
      optional: true
{{- end }}
{{- end }}
{{- if $source.services }}
{{- $names := list }}
{{- range $source.services }}{{ $names = append $names .name }}{{ end }}
- name: BACKUPD_SOURCE__SERVICES
  value: {{ join "," $names | quote }}
- name: PGSERVICEFILE
  value: /etc/backupd/services/pg_service.conf
{{- else }}
- name: BACKUPD_SOURCE__SERVER
  value: {{ default .root.Release.Name $source.server | quote }}
{{- end }}
{{- with $source.existingSecret }}
{{- with $source.secretKeys.user }}
- name: BACKUPD_SOURCE__USER
  valueFrom:
    secretKeyRef:
      name: {{ $source.existingSecret }}
      key: {{ . }}
      optional: true
{{- end }}
{{- if $source.secretKeys.pgpass }}
- name: PGPASSFILE
  value: /etc/backupd/source/pgpass
{{- else }}
- name: BACKUPD_SOURCE__PASSWORD_FILE
  value: /etc/backupd/source/password
{{- end }}
{{- end }}
{{- with $source.tls }}
{{- if and .existingSecret .caKey }}
- name: BACKUPD_SOURCE__SSLROOTCERT
  value: /etc/backupd/tls/ca.crt
{{- end }}
{{- if and .existingSecret .certKey }}
- name: PGSSLCERT
  value: /etc/backupd/tls/tls.crt
- name: PGSSLKEY
  value: /etc/backupd/tls/tls.key
{{- end }}
{{- end }}
{{- end }}

{{- define "backupd.env.target" -}}
{{- $target := include "backupd.target" . | fromYaml }}
{{- include "backupd.env.section" (dict "section" "TARGET" "values" (omit $target "existingSecret" "secretKeys")) }}
{{- if $target.existingSecret }}
- name: BACKUPD_TARGET__PASSWORD_FILE
  value: /etc/backupd/target/password
{{- end }}
{{- if include "backupd.targetAuthority" . }}
- name: BACKUPD_TARGET__SSLROOTCERT
  value: /etc/backupd/tls/ca.crt
{{- end }}
{{- end }}

{{- define "backupd.env.store" -}}
{{- $store := .root.Values.store }}
{{- if $store.pvc.enabled }}
- name: BACKUPD_STORE__URL
  value: file:///backups
{{- else }}
{{- include "backupd.env.section" (dict "section" "STORE" "values" (pick $store "url")) }}
{{- include "backupd.env.section" (dict "section" "STORE__S3" "values" (omit $store.s3 "existingSecret" "secretKeys")) }}
{{- $secret := $store.s3.existingSecret }}
{{- if eq .component "drill" }}{{ $secret = default $secret .root.Values.drill.existingSecret }}{{ end }}
{{- if $secret }}
{{- $names := dict
  "AWS_ACCESS_KEY_ID" "accessKeyId"
  "AWS_SECRET_ACCESS_KEY" "secretAccessKey"
  "AWS_SESSION_TOKEN" "sessionToken"
}}
{{- range $name, $key := $names }}
{{- with get $store.s3.secretKeys $key }}
- name: {{ $name }}
  valueFrom:
    secretKeyRef:
      name: {{ $secret }}
      key: {{ . }}
      optional: true
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Who is told, of what the component does: a missing Secret or key tells nobody, and stops nothing. */}}
{{- define "backupd.env.notify" -}}
{{- $notify := .root.Values.notify }}
{{- $names := dict "BACKUPD_NOTIFY__URLS" "urls" "BACKUPD_NOTIFY__PING_URL" "pingUrl" }}
{{- range $name, $key := $names }}
{{- $told := eq $key "urls" | ternary (list "backup" "drill" "digest" "toolbox" "doctor") (list "backup") }}
{{- if and $notify.existingSecret (get $notify.secretKeys $key) (has $.component $told) }}
- name: {{ $name }}
  valueFrom:
    secretKeyRef:
      name: {{ $notify.existingSecret | quote }}
      key: {{ get $notify.secretKeys $key | quote }}
      optional: true
{{- end }}
{{- end }}
{{- end }}

{{- define "backupd.env.retention" -}}
{{- $retention := .root.Values.retention }}
{{- if not $retention.keepEverything }}
{{- include "backupd.env.section" (dict "section" "RETENTION" "values" (omit $retention "keepEverything")) }}
{{- end }}
{{- end }}

{{/* Dump, log and scratch. A person reads what is run in the toolbox. */}}
{{- define "backupd.env.how" -}}
{{- $log := .root.Values.log }}
{{- if eq .component "toolbox" }}{{ $log = merge (dict "format" "console") $log }}{{ end }}
{{- include "backupd.env.section" (dict "section" "DUMP" "values" .root.Values.dump) }}
{{- include "backupd.env.section" (dict "section" "LOG" "values" $log) }}
- name: BACKUPD_SCRATCH__DIRECTORY
  value: /scratch
- name: BACKUPD_SCRATCH__LIMIT
  value: {{ include "backupd.scratchLimit" .root | quote }}
{{- end }}
