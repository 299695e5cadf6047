/*
Copyright The clustermesh Authors.

Licensed under the Apache License, Version 2.0 (the "License");
you may not use this file except in compliance with the License.
You may obtain a copy of the License at

    http://www.apache.org/licenses/LICENSE-2.0

Unless required by applicable law or agreed to in writing, software
distributed under the License is distributed on an "AS IS" BASIS,
WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
See the License for the specific language governing permissions and
limitations under the License.
*/

// Package connectivity tests a mesh with pods of its own: it deploys a server and a
// client on the nodes of two clusters, asks from every node who answers, and says of
// what fails where the chain is broken.
//
// What is asked and what should come of it (matrix.go), whether it did (verdict.go) and
// why not (diagnose.go) are pure; run.go does it.
package connectivity

import (
	"strconv"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"mesh.io/clustermesh/pkg/cli/probe"
	"mesh.io/clustermesh/pkg/policy"
)

const (
	// LabelTest is on the namespaces of the test, and says that they may be removed.
	LabelTest = "mesh.io/connectivity-test"
	// testValue is its value.
	testValue = "true"

	labelManagedBy = "app.kubernetes.io/managed-by"
	labelPartOf    = "app.kubernetes.io/part-of"
	manager        = "meshctl"
	partOf         = "clustermesh"

	labelApp = "app"
	// client is the DaemonSet whose pods ask, and answer by their own address.
	client = "client"
	// echo is the Deployment whose pods answer behind the Services, and the first Service.
	echo        = "echo"
	echoLocal   = "echo-local"
	echoRemote  = "echo-remote"
	echoPrivate = "echo-private"

	// servicePort is what clients of the Services use.
	servicePort = 7
)

// Image is what the pods run unless it is said otherwise.
const Image = "mesh.io/meshctl"

// replicas is how many pods of the Deployment run in each cluster.
const replicas = 2

func labels(app string) map[string]string {
	return map[string]string{labelApp: app, labelManagedBy: manager, labelPartOf: partOf}
}

func namespace(name string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
		LabelTest: testValue, labelManagedBy: manager, labelPartOf: partOf,
	}}}
}

// podTemplate is a pod of the test's own program in a cluster. It needs no right and
// no privilege.
func podTemplate(app, cluster string, o Options) corev1.PodTemplateSpec {
	field := func(name, path string) corev1.EnvVar {
		return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}}
	}
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: labels(app)},
		Spec: corev1.PodSpec{
			AutomountServiceAccountToken:  ptr.To(false),
			EnableServiceLinks:            ptr.To(false),
			TerminationGracePeriodSeconds: ptr.To[int64](5),
			SecurityContext: &corev1.PodSecurityContext{
				RunAsNonRoot: ptr.To(true), RunAsUser: ptr.To[int64](65532), RunAsGroup: ptr.To[int64](65532),
				SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
			Containers: []corev1.Container{{
				Name:            app,
				Image:           o.Image,
				ImagePullPolicy: corev1.PullIfNotPresent,
				Args:            []string{"connectivity", "echo", "--listen=:" + strconv.Itoa(probe.Port)},
				Env: []corev1.EnvVar{
					{Name: "MESH_CLUSTER", Value: cluster}, field("MESH_NODE", "spec.nodeName"), field("MESH_POD", "metadata.name"),
				},
				ReadinessProbe: &corev1.Probe{
					ProbeHandler:  corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(probe.Port)}},
					PeriodSeconds: 1,
				},
				SecurityContext: &corev1.SecurityContext{
					AllowPrivilegeEscalation: ptr.To(false), ReadOnlyRootFilesystem: ptr.To(true),
					Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
				},
			}},
		},
	}
}

// daemonSet is the clients: one on every node, whatever it is tainted with.
func daemonSet(cluster string, o Options) *appsv1.DaemonSet {
	template := podTemplate(client, cluster, o)
	template.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
	return &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Name: client, Namespace: o.Namespace, Labels: labels(client)},
		Spec:       appsv1.DaemonSetSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{labelApp: client}}, Template: template},
	}
}

// deployment is the servers behind the Services.
func deployment(cluster string, o Options) *appsv1.Deployment {
	template := podTemplate(echo, cluster, o)
	template.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{
		MaxSkew: 1, TopologyKey: corev1.LabelHostname, WhenUnsatisfiable: corev1.ScheduleAnyway,
		LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{labelApp: echo}},
	}}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: echo, Namespace: o.Namespace, Labels: labels(echo)},
		Spec: appsv1.DeploymentSpec{
			Replicas: ptr.To[int32](replicas), Selector: &metav1.LabelSelector{MatchLabels: map[string]string{labelApp: echo}}, Template: template,
		},
	}
}

// services are the global Services, one for each setting, all before the same pods.
// private says whether this cluster is the one that keeps its backends to itself.
func services(o Options, private bool) []*corev1.Service {
	service := func(name string, annotations map[string]string) *corev1.Service {
		annotations[policy.AnnotationGlobal] = "true"
		return &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: o.Namespace, Labels: labels(echo), Annotations: annotations},
			Spec: corev1.ServiceSpec{
				Selector: map[string]string{labelApp: echo},
				Ports: []corev1.ServicePort{
					{Name: "tcp", Protocol: corev1.ProtocolTCP, Port: servicePort, TargetPort: intstr.FromInt32(probe.Port)},
					{Name: "udp", Protocol: corev1.ProtocolUDP, Port: servicePort, TargetPort: intstr.FromInt32(probe.Port)},
				},
			},
		}
	}
	return []*corev1.Service{
		service(echo, map[string]string{}),
		service(echoLocal, map[string]string{policy.AnnotationAffinity: "local"}),
		service(echoRemote, map[string]string{policy.AnnotationAffinity: "remote"}),
		service(echoPrivate, map[string]string{policy.AnnotationShared: strconv.FormatBool(!private)}),
	}
}

// Options are what a person may say about a test.
type Options struct {
	Namespace string
	Image     string
	// Settle is how long an outcome may take.
	Settle time.Duration
	// MaxNodes bounds how many nodes of a cluster take part.
	MaxNodes int
	// Keep leaves the test's namespaces.
	Keep bool
	// Width is how many columns the terminal has; 0 is none.
	Width int
}
