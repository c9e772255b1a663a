{{/*
All that is wrong with the values, one sentence a line: what the schema cannot say, or says less well.
`backupd.check` ends the render with them; cronjob.yaml, which is always rendered, begins with it.
*/}}
{{- define "backupd.check" -}}
{{- with include "backupd.problems" . | trim }}{{ fail (printf "the values need a change:\n%s" .) }}{{ end }}
{{- end }}

{{- define "backupd.problems" }}
{{- $source := .Values.source }}
{{- $services := $source.services }}
{{- if not (or $source.host $source.configMapKeys.host $services) }}
- no source: set source.host, or source.existingConfigMap and source.configMapKeys.host, or source.services
{{- end }}
{{- if not (or $source.databases $source.configMapKeys.databases) }}
- no databases: set source.databases, as [app] or ["*"], or source.existingConfigMap and source.configMapKeys.databases
{{- end }}
{{- /* libpq would take the name of the user that the process runs as, and 10001 has none. */}}
{{- $user := or $source.user $source.configMapKeys.user $source.secretKeys.user .Values.extraEnvFrom }}
{{- range .Values.extraEnv }}
{{- if has .name (list "PGUSER" "BACKUPD_SOURCE__USER") }}{{ $user = true }}{{ end }}
{{- end }}
{{- if not (or $user $services) }}
- no role: set source.user, or source.configMapKeys.user, or source.secretKeys.user
{{- end }}
{{- range $services }}
{{- if not (or $user .user) }}
- no role for {{ .name }}: set its user in source.services, or source.user for all
{{- end }}
{{- end }}
{{- range $name, $key := $source.configMapKeys }}
{{- if and $key (not $source.existingConfigMap) }}
- source.configMapKeys.{{ $name }} is set, but source.existingConfigMap is not
{{- end }}
{{- if and $key (get $source $name) }}
- source.{{ $name }} and source.configMapKeys.{{ $name }} are both set: leave one of them empty
{{- end }}
{{- end }}
{{- if and $source.secretKeys.user (or $source.user $source.configMapKeys.user) }}
- source.secretKeys.user and source.user or source.configMapKeys.user are both set: leave one of them empty
{{- end }}
{{- range $name := list "user" "pgpass" }}
{{- if and (get $source.secretKeys $name) (not $source.existingSecret) }}
- source.secretKeys.{{ $name }} is set, but source.existingSecret is not
{{- end }}
{{- end }}
{{- if and .Values.notify.digestSchedule (not .Values.notify.existingSecret) }}
- notify.digestSchedule is set, but notify.existingSecret is not, so that nobody would be told
{{- end }}
{{- if $services }}
{{- if or $source.host $source.configMapKeys.host $source.server }}
- source.services is set: leave source.host, source.configMapKeys.host and source.server empty, each service has its own
{{- end }}
{{- if not .Values.fanOut.enabled }}
- source.services needs fanOut.enabled: each server is one index of the Job
{{- end }}
{{- $names := list }}
{{- range $services }}
{{- if has .name $names }}
- source.services has {{ .name }} twice
{{- end }}
{{- $names = append $names .name }}
{{- end }}
{{- end }}

{{- with $source.tls }}
{{- if ne (empty .certKey) (empty .keyKey) }}
- source.tls.certKey and source.tls.keyKey go together: set both or none
{{- end }}
{{- if and .existingSecret .caKey }}
{{- range default (list $source) $services }}
{{- if not (default $source.sslmode .sslmode | default "" | hasPrefix "verify-") }}
- source.tls has a certificate authority, which nothing but sslmode verify-full or verify-ca asks: set it
  {{- with .name }} for {{ . }}{{ end }}, or source.tls.caKey to ""
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- with .Values.store }}
{{- if not (or .pvc.enabled .url) }}
- no store: set store.pvc.enabled and store.pvc.size, or store.url to s3://bucket/prefix
{{- end }}
{{- if and .pvc.enabled .url }}
- store.pvc.enabled and store.url are both set: choose one
{{- end }}
{{- if and .url (not (hasPrefix "s3://" .url)) }}
- store.url must be s3://bucket/prefix; a directory is store.pvc
{{- end }}
{{- if and .pvc.enabled (not .pvc.existingClaim) (not .pvc.size) }}
- the claim has no size: set store.pvc.size, such as 50Gi, or store.pvc.existingClaim
{{- end }}
{{- end }}

{{- with .Values.signing }}
{{- if and .publicKeys (not .existingSecret) }}
- signing.publicKeys is set, but signing.existingSecret is not: no pod would trust the backups that others take
{{- end }}
{{- if and .existingSecret (not .secretKeys.key) }}
- signing.existingSecret is set, but signing.secretKeys.key is not
{{- end }}
{{- end }}

{{- with .Values.encryption }}
{{- if and .existingSecret (not .secretKeys.identities) }}
- encryption.existingSecret is set, but encryption.secretKeys.identities is not
{{- end }}
{{- range $name := list "drill" "refresh" }}
{{- if and $.Values.encryption.recipients (not $.Values.encryption.existingSecret) (get $.Values $name).enabled }}
- encryption.recipients and {{ $name }}.enabled are set, but encryption.existingSecret is not: nothing could open a backup
{{- end }}
{{- end }}
{{- end }}

{{- if not .Values.schedule }}
- no schedule: set schedule, such as "30 2 * * *"
{{- end }}
{{- with .Values.backup }}
{{- if le (int64 .jobDeadlineSeconds) (int64 .podDeadlineSeconds) }}
- backup.jobDeadlineSeconds must be longer than backup.podDeadlineSeconds: the Job's deletes the pod, and its log with it
{{- end }}
{{- end }}
{{- if and .Values.fanOut.enabled (not $services) }}
{{- if not $source.databases }}
- fanOut needs source.databases or source.services: how many there are must be known when the chart is rendered
{{- end }}
{{- range $source.databases }}
{{- if regexMatch "[*?\\[]" . }}
- fanOut needs the names of databases, and {{ . | quote }} is a pattern: what it matches may change between pods
{{- end }}
{{- end }}
{{- end }}

{{- $rules := dict }}
{{- range $name, $rule := .Values.retention }}
{{- if and (hasPrefix "keep" $name) (ne $name "keepEverything") $rule }}{{ $rules = set $rules $name $rule }}{{ end }}
{{- end }}
{{- if not (or $rules .Values.retention.keepEverything) }}
- no retention: set a rule, such as retention.keepDaily, or retention.keepEverything
{{- end }}
{{- if and $rules .Values.retention.keepEverything }}
- retention.keepEverything and retention.{{ keys $rules | sortAlpha | first }} are both set: choose one
{{- end }}

{{- with .Values.scratch }}
{{- if lt (include "backupd.scratchLimit" $ | default 0 | int64) 1048576 }}
- scratch.size must be a whole number of bytes, or one with a unit such as 500Mi or 10Gi, and at least 2Mi
{{- end }}
{{- if and .medium .storageClass }}
- scratch.medium and scratch.storageClass are both set: choose one
{{- end }}
{{- end }}

{{- with .Values.restore.target }}
{{- if and .host (not .user) }}
- restore.target.host is set, but restore.target.user is not: the source's role is not taken for another server
{{- end }}
{{- end }}
{{- with .Values.drill }}
{{- if and .enabled (not .schedule) }}
- no schedule of drills: set drill.schedule, such as "0 5 * * 0"
{{- end }}
{{- if and .enabled (not .image) }}
- no image for drills: set drill.image to one of PostgreSQL, with the source's version and extensions
{{- end }}
{{- end }}
{{- with .Values.refresh }}
{{- if .enabled }}
{{- if not .schedule }}
- no schedule of refreshes: set refresh.schedule, such as "0 4 * * 1"
{{- end }}
{{- if not .backup }}
- no backup for refreshes: set refresh.backup, such as app@latest
{{- end }}
{{- if not .database }}
- no database for refreshes: set refresh.database to the one that is replaced, such as staging
{{- end }}
{{- if not (and .target.host .target.user) }}
- no server for refreshes: set refresh.target.host and refresh.target.user; the source's would lose live data
{{- end }}
{{- if ne (empty .sql.existingConfigMap) (empty .sql.key) }}
- refresh.sql.existingConfigMap and refresh.sql.key go together: set both or none
{{- end }}
{{- end }}
{{- end }}
{{- with .Values.status }}
{{- $pvc := $.Values.store.pvc }}
{{- $held := and $pvc.enabled (not $pvc.existingClaim) (not (has "ReadWriteMany" $pvc.accessModes)) }}
{{- if and .enabled $held (not .oneNode) }}
- status would hold a volume that only one node may mount, and backups on others would wait for ever: use S3, or
  store.pvc.accessModes [ReadWriteMany], or set status.oneNode where all pods run on one node
{{- end }}
{{- if and .serviceMonitor.enabled (not .enabled) }}
- status.serviceMonitor is enabled, but status is not: there would be nothing to ask
{{- end }}
{{- end }}
{{- $alerts := list }}
{{- range $path, $_ := .Files.Glob "rules/*.yaml" }}
{{- $alerts = append $alerts ($.Files.Get $path | fromYaml).alert }}
{{- end }}
{{- range .Values.alerts.exclude }}
{{- if not (has . $alerts) }}
- alerts.exclude names {{ . }}, and there is no such alert: there are {{ join ", " $alerts }}
{{- end }}
{{- end }}
{{- with .Values.trigger.rbac }}
{{- if and .enabled (not .serviceAccountName) }}
- trigger.rbac is enabled: set trigger.rbac.serviceAccountName to who may start backups
{{- end }}
{{- end }}
{{- $names := list }}
{{- range .Values.extraEnv }}
{{- if has .name $names }}
- extraEnv has {{ .name }} twice
{{- end }}
{{- $names = append $names .name }}
{{- end }}
{{- end }}
