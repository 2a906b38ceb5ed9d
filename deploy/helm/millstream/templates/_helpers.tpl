{{- define "millstream.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* At most 40 characters: Kubernetes puts an ordinal and a revision behind it. */}}
{{- define "millstream.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "millstream.selectorLabels" -}}
app.kubernetes.io/name: {{ include "millstream.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "millstream.labels" -}}
{{ include "millstream.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "millstream.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "millstream.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- .Values.serviceAccount.name | default (include "millstream.fullname" .) }}
{{- else }}
{{- .Values.serviceAccount.name | default "default" }}
{{- end }}
{{- end }}

{{- define "millstream.secretName" -}}
{{- .Values.secrets.existingSecret | default (include "millstream.fullname" .) }}
{{- end }}

{{/* The value of a setting as a text: lists with commas, mappings as a=b,c=d, whole numbers without an exponent. */}}
{{- define "millstream.setting" -}}
{{- if kindIs "slice" . }}
{{- join "," . }}
{{- else if kindIs "map" . }}
{{- $pairs := list }}
{{- range $key, $value := . }}{{ $pairs = append $pairs (printf "%s=%v" $key $value) }}{{ end }}
{{- join "," $pairs }}
{{- else if and (kindIs "float64" .) (eq (floor .) (float64 .)) }}
{{- int64 . }}
{{- else }}
{{- toString . }}
{{- end }}
{{- end }}

{{/* KEY: "value" lines of a mapping of settings; empty ones are left out. */}}
{{- define "millstream.variables" -}}
{{- range $name, $value := . }}
{{- $text := include "millstream.setting" $value }}
{{- if and (not (kindIs "invalid" $value)) (ne $text "") }}
MILLSTREAM_{{ $name | upper }}: {{ $text | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- define "millstream.grace" -}}
{{- $stop := mulf 2 (default 30 .Values.settings.shutdown_timeout) }}
{{- $grace := .Values.terminationGracePeriodSeconds | default (ceil (addf $stop 30)) }}
{{- if le (float64 $grace) (addf $stop 10) }}
{{- fail (printf "terminationGracePeriodSeconds = %v: must be above %v, within which a worker ends by itself (twice settings.shutdown_timeout, and 10 s)" $grace (addf $stop 10)) }}
{{- end }}
{{- int64 $grace }}
{{- end }}

{{/* What cannot work, told before anything is installed. */}}
{{- define "millstream.check" -}}
{{- $secrets := omit .Values.secrets "existingSecret" }}
{{- range $name, $value := $secrets }}
{{- if and $value $.Values.secrets.existingSecret }}
{{- fail (printf "secrets.%s and secrets.existingSecret: give one of them; what the Secret holds is not looked at" $name) }}
{{- end }}
{{- end }}
{{- if and .Values.parquet.enabled (or .Values.autoscaling.enabled (ne (int .Values.replicaCount) 1)) }}
{{- fail "parquet.enabled: the Parquet directory is one file system of one host, so it takes replicaCount: 1 and no autoscaling" }}
{{- end }}
{{- $postgres := or .Values.secrets.existingSecret .Values.secrets.postgres_url }}
{{- if and .Values.relay.enabled (not $postgres) }}
{{- fail "relay.enabled: the relay needs secrets.postgres_url, or secrets.existingSecret with MILLSTREAM_POSTGRES_URL" }}
{{- end }}
{{- if and .Values.migrate.enabled (not (or $postgres .Values.migrate.existingSecret)) }}
{{- fail "migrate.enabled: needs secrets.postgres_url, or secrets.existingSecret or migrate.existingSecret with MILLSTREAM_POSTGRES_URL" }}
{{- end }}
{{- if and .Values.relay.createSlot (ne (default "polling" .Values.settings.outbox_via) "replication") }}
{{- fail "relay.createSlot: polling needs no slot; set settings.outbox_via: replication" }}
{{- end }}
{{- $protocol := upper (default "PLAINTEXT" .Values.settings.security_protocol) }}
{{- if and (hasPrefix "SASL_" $protocol) (not (or .Values.secrets.existingSecret .Values.secrets.sasl_password)) }}
{{- fail (printf "settings.security_protocol = %s: needs secrets.existingSecret with MILLSTREAM_SASL_PASSWORD, or secrets.sasl_password" $protocol) }}
{{- end }}
{{- if and .Values.autoscaling.enabled (ne $protocol "PLAINTEXT") (not .Values.autoscaling.authenticationRef) }}
{{- fail (printf "autoscaling.enabled: with settings.security_protocol = %s KEDA has to log in too; name a TriggerAuthentication in autoscaling.authenticationRef" $protocol) }}
{{- end }}
{{- if and .Values.autoscaling.enabled (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) }}
{{- fail (printf "autoscaling.minReplicas = %v: must be at most autoscaling.maxReplicas = %v" .Values.autoscaling.minReplicas .Values.autoscaling.maxReplicas) }}
{{- end }}
{{- end }}

{{/* What all pods have in common. Without enableServiceLinks: false, a Service named millstream-… would put variables
     MILLSTREAM_…_SERVICE_HOST into the pods, and settings that do not exist are refused. */}}
{{- define "millstream.pod" -}}
enableServiceLinks: false
automountServiceAccountToken: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Files of certificateSecrets; the pods' group may read them. A Secret's name may be no name of a volume. */}}
{{- define "millstream.certificateVolumes" -}}
{{- range $number, $name := .Values.certificateSecrets }}
- name: certificates-{{ $number }}
  secret: {secretName: {{ $name }}, defaultMode: 0440}
{{- end }}
{{- end }}

{{- define "millstream.certificateMounts" -}}
{{- range $number, $name := .Values.certificateSecrets }}
- {name: certificates-{{ $number }}, mountPath: /certificates/{{ $name }}, readOnly: true}
{{- end }}
{{- end }}

{{- define "millstream.container" -}}
image: {{ include "millstream.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- toYaml .Values.securityContext | nindent 2 }}
terminationMessagePolicy: FallbackToLogsOnError
{{- end }}

{{- define "millstream.envFrom" -}}
- configMapRef: {name: {{ include "millstream.fullname" . }}}
- secretRef: {name: {{ include "millstream.secretName" . }}}
{{- end }}
