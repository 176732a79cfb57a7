{{- define "training.labels" -}}
app.kubernetes.io/name: {{ .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: distrinews
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Who has the Roles. */}}
{{- define "training.subjects" -}}
- kind: ServiceAccount
  name: {{ .Values.launcher.name }}
  namespace: {{ .Release.Namespace }}
{{- with .Values.launcher.extraSubjects }}
{{ toYaml . }}
{{- end }}
{{- end }}
