{{/* The labels of everything that belongs to a program: (list . "mesh-agent"). */}}
{{- define "clustermesh.labels" -}}
app.kubernetes.io/name: {{ index . 1 }}
app.kubernetes.io/part-of: clustermesh
{{- end }}

{{/* The image of a program and when it is pulled: (list . .Values.agent.image). */}}
{{- define "clustermesh.image" -}}
{{- $root := index . 0 }}{{ $image := index . 1 }}
{{- $tag := $image.tag | default $root.Values.image.tag | default $root.Chart.AppVersion -}}
{{- $name := printf "%s/%s" $root.Values.image.registry $image.repository -}}
{{- $pull := $root.Values.image.pullPolicy | default (ternary "Always" "IfNotPresent" (and (eq $tag "latest") (not $image.digest))) -}}
image: {{ if $image.digest }}{{ printf "%s@%s" $name $image.digest | quote }}{{ else }}{{ printf "%s:%s" $name $tag | quote }}{{ end }}
imagePullPolicy: {{ $pull }}
{{- end }}

{{/* Who a program's pods are, and where they may run: (list . .Values.agent "mesh-agent").
     Replicas are spread over nodes, unless another affinity is asked for. */}}
{{- define "clustermesh.pod" -}}
{{- $program := index . 1 -}}
serviceAccountName: {{ index . 2 }}
{{- with (index . 0).Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . | quote }}
{{- end }}
{{- end }}
{{- with $program.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with $program.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $program.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- if $program.affinity }}
affinity: {{- toYaml $program.affinity | nindent 2 }}
{{- else if gt ($program.replicas | int) 1 }}
affinity:
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels:
              app.kubernetes.io/name: {{ index . 2 }}
{{- end }}
{{- end }}

{{/* Whether the server keeps its data in an etcd of its own: "true" or "". */}}
{{- define "clustermesh.embedded" -}}
{{- if not .Values.etcd.external.servers }}true{{ end }}
{{- end }}

{{/* Where the embedded etcd's data is, in one line, to see that it stays there. */}}
{{- define "clustermesh.store" -}}
{{- with .Values.persistence -}}
{{- if eq .type "volumeClaim" }}volumeClaim size={{ .size }} storageClass={{ .storageClass }}
{{- else if eq .type "hostPath" }}hostPath path={{ .hostPath.path }} node={{ .hostPath.node }}
{{- else }}emptyDir
{{- end }}
{{- end }}
{{- end }}

{{/* A drain takes one pod of a program at a time, and any that is not ready: (list . "mesh-controller"). */}}
{{- define "clustermesh.pdb" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ index . 1 }}
  namespace: {{ (index . 0).Release.Namespace }}
  labels:
    {{- include "clustermesh.labels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      app.kubernetes.io/name: {{ index . 1 }}
{{- end }}
