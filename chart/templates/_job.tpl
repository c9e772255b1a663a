{{/*
A Job's spec. Takes root, component, podDeadlineSeconds, jobDeadlineSeconds, backoffLimit, ttlSecondsAfterFinished;
`fanOut: true` makes an Indexed Job of it.
*/}}
{{- define "backupd.jobTemplate" -}}
{{- $fanOut := .root.Values.fanOut -}}
metadata:
  labels:
    {{- include "backupd.labels" . | nindent 4 }}
  {{- with .root.Values.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- if .fanOut }}
  completionMode: Indexed
  completions: {{ include "backupd.completions" .root }}
  parallelism: {{ int64 $fanOut.parallelism }}
  backoffLimitPerIndex: {{ int64 $fanOut.backoffLimitPerIndex }}
  {{- with include "backupd.text" $fanOut.maxFailedIndexes }}
  maxFailedIndexes: {{ . }}
  {{- end }}
  {{- else }}
  backoffLimit: {{ .backoffLimit }}
  {{- end }}
  activeDeadlineSeconds: {{ .jobDeadlineSeconds }}
  {{- with include "backupd.text" .ttlSecondsAfterFinished }}
  ttlSecondsAfterFinished: {{ . }}
  {{- end }}
  # Never two at a time: the next try waits until the last one's pod has ended.
  podReplacementPolicy: Failed
  podFailurePolicy:
    rules:
      # A drained node or an eviction is nobody's fault, and costs no retry.
      - action: Ignore
        onPodConditions:
          - type: DisruptionTarget
            status: "True"
      # What another try cannot cure: settings, several reasons, access, versions, verification, target, room.
      - action: {{ .fanOut | ternary "FailIndex" "FailJob" }}
        onExitCodes:
          containerName: backupd
          operator: In
          values: [2, 3, 12, 13, 14, 15, 17]
  template:
    {{- include "backupd.podTemplate" . | nindent 4 }}
{{- end }}
