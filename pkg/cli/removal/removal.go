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
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"mesh.io/clustermesh/pkg/cli/workload"
)

const (
	// CleanupName is the program that cleans up a node, by its pods' label.
	CleanupName = "mesh-agent-cleanup"
	// NodeTimeout is how long the nodes may take, all at the same time.
	NodeTimeout = 90 * time.Second
	// NotLinux is the trouble of a node that no agent can run on.
	NotLinux = "not Linux"

	partOfLabel  = "app.kubernetes.io/part-of"
	partOf       = "clustermesh"
	helmRelease  = "meta.helm.sh/release-name"
	helmSpace    = "meta.helm.sh/release-namespace"
	releaseName  = "clustermesh"
	hostMount    = "/host"
	agentState   = "/var/lib/mesh-agent"
	storeFolder  = "store"
	systemSpaces = "kube-system"
)

// Kind is a kind of objects that the mesh has some of.
type Kind struct {
	schema.GroupVersionResource
	Namespaced bool
	// Optional is true for kinds that only some clusters have.
	Optional bool
}

// Claims are the volumes that are asked for.
var Claims = schema.GroupVersionResource{Version: "v1", Resource: "persistentvolumeclaims"}

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

// names are those of objects that the mesh's programs make, or that were made by
// manifests without labels.
var names = map[string][]string{
	"configmaps":          {"mesh-ca", "mesh-config"},
	"secrets":             {"mesh-apiserver-ca"},
	"leases":              {"mesh-controller"},
	"serviceaccounts":     {"mesh-apiserver", "mesh-controller", "mesh-agent", "mesh-peer"},
	"roles":               {"mesh-apiserver", "mesh-controller", "mesh-agent"},
	"rolebindings":        {"mesh-apiserver", "mesh-controller", "mesh-agent", "mesh-apiserver-authentication-reader"},
	"clusterroles":        {"mesh-apiserver", "mesh-controller", "mesh-agent", "mesh-peer", "mesh-view", "mesh-edit", "mesh-cluster-view", "mesh-cluster-admin", "mesh-invite", "mesh-metrics", "mesh-agent-startup-taint"},
	"clusterrolebindings": {"mesh-apiserver-auth-delegator", "mesh-apiserver", "mesh-controller", "mesh-agent", "mesh-peer", "mesh-invite", "mesh-metrics", "mesh-agent-startup-taint"},
}

// Ours says whether an object belongs to the mesh of a namespace: by its label, by the
// Helm release that it is of, or by its name. The records of the release itself are not
// among them, as they are removed last.
func Ours(o *unstructured.Unstructured, namespace string) bool {
	resource := strings.ToLower(o.GetKind()) + "s"
	if o.GetKind() == "NetworkPolicy" {
		resource = "networkpolicies"
	}
	if resource == "secrets" && o.GetLabels()["owner"] == "helm" {
		return false
	}
	if o.GetLabels()[partOfLabel] == partOf {
		return o.GetNamespace() != systemSpaces || resource == "rolebindings"
	}
	a := o.GetAnnotations()
	if a[helmRelease] == releaseName && a[helmSpace] == namespace {
		return true
	}
	if !slices.Contains(names[resource], o.GetName()) {
		return false
	}
	// In kube-system only the binding is ours by its name.
	return o.GetNamespace() != systemSpaces || o.GetName() == "mesh-apiserver-authentication-reader"
}

// Foreign says whether an object that is not ours is a reason to keep the namespace.
func Foreign(resource string, o *unstructured.Unstructured) bool {
	switch resource {
	case "daemonsets", "deployments", "statefulsets", "services":
		return true
	}
	return false
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
			VolumeMounts: []corev1.VolumeMount{{Name: "bpffs", MountPath: "/sys/fs/bpf"}, {Name: "state", MountPath: agentState}},
		}},
		Volumes: []corev1.Volume{hostFolder("bpffs", "/sys/fs/bpf"), hostFolder("state", agentState)},
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
	state := agentState
	for _, v := range spec.Volumes {
		if v.Name == "state" && v.HostPath != nil {
			state = v.HostPath.Path
		}
	}
	c.Env, c.EnvFrom, c.Ports, c.Resources = nil, nil, nil, corev1.ResourceRequirements{}
	c.ReadinessProbe, c.LivenessProbe, c.StartupProbe = nil, nil, nil
	c.Args = []string{"cleanup", "--state-dir=" + path.Join(hostMount, "state", path.Base(state))}
	volumes := []corev1.Volume{hostFolder("state", path.Dir(state))}
	mounts := []corev1.VolumeMount{{Name: "state", MountPath: path.Join(hostMount, "state")}}
	for _, v := range spec.Volumes {
		if v.Name == "bpffs" {
			volumes = append(volumes, v)
		}
	}
	for _, m := range c.VolumeMounts {
		if m.Name == "bpffs" {
			mounts = append(mounts, m)
			c.Args = append(c.Args, "--bpffs="+m.MountPath)
		}
	}
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
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue {
			return "not ready"
		}
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
