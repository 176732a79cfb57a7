{{- define "serving.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 50 | trimSuffix "-" }}
{{- end }}

{{/* At most 50 characters, so that -metrics and a pod's suffixes fit into 63. */}}
{{- define "serving.fullname" -}}
{{- $name := include "serving.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Labels of all pods of the release; they never change, as selectors cannot. */}}
{{- define "serving.selector" -}}
app.kubernetes.io/name: {{ include "serving.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Labels of the pod of `helm test`, which no Service and no policy of the server may select. */}}
{{- define "serving.testLabels" -}}
app.kubernetes.io/name: {{ include "serving.name" . }}-test
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "serving.labels" -}}
{{ include "serving.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: distrinews
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "serving.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- .Values.serviceAccount.name | default (include "serving.fullname" .) }}
{{- else }}
{{- .Values.serviceAccount.name | default "default" }}
{{- end }}
{{- end }}

{{/* The image's name: of .image, with tag and digest of .over where it has one. */}}
{{- define "serving.image" -}}
{{- $over := .over | default dict }}
{{- if $over.digest }}
{{- printf "%s@%s" .image.repository $over.digest }}
{{- else if $over.tag }}
{{- printf "%s:%s" .image.repository $over.tag }}
{{- else if .image.digest }}
{{- printf "%s@%s" .image.repository .image.digest }}
{{- else }}
{{- printf "%s:%s" .image.repository (.image.tag | default .appVersion) }}
{{- end }}
{{- end }}

{{/* Selector of this release's series, those that its ServiceMonitor reads. */}}
{{- define "serving.series" -}}
namespace="{{ .Release.Namespace }}", service="{{ include "serving.fullname" . }}-metrics"
{{- end }}
