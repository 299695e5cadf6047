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

// Package removal decides what of a cluster belongs to the mesh, and how its nodes are
// cleaned up. It is pure.
package removal

import (
	"crypto/sha256"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"mesh.io/clustermesh/artifacts/chart"
	"mesh.io/clustermesh/pkg/cli/release"
	"mesh.io/clustermesh/pkg/cli/workload"
)

const (
	// CleanupName is the program that cleans up a node, by its pods' label.
	CleanupName = "mesh-agent-cleanup"
	// NodeTimeout is how long the nodes may take, all at the same time.
	NodeTimeout = 90 * time.Second
	// NotLinux is the trouble of a node that no agent can run on, and NotReady that of one
	// whose kubelet does not answer.
	NotLinux = "not Linux"
	NotReady = "not ready"

	partOfLabel = "app.kubernetes.io/part-of"
	partOf      = "clustermesh"
	hostMount   = "/host"
	agentState  = "/var/lib/mesh-agent"
	agentBPFFS  = "/sys/fs/bpf"
	storeFolder = "store"
)

// Kind is a kind of objects that the mesh has some of.
type Kind struct {
	schema.GroupVersionResource
	Namespaced bool
	// Optional is true for kinds that only some clusters have.
	Optional bool
}

var (
	// Claims are the volumes that are asked for.
	Claims = schema.GroupVersionResource{Version: "v1", Resource: "persistentvolumeclaims"}
	// Registrations are those of aggregated APIs.
	Registrations = schema.GroupVersionResource{Group: "apiregistration.k8s.io", Version: "v1", Resource: "apiservices"}
)

func kind(group, version, resource string, namespaced bool) Kind {
	return Kind{GroupVersionResource: schema.GroupVersionResource{Group: group, Version: version, Resource: resource}, Namespaced: namespaced}
}

// Kinds are all kinds that the mesh has objects of, in the order of their removal. What
// its objects make in turn (pods, endpoint slices) is not among them. The accounts and
// roles come late, as the programs use them until they are gone.
var Kinds = []Kind{
	kind("apps", "v1", "daemonsets", true),
	kind("apps", "v1", "deployments", true),
	kind("apps", "v1", "statefulsets", true),
	{GroupVersionResource: schema.GroupVersionResource{Group: "monitoring.coreos.com", Version: "v1", Resource: "servicemonitors"}, Namespaced: true, Optional: true},
	{GroupVersionResource: schema.GroupVersionResource{Group: "monitoring.coreos.com", Version: "v1", Resource: "podmonitors"}, Namespaced: true, Optional: true},
	kind("policy", "v1", "poddisruptionbudgets", true),
	kind("networking.k8s.io", "v1", "networkpolicies", true),
	kind("", "v1", "services", true),
	kind("coordination.k8s.io", "v1", "leases", true),
	kind("rbac.authorization.k8s.io", "v1", "clusterrolebindings", false),
	kind("rbac.authorization.k8s.io", "v1", "clusterroles", false),
	{GroupVersionResource: schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "validatingadmissionpolicybindings"}, Optional: true},
	{GroupVersionResource: schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "validatingadmissionpolicies"}, Optional: true},
	kind("rbac.authorization.k8s.io", "v1", "rolebindings", true),
	kind("rbac.authorization.k8s.io", "v1", "roles", true),
	kind("", "v1", "secrets", true),
	kind("", "v1", "configmaps", true),
	kind("", "v1", "serviceaccounts", true),
}

// Object names an object.
type Object struct {
	Resource  schema.GroupVersionResource
	Namespace string
	Name      string
}

// Runs says whether an object keeps programs running.
func Runs(o Object) bool { return o.Resource.Group == "apps" }

// names are those of objects that the mesh's programs make, in the mesh's namespace.
var names = map[string][]string{
	"configmaps": {"mesh-ca"},
	"secrets":    {"mesh-apiserver-ca"},
	"leases":     {"mesh-controller"},
}

// Where are the namespaces to look for objects of a kind: the mesh's own; for bindings,
// that which lets the mesh API server know who calls it; "" for those that are in none.
func (k Kind) Where(namespace string) []string {
	switch {
	case !k.Namespaced:
		return []string{metav1.NamespaceNone}
	case k.Resource == "rolebindings":
		return []string{namespace, metav1.NamespaceSystem}
	}
	return []string{namespace}
}

// Ours says whether an object belongs to the mesh of a namespace: by its label, by the
// Helm release that it is of, or by its name. The records of the release itself are not
// among them, as they are removed last.
func Ours(resource string, o metav1.Object, namespace string) bool {
	if resource == "secrets" && o.GetLabels()["owner"] == "helm" {
		return false
	}
	if o.GetNamespace() == metav1.NamespaceSystem && resource != "rolebindings" {
		return false
	}
	if o.GetLabels()[partOfLabel] == partOf {
		return true
	}
	if release.Owns(o, namespace) {
		return true
	}
	return o.GetNamespace() == namespace && slices.Contains(names[resource], o.GetName())
}

// everywhere are objects that every namespace has, of Kubernetes and of OpenShift.
var everywhere = map[string][]string{
	"configmaps":      {"kube-root-ca.crt", "openshift-service-ca.crt"},
	"serviceaccounts": {"default", "builder", "deployer"},
}

// Foreign says whether an object in the mesh's namespace is somebody's who would miss it
// if the namespace went: neither ours, nor made by another object, nor in every namespace.
func Foreign(resource schema.GroupVersionResource, o metav1.Object, namespace string) bool {
	kind, labels := resource.Resource, o.GetLabels()
	switch {
	case kind == "events" || resource.GroupResource() == Claims.GroupResource():
		// The claims are looked at by themselves.
		return false
	case Ours(kind, o, namespace) || len(o.GetOwnerReferences()) > 0 || slices.Contains(everywhere[kind], o.GetName()):
		return false
	case kind == "secrets" && labels["owner"] == "helm":
		return labels["name"] != chart.Release
	case kind == "secrets":
		// The token of an account goes with the account.
		account := o.GetAnnotations()[corev1.ServiceAccountNameKey]
		return account == "" || !slices.Contains(everywhere["serviceaccounts"], account)
	case kind == "endpoints":
		// It is made for a Service, or by hand for one without a selector: that one counts.
		return false
	}
	return true
}

// AgentOf is the agent's pod in the manifest of a release, or nil.
func AgentOf(manifest string) *corev1.PodTemplateSpec {
	for document := range strings.SplitSeq(manifest, "\n---") {
		var set appsv1.DaemonSet
		if yaml.Unmarshal([]byte(document), &set) == nil && set.Kind == "DaemonSet" && set.Name == workload.Agent {
			return &set.Spec.Template
		}
	}
	return nil
}

// PlainAgent is a pod of the agent of which only the image is known.
func PlainAgent(image string) *corev1.PodTemplateSpec {
	no, yes, root := false, true, int64(0)
	return &corev1.PodTemplateSpec{Spec: corev1.PodSpec{
		HostNetwork: true,
		Containers: []corev1.Container{{
			Name: workload.Agent, Image: image,
			SecurityContext: &corev1.SecurityContext{
				RunAsUser: &root, AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes,
				AppArmorProfile: &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeUnconfined},
				SELinuxOptions:  &corev1.SELinuxOptions{Type: "spc_t", Level: "s0"},
				Capabilities:    &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: []corev1.Capability{"BPF", "NET_ADMIN", "PERFMON", "SYS_RESOURCE"}},
			},
			VolumeMounts: []corev1.VolumeMount{{Name: "bpffs", MountPath: agentBPFFS}, {Name: "state", MountPath: agentState}},
		}},
		Volumes: []corev1.Volume{hostFolder("bpffs", agentBPFFS), hostFolder("state", agentState)},
	}}
}

func hostFolder(name, folder string) corev1.Volume {
	kind := corev1.HostPathDirectory
	return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: folder, Type: &kind}}}
}

// CleanupPod is the pod that cleans up a node: the agent's own, with another command. It
// sees the folders above those that it removes, as a mounted folder cannot be removed.
// store is a folder of the store to remove, too, or "".
func CleanupPod(agent *corev1.PodTemplateSpec, namespace string, node *corev1.Node, store string) *corev1.Pod {
	spec := agent.Spec.DeepCopy()
	labels := map[string]string{workload.NameLabel: CleanupName, partOfLabel: partOf}
	// It goes to its node whatever keeps others off it, and even if agents are kept off
	// it by now: they may not have been.
	spec.NodeName, spec.NodeSelector, spec.Affinity = node.Name, nil, nil
	spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
	spec.RestartPolicy = corev1.RestartPolicyOnFailure
	spec.InitContainers = nil
	// It asks Kubernetes nothing, and the accounts of the mesh may be gone.
	no := false
	spec.ServiceAccountName, spec.DeprecatedServiceAccount, spec.AutomountServiceAccountToken = "", "", &no
	c := &spec.Containers[0]
	spec.Containers = spec.Containers[:1]
	state := hostPath(spec, flag(c, "state-dir", agentState))
	bpffs := hostPath(spec, flag(c, "bpffs", agentBPFFS))
	c.Env, c.EnvFrom, c.Ports, c.Resources = nil, nil, nil, corev1.ResourceRequirements{}
	c.ReadinessProbe, c.LivenessProbe, c.StartupProbe = nil, nil, nil
	c.Args = []string{"cleanup", "--state-dir=" + path.Join(hostMount, "state", path.Base(state)), "--bpffs=" + agentBPFFS}
	volumes := []corev1.Volume{hostFolder("state", path.Dir(state)), hostFolder("bpffs", bpffs)}
	mounts := []corev1.VolumeMount{{Name: "state", MountPath: path.Join(hostMount, "state")}, {Name: "bpffs", MountPath: agentBPFFS}}
	if store != "" {
		volumes = append(volumes, hostFolder(storeFolder, path.Dir(store)))
		mounts = append(mounts, corev1.VolumeMount{Name: storeFolder, MountPath: path.Join(hostMount, storeFolder)})
		c.Args = append(c.Args, "--remove="+path.Join(hostMount, storeFolder, path.Base(store)))
		// The store's files belong to another user.
		if c.SecurityContext != nil && c.SecurityContext.Capabilities != nil {
			c.SecurityContext.Capabilities.Add = append(c.SecurityContext.Capabilities.Add, "DAC_OVERRIDE", "FOWNER")
		}
	}
	spec.Volumes, c.VolumeMounts = volumes, mounts
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: podName(node.Name), Labels: labels}, Spec: *spec}
}

// flag is the value of a flag in a container's arguments; the last one counts.
func flag(c *corev1.Container, name, otherwise string) string {
	value := otherwise
	for i, arg := range c.Args {
		said, ok := strings.CutPrefix(arg, "--"+name)
		switch {
		case ok && strings.HasPrefix(said, "="):
			value = said[1:]
		case ok && said == "" && i+1 < len(c.Args):
			value = c.Args[i+1]
		}
	}
	return path.Clean(value)
}

// hostPath is where on its node a folder is that the first container of a pod sees: below
// the closest of the node's folders that it has mounted.
func hostPath(spec *corev1.PodSpec, folder string) string {
	found, below := folder, -1
	for _, m := range spec.Containers[0].VolumeMounts {
		at := path.Clean(m.MountPath)
		if folder != at && !strings.HasPrefix(folder, at+"/") || len(at) <= below {
			continue
		}
		for _, v := range spec.Volumes {
			if v.Name == m.Name && v.HostPath != nil {
				found, below = path.Join(v.HostPath.Path, m.SubPath, strings.TrimPrefix(folder, at)), len(at)
			}
		}
	}
	return found
}

// podName is a name that fits, and is not that of another node.
func podName(node string) string {
	if name := CleanupName + "-" + node; len(name) <= 63 {
		return name
	}
	sum := fmt.Sprintf("%x", sha256.Sum256([]byte(node)))[:10]
	return CleanupName + "-" + strings.TrimRight(node[:30], "-.") + "-" + sum
}

// NodeTrouble says why a node cannot be cleaned up, or "".
func NodeTrouble(node *corev1.Node) string {
	if system := node.Status.NodeInfo.OperatingSystem; system != "" && system != "linux" {
		return NotLinux
	}
	// A node whose kubelet has never reported has no condition at all.
	if !slices.ContainsFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	}) {
		return NotReady
	}
	return ""
}

// Outcome says whether a cleanup is over, and why it has not succeeded.
func Outcome(pod *corev1.Pod) (done bool, why string) {
	switch pod.Status.Phase {
	case corev1.PodSucceeded:
		return true, ""
	case corev1.PodFailed:
		return true, workload.Problem(pod)
	}
	for _, c := range pod.Status.ContainerStatuses {
		// It is started again when it fails; what fails thrice goes on failing.
		if c.RestartCount >= 3 {
			return true, workload.Problem(pod)
		}
	}
	return false, workload.Problem(pod)
}
