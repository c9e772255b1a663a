{{/*
The one pod of backup, restore, drill, refresh, toolbox, status and doctor: no other file knows containers.
A pod template takes root, component and, where it has to end, podDeadlineSeconds.
*/}}
{{- define "backupd.podTemplate" -}}
metadata:
  labels:
    {{- merge (dict) (include "backupd.selectorLabels" . | fromYaml) .root.Values.podLabels | toYaml | nindent 4 }}
  {{- with .root.Values.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- include "backupd.pod" . | nindent 2 }}
{{- end }}

{{- define "backupd.pod" -}}
{{- $values := .root.Values -}}
{{- if not (has .component (list "toolbox" "status")) -}}
restartPolicy: Never
# The pod's own deadline, unlike its Job's, leaves its log and its termination message.
activeDeadlineSeconds: {{ .podDeadlineSeconds }}
terminationGracePeriodSeconds: {{ int64 $values.backup.terminationGracePeriodSeconds }}
{{ else if eq .component "toolbox" -}}
# sleep takes no notice of SIGTERM.
terminationGracePeriodSeconds: 1
{{ end -}}
serviceAccountName: {{ include "backupd.serviceAccountName" .root }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with $values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.podSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if eq .component "drill" }}
initContainers:
  - {{ include "backupd.postgres" . | nindent 4 | trim }}
{{- else if eq .component "refresh" }}
initContainers:
  - {{ include "backupd.forget" . | nindent 4 | trim }}
{{- end }}
containers:
  - {{ include "backupd.container" . | nindent 4 | trim }}
volumes:
  {{- include "backupd.volumes" . | nindent 2 }}
{{- range $field := list "nodeSelector" "tolerations" "affinity" "topologySpreadConstraints" "priorityClassName" }}
{{- with get $values $field }}
{{ $field }}: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}

{{/* A container of backupd's own image. Takes root, component and, where it is not the pod's main one, name and args. */}}
{{- define "backupd.container" -}}
{{- $values := .root.Values -}}
name: {{ default "backupd" .name }}
image: {{ include "backupd.image" .root }}
imagePullPolicy: {{ $values.image.pullPolicy }}
{{- if .args }}
args: {{ toJson .args }}
{{- else if eq .component "backup" "drill" "doctor" "digest" }}
args: [{{ .component }}]
{{- else if eq .component "toolbox" }}
command: [sleep, infinity]
{{- else if eq .component "status" }}
{{- include "backupd.serves" . }}
{{- end }}
env:
  {{- include "backupd.env" . | nindent 2 }}
{{- with $values.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
# backupd writes the message itself; the log's end stands in for one that was killed before it could.
terminationMessagePolicy: FallbackToLogsOnError
{{- with $values.securityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumeMounts:
  {{- include "backupd.mounts" . | nindent 2 }}
{{- end }}

{{/* The daemon, which has no schedule here. A page that says that the store is gone must be reachable: it is ready when it lives. */}}
{{- define "backupd.serves" }}
{{- $status := .root.Values.status }}
args: [serve, --host, {{ $status.host | quote }}, --port, {{ int64 $status.port | quote }}]
ports:
  - name: http
    containerPort: {{ int64 $status.port }}
readinessProbe:
  httpGet:
    path: /healthz
    port: http
livenessProbe:
  httpGet:
    path: /healthz
    port: http
  timeoutSeconds: 10
{{- end }}

{{/* What a refresh begins with: the database that the last one kept is dropped, so that one old copy at most stays. */}}
{{- define "backupd.forget" -}}
{{- $args := list "undo" (.root.Values.refresh.database | replace "$" "$$") "--drop" "--yes" }}
{{- include "backupd.container" (dict "root" .root "component" .component "name" "forget" "args" $args) }}
{{- end }}

{{/* A drill's throw-away PostgreSQL: nobody but the container beside it can reach it, so its password is no secret. */}}
{{- define "backupd.postgres" -}}
{{- $drill := .root.Values.drill -}}
name: postgres
image: {{ $drill.image }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
restartPolicy: Always
args: [postgres, -c, listen_addresses=127.0.0.1]
env:
  - name: POSTGRES_PASSWORD
    value: drill
  - name: PGDATA
    value: /pg/data
startupProbe:
  exec:
    command: [pg_isready, -h, 127.0.0.1, -U, postgres]
  periodSeconds: 1
  failureThreshold: 300
securityContext:
  {{- $user := dict }}
  {{- with $drill.runAsUser }}{{ $user = dict "runAsUser" (int64 .) }}{{ end }}
  {{- merge $user .root.Values.securityContext | toYaml | nindent 2 }}
{{- with $drill.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumeMounts:
  - name: pg
    mountPath: /pg
  - name: run
    mountPath: /var/run/postgresql
  - name: run
    mountPath: /tmp
  - name: shm
    mountPath: /dev/shm
{{- end }}

{{- define "backupd.mounts" -}}
{{- $values := .root.Values -}}
- name: tmp
  mountPath: /tmp
- name: scratch
  mountPath: /scratch
{{- if $values.store.pvc.enabled }}
- name: store
  mountPath: /backups
  {{- if eq .component "status" }}
  readOnly: true
  {{- end }}
{{- end }}
{{- range include "backupd.files" . | fromYamlArray }}
- name: {{ .name }}
  mountPath: /etc/backupd/{{ .name }}
  readOnly: true
{{- end }}
{{- with $values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "backupd.volumes" -}}
{{- $values := .root.Values -}}
# Small, and in memory: the password file that libpq reads lies here.
- name: tmp
  emptyDir:
    medium: Memory
    sizeLimit: 64Mi
- name: scratch
  {{- include "backupd.scratch" (dict "root" .root "size" $values.scratch.size "medium" $values.scratch.medium) | nindent 2 }}
{{- if $values.store.pvc.enabled }}
- name: store
  persistentVolumeClaim:
    claimName: {{ include "backupd.claimName" .root }}
{{- end }}
{{- with include "backupd.files" . }}
{{ . | trim }}
{{- end }}
{{- if eq .component "drill" }}
- name: pg
  {{- include "backupd.scratch" (dict "root" .root "size" $values.drill.size) | nindent 2 }}
- name: run
  emptyDir: {}
# Parallel index builds need more than the 64 MB that a container has.
- name: shm
  emptyDir:
    medium: Memory
{{- end }}
{{- with $values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Room that lasts as long as the pod. Takes root, size and, where it is one, medium. */}}
{{- define "backupd.scratch" -}}
{{- if .root.Values.scratch.storageClass -}}
ephemeral:
  volumeClaimTemplate:
    metadata:
      labels:
        {{- include "backupd.selectorLabels" (dict "root" .root) | nindent 8 }}
    spec:
      accessModes: [ReadWriteOnce]
      storageClassName: {{ .root.Values.scratch.storageClass }}
      resources:
        requests:
          storage: {{ include "backupd.text" .size }}
{{- else -}}
emptyDir:
  sizeLimit: {{ include "backupd.text" .size }}
  {{- with .medium }}
  medium: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* The volumes with files to read; each is mounted as /etc/backupd/NAME. */}}
{{- define "backupd.files" -}}
{{- $source := .root.Values.source }}
{{- $target := include "backupd.target" . | fromYaml }}
{{- if include "backupd.hasSource" . }}
{{- if $source.services }}
- name: services
  configMap:
    name: {{ include "backupd.fullname" .root }}-services
{{- end }}
{{- if $source.existingSecret }}
{{- $keys := dict "password" $source.secretKeys.password }}
{{- with $source.secretKeys.pgpass }}{{ $keys = dict "pgpass" . }}{{ end }}
{{- include "backupd.secretVolume" (dict "name" "source" "secret" $source.existingSecret "keys" $keys) }}
{{- end }}
{{- with $source.tls }}
{{- if .existingSecret }}
{{- $keys := dict "ca.crt" .caKey "tls.crt" .certKey "tls.key" .keyKey }}
{{- include "backupd.secretVolume" (dict "name" "tls" "secret" .existingSecret "keys" $keys) }}
{{- end }}
{{- end }}
{{- end }}
{{- if include "backupd.signs" . }}
{{- $signing := .root.Values.signing }}
{{- $keys := dict "key" $signing.secretKeys.key }}
{{- include "backupd.secretVolume" (dict "name" "signing" "secret" $signing.existingSecret "keys" $keys) }}
{{- end }}
{{- if include "backupd.opens" . }}
{{- $encryption := .root.Values.encryption }}
{{- $keys := dict "identities" $encryption.secretKeys.identities }}
{{- include "backupd.secretVolume" (dict "name" "encryption" "secret" $encryption.existingSecret "keys" $keys) }}
{{- end }}
{{- if eq .component "refresh" }}
{{- if include "backupd.targetAuthority" . }}
{{- $keys := dict "ca.crt" $source.tls.caKey }}
{{- include "backupd.secretVolume" (dict "name" "tls" "secret" $source.tls.existingSecret "keys" $keys) }}
{{- end }}
{{- with .root.Values.refresh.sql }}
{{- if .existingConfigMap }}
- name: sql
  configMap:
    name: {{ .existingConfigMap }}
    optional: true
    items:
      - key: {{ .key }}
        path: {{ .key }}
{{- end }}
{{- end }}
{{- end }}
{{- if eq .component "status" }}
{{- with .root.Values.status }}
{{- if .existingSecret }}
{{- include "backupd.secretVolume" (dict "name" "token" "secret" .existingSecret "keys" (pick .secretKeys "token")) }}
{{- end }}
{{- end }}
{{- end }}
{{- if and $target.existingSecret (not (has .component (list "backup" "drill" "status" "digest"))) }}
{{- $keys := dict "password" $target.secretKeys.password }}
{{- include "backupd.secretVolume" (dict "name" "target" "secret" $target.existingSecret "keys" $keys) }}
{{- end }}
{{- end }}

{{/* A Secret's keys as files; optional, so that a missing one is backupd's to report. Takes name, secret, keys. */}}
{{- define "backupd.secretVolume" }}
- name: {{ .name }}
  secret:
    secretName: {{ .secret }}
    optional: true
    defaultMode: 0440
    items:
      {{- range $file, $key := .keys }}
      {{- if $key }}
      - key: {{ $key }}
        path: {{ $file }}
      {{- end }}
      {{- end }}
{{- end }}
