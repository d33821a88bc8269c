{{- define "rekindle.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- define "rekindle.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else if contains (include "rekindle.name" .) .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "rekindle.name" .) | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* For objects outside of namespaces: releases of one name in two namespaces must not share them. */}}
{{- define "rekindle.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "rekindle.fullname" .) }}
{{- end }}

{{- define "rekindle.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (include "rekindle.fullname" .) }}
{{- end }}

{{- define "rekindle.selectorLabels" -}}
app.kubernetes.io/name: {{ include "rekindle.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "rekindle.labels" -}}
{{ include "rekindle.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: rekindle
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | quote }}
{{- end }}

{{- define "rekindle.image" -}}
{{- with .Values.image }}
{{- if .digest }}
{{- printf "%s@%s" .repository .digest }}
{{- else }}
{{- printf "%s:%s" .repository (.tag | default $.Chart.AppVersion) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "rekindle.runtimeImage" -}}
{{- with .Values.runtimeImage }}
{{- if .digest }}
{{- printf "%s@%s" .repository .digest }}
{{- else }}
{{- printf "%s:%s" .repository (.tag | default $.Chart.AppVersion) }}
{{- end }}
{{- end }}
{{- end }}

{{/* "yes" or empty. */}}
{{- define "rekindle.watchesNodes" -}}
{{- if eq (toString .Values.watchNodes) "auto" }}
{{- if not .Values.watchNamespaces }}yes{{ end }}
{{- else if .Values.watchNodes }}yes{{ end }}
{{- end }}

{{/* What the operator does inside of a namespace with jobs, and no more. */}}
{{- define "rekindle.namespacedRules" -}}
# Jobs are the user's; the operator deletes one only after its ttlSecondsAfterFinished.
- apiGroups: [rekindle.dev]
  resources: [trainingjobs]
  verbs: [get, list, watch, delete]
- apiGroups: [rekindle.dev]
  resources: [trainingjobs/status]
  verbs: [patch]
# Children name their job as an owner that waits for them. Clusters with the admission plugin
# OwnerReferencesPermissionEnforcement (OpenShift) ask for this right then; nothing is written there.
- apiGroups: [rekindle.dev]
  resources: [trainingjobs/finalizers]
  verbs: [update]
# patch: a pod that is through but for an endless sidecar is ended by its deadline, and stays.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, create, patch, delete]
# The last lines of a container that failed without a word.
- apiGroups: [""]
  resources: [pods/log]
  verbs: [get]
# One token per job, and its own authority. Neither list nor watch: it never sees secrets whose name
# it does not know.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create, patch]
- apiGroups: [""]
  resources: [services]
  verbs: [get, create, patch]
- apiGroups: [""]
  resources: [events]
  # list: a probe that ends a container, or a volume that cannot be mounted, is in events only.
  verbs: [create, list]
{{- end }}
