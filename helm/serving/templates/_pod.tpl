{{/* Folder of the model in the container. */}}
{{- define "serving.modelFolder" -}}
/model{{ with .imagePath }}/{{ . }}{{ end }}
{{- end }}

{{/* True if pods fetch their model over the network; otherwise the node mounts it. */}}
{{- define "serving.fetches" -}}
{{- if not (or (hasPrefix "pvc://" .uri) (hasPrefix "oci://" .uri)) }}true{{ end }}
{{- end }}

{{/* The server's drain_seconds, 20 for what is in flight and 5 to spare, and a preStop sleep. */}}
{{- define "serving.gracePeriod" -}}
{{- if kindIs "invalid" .Values.terminationGracePeriodSeconds }}
{{- $drain := hasKey .Values.settings "drain_seconds" | ternary .Values.settings.drain_seconds 5 }}
{{- $sleep := dig "preStop" "sleep" "seconds" 0 .Values.lifecycle }}
{{- add (ceil $drain) $sleep 25 }}
{{- else }}
{{- .Values.terminationGracePeriodSeconds }}
{{- end }}
{{- end }}

{{/* The server's own variables. Numbers through toJson: YAML would print those from 1,000,000 on as 1e+06. */}}
{{- define "serving.environment" -}}
- name: DISTRINEWS_PORT
  value: {{ .Values.containerPort | quote }}
- name: DISTRINEWS_METRICS_PORT
  value: {{ .Values.metricsPort | quote }}
{{- range $name, $value := mergeOverwrite (dict "host" "0.0.0.0") .Values.settings }}
{{- if not (kindIs "invalid" $value) }}
- name: DISTRINEWS_{{ upper $name }}
  {{- if kindIs "slice" $value }}
  value: {{ join "," $value | quote }}
  {{- else if kindIs "string" $value }}
  value: {{ $value | quote }}
  {{- else }}
  value: {{ toJson $value | quote }}
  {{- end }}
{{- end }}
{{- end }}
{{- if .Values.apiKeys.existingSecret }}
- name: DISTRINEWS_API_KEYS_FILE
  value: /etc/distrinews/{{ .Values.apiKeys.secretKey }}
{{- end }}
{{- end }}

{{/* A pod of .track (server or canary) with .model and .image, for the release .root. */}}
{{- define "serving.pod" -}}
{{- $values := .root.Values -}}
metadata:
  labels:
    {{- include "serving.selector" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .track }}
    app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
    app.kubernetes.io/part-of: distrinews
    {{- with $values.commonLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- with .model.version }}
    distrinews/model: {{ . | quote }}
    {{- end }}
    {{- with $values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    kubectl.kubernetes.io/default-container: server
    {{- with $values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "serving.serviceAccountName" .root }}
  automountServiceAccountToken: false
  # Variables named after Services would look like settings of the server.
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ include "serving.gracePeriod" .root }}
  {{- with $values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with $values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    {{- toYaml $values.podSecurityContext | nindent 4 }}
  {{- $steps := list (include "serving.modelStep" .) (empty $values.extraInitContainers | ternary "" (toYaml $values.extraInitContainers)) | compact }}
  {{- with $steps }}
  initContainers:
    {{- join "\n" . | nindent 4 }}
  {{- end }}
  containers:
    - name: server
      image: {{ .image }}
      imagePullPolicy: {{ $values.image.pullPolicy }}
      command: [distrinews, serve]
      args:
        - {{ include "serving.modelFolder" .model }}
      env:
        {{- include "serving.environment" .root | nindent 8 }}
        {{- with $values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with $values.extraEnvFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      ports:
        - name: http
          containerPort: {{ $values.containerPort }}
        - name: metrics
          containerPort: {{ $values.metricsPort }}
      startupProbe:
        {{- toYaml $values.startupProbe | nindent 8 }}
      livenessProbe:
        {{- toYaml $values.livenessProbe | nindent 8 }}
      readinessProbe:
        {{- toYaml $values.readinessProbe | nindent 8 }}
      {{- with $values.lifecycle }}
      lifecycle:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      resources:
        {{- toYaml $values.resources | nindent 8 }}
      securityContext:
        {{- toYaml $values.securityContext | nindent 8 }}
      volumeMounts:
        {{- include "serving.modelMount" (dict "model" .model "readOnly" true) | nindent 8 }}
        - name: tmp
          mountPath: /tmp
        {{- if $values.apiKeys.existingSecret }}
        - name: api-keys
          mountPath: /etc/distrinews
          readOnly: true
        {{- end }}
        {{- with $values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    {{- with $values.extraContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    - name: model
      {{- include "serving.modelVolume" . | nindent 6 }}
    - name: tmp
      emptyDir:
        sizeLimit: 256Mi
    {{- with $values.apiKeys.existingSecret }}
    - name: api-keys
      secret:
        secretName: {{ . }}
    {{- end }}
    {{- with $values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with $values.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- $selector := dict "labelSelector" (dict "matchLabels" (merge (dict "app.kubernetes.io/component" $.track) (include "serving.selector" $.root | fromYaml))) "matchLabelKeys" (list "pod-template-hash") }}
    {{- range . }}
    - {{ merge (deepCopy .) $selector | toYaml | indent 6 | trim }}
    {{- end }}
  {{- end }}
  {{- with $values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
