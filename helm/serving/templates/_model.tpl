{{/* The volume of .model: a claim, an image, or room to fetch into. */}}
{{- define "serving.modelVolume" -}}
{{- $place := regexReplaceAll "^[a-z0-9]+://" .model.uri "" }}
{{- if hasPrefix "pvc://" .model.uri -}}
persistentVolumeClaim:
  claimName: {{ splitList "/" $place | first }}
{{- else if hasPrefix "oci://" .model.uri -}}
image:
  reference: {{ $place }}
  pullPolicy: IfNotPresent
{{- else -}}
emptyDir:
  sizeLimit: {{ .root.Values.model.sizeLimit }}
{{- end }}
{{- end }}

{{/* Mounts only the model's folder of a claim, not its neighbours. */}}
{{- define "serving.modelMount" -}}
- name: model
  mountPath: /model
  readOnly: {{ .readOnly }}
  {{- if hasPrefix "pvc://" .model.uri }}
  {{- with regexReplaceAll "^pvc://[^/]+/?" .model.uri "" | trimSuffix "/" }}
  subPath: {{ . }}
  {{- end }}
  {{- end }}
{{- end }}

{{/* The init container that fetches the model and compares its checksum; empty if neither is needed. */}}
{{- define "serving.modelStep" -}}
{{- $values := .root.Values }}
{{- $fetches := include "serving.fetches" .model }}
{{- if or $fetches .model.sha256 -}}
- name: model
  image: {{ .image }}
  imagePullPolicy: {{ $values.image.pullPolicy }}
  command: [distrinews, fetch]
  args:
    {{- if $fetches }}
    - {{ .model.uri }}
    - --to=/model
    {{- else }}
    - file://{{ include "serving.modelFolder" .model }}
    {{- end }}
    {{- with .model.sha256 }}
    - --sha256={{ . }}
    {{- end }}
  {{- if $fetches }}
  env:
    {{- with $values.settings.engine }}
    - name: DISTRINEWS_ENGINE
      value: {{ . }}
    {{- end }}
    {{- with $values.model.fetchEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with $values.model.credentialsSecret }}
  envFrom:
    - secretRef:
        name: {{ . }}
  {{- end }}
  {{- end }}
  resources:
    {{- toYaml $values.resources | nindent 4 }}
  securityContext:
    {{- toYaml $values.securityContext | nindent 4 }}
  volumeMounts:
    {{- include "serving.modelMount" (dict "model" .model "readOnly" (empty $fetches)) | nindent 4 }}
    - name: tmp
      mountPath: /tmp
{{- end }}
{{- end }}
