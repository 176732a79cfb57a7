{{/* Checks that the schema cannot make: values that need each other. */}}
{{- define "serving.check" -}}
{{- if not .Values.model.uri }}
{{- fail "model.uri is required: the model folder that the pipeline wrote, such as pvc://distrinews-workspace/RUN/model or s3://BUCKET/FOLDER" }}
{{- end }}
{{- if and .Values.canary.enabled (not .Values.canary.model.uri) }}
{{- fail "canary.enabled needs canary.model.uri: the model that the canary tries" }}
{{- end }}
{{- if and .Values.canary.enabled (not .Values.httpRoute.enabled) }}
{{- fail "canary.enabled needs httpRoute.enabled: the canary's weight is on the route" }}
{{- end }}
{{- if and .Values.httpRoute.enabled (empty .Values.httpRoute.parentRefs) }}
{{- fail "httpRoute.enabled needs httpRoute.parentRefs: the Gateways that the route belongs to" }}
{{- end }}
{{- if and .Values.ingress.enabled (empty .Values.ingress.hosts) }}
{{- fail "ingress.enabled needs ingress.hosts: the names under which the server is reached" }}
{{- end }}
{{- with .Values.autoscaling }}
{{- if and (ne .kind "none") (not .cpuUtilization) (not .queuedTexts) }}
{{- fail "autoscaling.kind needs autoscaling.cpuUtilization or autoscaling.queuedTexts to scale by; for a fixed number of pods set it to none" }}
{{- end }}
{{- if and (ne .kind "none") (gt (int .minReplicas) (int .maxReplicas)) }}
{{- fail (printf "autoscaling.minReplicas is %v, more than autoscaling.maxReplicas, %v" .minReplicas .maxReplicas) }}
{{- end }}
{{- if and (eq .kind "keda") .queuedTexts (not .prometheusAddress) }}
{{- fail "autoscaling.queuedTexts with kind keda needs autoscaling.prometheusAddress: the Prometheus to query" }}
{{- end }}
{{- end }}
{{- if and .Values.prometheusRule.enabled (not .Values.serviceMonitor.enabled) }}
{{- fail "prometheusRule.enabled needs serviceMonitor.enabled: without it there is nothing to watch" }}
{{- end }}
{{- if and (eq .Values.autoscaling.kind "keda") .Values.autoscaling.queuedTexts (not .Values.serviceMonitor.enabled) }}
{{- fail "autoscaling.queuedTexts with kind keda needs serviceMonitor.enabled: without it Prometheus knows no queue" }}
{{- end }}
{{- if eq (int .Values.containerPort) (int .Values.metricsPort) }}
{{- fail (printf "containerPort and metricsPort are both %v: they must differ" .Values.containerPort) }}
{{- end }}
{{- end }}
