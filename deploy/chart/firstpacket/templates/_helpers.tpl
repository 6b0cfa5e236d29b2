{{- define "firstpacket.selector" -}}
app.kubernetes.io/name: firstpacket
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "firstpacket.labels" -}}
{{ include "firstpacket.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: firstpacket
{{- if ne .Release.Service "kubectl" }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
{{- end }}
{{- end }}

{{- define "firstpacket.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{- define "firstpacket.scraped" -}}
{{- if not .Values.http.expose }}
{{- fail "metrics can be scraped only from where the agents listen: set http.expose=true as well" }}
{{- end }}
{{- end }}
