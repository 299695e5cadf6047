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

// Package preflight decides whether the mesh can be installed in a cluster. It is pure:
// each check gets the facts that were read of the cluster and of what is wanted, and
// says what it found and what to do about it.
package preflight

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/util/version"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
)

const (
	// leastKubernetes is the oldest Kubernetes whose API has all that is installed:
	// access modes of one pod, and the binding of policies that the API server reads.
	leastKubernetes = "1.30.0"
	// leastKernel is the oldest kernel that has what the agent's programs use.
	leastKernel = "5.10.0"
	// maxNamed is how many nodes a finding names.
	maxNamed = 5
	// maxID is the highest ID of a cluster.
	maxID = 65535
)

// Identity is who a cluster is in the mesh.
type Identity struct {
	Name string
	ID   int32
}

// Facts are what the checks look at.
type Facts struct {
	// Wanted is who the cluster is to be.
	Wanted Identity
	// Namespace is where the mesh is to be.
	Namespace string
	// Kubernetes is the version of the cluster.
	Kubernetes string
	// Denied is what the person may not do and would have to, in words, or "".
	Denied string
	// NoAPI are the kinds among the objects to install that the cluster does not have.
	NoAPI []string
	// PeerPort is the port of each node that the peers are to use, or 0, and PortTakenBy
	// the Service that has it already.
	PeerPort    int32
	PortTakenBy string
	// Nodes are those of the cluster.
	Nodes []corev1.Node
	// NodesError is why they could not be read.
	NodesError string
	// APIServices are the registrations of group mesh.io, and CustomResources the names
	// of the CustomResourceDefinitions of it.
	APIServices     []apiregistrationv1.APIService
	CustomResources []string
	// NamespaceObject is the namespace, if there is one.
	NamespaceObject *corev1.Namespace
	// Strangers are objects that are called like those of the mesh, and belong to somebody else.
	Strangers []string
	// NeedsVolume says whether the store asks for a volume of StorageClass.
	NeedsVolume    bool
	StorageClass   string
	StorageClasses []storagev1.StorageClass
	// StorageError is why the StorageClasses could not be read.
	StorageError string
	// Installed is who the cluster is said to be by an installation that is there, and
	// InstalledBy what it was made with: "meshctl", "manifests".
	Installed   *Identity
	InstalledBy string
	// Members are the MeshClusters of this cluster.
	Members []v1alpha1.MeshCluster
	// Others are the members of the mesh as other contexts see them.
	Others []Other
	// UID identifies this cluster.
	UID string
	// CiliumMesh says whether Cilium's own cluster mesh runs.
	CiliumMesh bool
}

// Other is another cluster of the mesh.
type Other struct {
	Context string
	// Error is why it could not be asked.
	Error   string
	Members []v1alpha1.MeshCluster
}

// Level is how bad a finding is.
type Level string

// The levels.
const (
	Good    Level = "good"
	Note    Level = "note"    // to know
	Problem Level = "problem" // it must not be installed
)

// Finding is what a check found.
type Finding struct {
	Check   string
	Level   Level
	Message string
	// Do is what to do about it.
	Do string
}

// Check is one check.
type Check struct {
	// Name says what is checked.
	Name string
	run  func(*Facts) []Finding
}

// Checks are all checks, in the order that a person reads them in.
var Checks = []Check{
	{"identity", identity},
	{"Kubernetes version", kubernetesVersion},
	{"permissions", permissions},
	{"kinds of objects", kinds},
	{"nodes", ready},
	{"nodes' kernels", kernels},
	{"API group mesh.io", apiGroup},
	{"namespace", namespace},
	{"existing installation", existing},
	{"objects of the same name", sameName},
	{"taken names and IDs", taken},
	{"port for the peers", peerPort},
	{"volume for the store", volume},
	{"Cilium", cilium},
}

// Run runs all checks. A check that finds nothing wrong gives one finding that says so.
func Run(facts *Facts) []Finding {
	var findings []Finding
	for _, check := range Checks {
		found := check.run(facts)
		for i := range found {
			found[i].Check = check.Name
		}
		findings = append(findings, found...)
	}
	return findings
}

// Failed says whether any finding is a problem.
func Failed(findings []Finding) bool {
	return slices.ContainsFunc(findings, func(f Finding) bool { return f.Level == Problem })
}

func good(format string, args ...any) []Finding {
	return []Finding{{Level: Good, Message: fmt.Sprintf(format, args...)}}
}

func problem(do, format string, args ...any) []Finding {
	return []Finding{{Level: Problem, Message: fmt.Sprintf(format, args...), Do: do}}
}

func note(do, format string, args ...any) []Finding {
	return []Finding{{Level: Note, Message: fmt.Sprintf(format, args...), Do: do}}
}

var label = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)

// ValidName says what is wrong with the name of a cluster, or "".
func ValidName(name string) string {
	switch {
	case name == "":
		return "a cluster needs a name, unique in the mesh: --cluster-name"
	case name == "default":
		return `"default" is no name for a cluster, as every cluster could be called so`
	case len(name) > 32 || !label.MatchString(name):
		return fmt.Sprintf("%q is no name for a cluster: it has at most 32 lower-case letters, digits and dashes, and begins and ends with a letter or digit", name)
	}
	return ""
}

// ValidID says what is wrong with the ID of a cluster, or "".
func ValidID(id int32) string {
	if id < 1 || id > maxID {
		return fmt.Sprintf("a cluster needs an ID from 1 to %d, unique in the mesh: --cluster-id", maxID)
	}
	return ""
}

func identity(f *Facts) []Finding {
	var found []Finding
	for _, wrong := range []string{ValidName(f.Wanted.Name), ValidID(f.Wanted.ID)} {
		if wrong != "" {
			found = append(found, Finding{Level: Problem, Message: wrong, Do: "Give it another one."})
		}
	}
	if found == nil {
		return good("the cluster is to be %s with the ID %d", f.Wanted.Name, f.Wanted.ID)
	}
	return found
}

func kubernetesVersion(f *Facts) []Finding {
	v, err := version.ParseGeneric(f.Kubernetes)
	if err != nil {
		return note("See to it that it is "+leastKubernetes+" or newer.", "the version of Kubernetes, %q, is not understood", f.Kubernetes)
	}
	if v.LessThan(version.MustParseGeneric(leastKubernetes)) {
		return problem("Upgrade the cluster.", "Kubernetes is %s, and the mesh needs %s or newer", f.Kubernetes, strings.TrimSuffix(leastKubernetes, ".0"))
	}
	return good("Kubernetes %s", f.Kubernetes)
}

func permissions(f *Facts) []Finding {
	if f.Denied != "" {
		return problem("Use an account that is bound to ClusterRole cluster-admin: few others can give the mesh's own accounts their rights.", "you may not %s", f.Denied)
	}
	return good("you may make all that is installed")
}

// Listed names some things, of many only the first.
func Listed(items []string) string {
	if len(items) > maxNamed {
		return fmt.Sprintf("%s and %d more", strings.Join(items[:maxNamed], ", "), len(items)-maxNamed)
	}
	return strings.Join(items, ", ")
}

// kinds looks for what the cluster cannot store.
func kinds(f *Facts) []Finding {
	if len(f.NoAPI) > 0 {
		return problem("Install what brings them (for monitoring.coreos.com, the Prometheus operator), or leave out the values that ask for them.",
			"the cluster has no objects of the kind %s", Listed(f.NoAPI))
	}
	return good("the cluster has all that are needed")
}

// peerPort looks whether the port for the peers is free on the nodes.
func peerPort(f *Facts) []Finding {
	switch {
	case f.PortTakenBy != "":
		return problem("Choose another one with --set peer.service.nodePort=…, or --set peer.service.type=LoadBalancer.",
			"port %d of the nodes, for the peers, belongs to Service %s", f.PeerPort, f.PortTakenBy)
	case f.PeerPort == 0:
		return good("none is needed on the nodes")
	}
	return good("port %d of the nodes", f.PeerPort)
}

// ready looks for nodes whose agent cannot start now.
func ready(f *Facts) []Finding {
	var waiting []string
	for i := range f.Nodes {
		if !slices.ContainsFunc(f.Nodes[i].Status.Conditions, func(c corev1.NodeCondition) bool {
			return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
		}) {
			waiting = append(waiting, f.Nodes[i].Name)
		}
	}
	slices.Sort(waiting)
	if len(waiting) > 0 {
		return note("Their agents start when they are.", "%d of %d nodes are not ready: %s", len(waiting), len(f.Nodes), Listed(waiting))
	}
	return good("%d nodes are ready", len(f.Nodes))
}

// kernels looks at the nodes that an agent would run on.
func kernels(f *Facts) []Finding {
	if f.NodesError != "" {
		return note("See to it that they are "+leastKernel+" or newer.", "the nodes' kernels could not be read: %s", f.NodesError)
	}
	least := version.MustParseGeneric(leastKernel)
	var old, unknown []string
	linux := 0
	for i := range f.Nodes {
		info := &f.Nodes[i].Status.NodeInfo
		if info.OperatingSystem != "" && info.OperatingSystem != "linux" {
			continue
		}
		linux++
		v, err := version.ParseGeneric(kernelNumber.FindString(info.KernelVersion))
		switch {
		case err != nil:
			unknown = append(unknown, fmt.Sprintf("%s (%q)", f.Nodes[i].Name, info.KernelVersion))
		case v.LessThan(least):
			old = append(old, fmt.Sprintf("%s (%s)", f.Nodes[i].Name, info.KernelVersion))
		}
	}
	slices.Sort(old)
	var found []Finding
	if len(old) > 0 {
		found = append(found, problem("Upgrade them, or keep the agent off them by its nodeSelector (--set agent.nodeSelector.…) and pass --skip-check=\"nodes' kernels\".",
			"%d of %d nodes have a kernel older than %s: %s", len(old), linux, strings.TrimSuffix(leastKernel, ".0"), Listed(old))...)
	}
	if len(unknown) > 0 {
		found = append(found, note("See to it that they are "+leastKernel+" or newer.", "the kernels of these nodes are not understood: %s", Listed(unknown))...)
	}
	if linux == 0 {
		found = append(found, note("The agents start when nodes come.", "the cluster has no Linux node")...)
	}
	if found == nil {
		return good("%d nodes with kernel %s or newer", linux, strings.TrimSuffix(leastKernel, ".0"))
	}
	return found
}

// kernelNumber is what of a kernel's version is a number: 5.14.0-362.el9.x86_64.
var kernelNumber = regexp.MustCompile(`^\d+\.\d+(\.\d+)?`)

// apiGroup looks for somebody else's mesh.io.
func apiGroup(f *Facts) []Finding {
	var found []Finding
	for i := range f.APIServices {
		s := &f.APIServices[i]
		if s.Spec.Group != v1alpha1.SchemeGroupVersion.Group {
			continue
		}
		where := "it is made from a CustomResourceDefinition, or built in"
		if r := s.Spec.Service; r != nil {
			if r.Namespace == f.Namespace && r.Name == "mesh-apiserver" {
				continue
			}
			where = fmt.Sprintf("it is served by Service %s/%s", r.Namespace, r.Name)
		}
		do := "Ask whom it belongs to. It has to go before the mesh is installed: kubectl delete apiservice " + s.Name
		switch {
		case s.Spec.Service == nil:
			do = "Ask whom it belongs to: its CustomResourceDefinitions have to go before the mesh is installed."
		case s.Spec.Service.Name == "mesh-apiserver":
			do = fmt.Sprintf("A mesh is installed in that namespace: use --mesh-namespace %s, or uninstall it there.", s.Spec.Service.Namespace)
		}
		found = append(found, problem(do, "the cluster already has an API %s that is not ours: %s", s.Name, where)...)
	}
	if len(f.CustomResources) > 0 {
		found = append(found, problem("Ask whom they belong to: they have to go before the mesh is installed. kubectl delete crd NAME also deletes their objects.",
			"there are CustomResourceDefinitions of group mesh.io: %s", Listed(f.CustomResources))...)
	}
	if found == nil {
		return good("nobody else serves it")
	}
	return found
}

func namespace(f *Facts) []Finding {
	ns := f.NamespaceObject
	switch {
	case ns == nil:
		return good("%s will be made", f.Namespace)
	case ns.DeletionTimestamp != nil:
		why := ""
		for _, c := range ns.Status.Conditions {
			if c.Status == corev1.ConditionTrue && c.Message != "" {
				why = ": " + c.Message
			}
		}
		return problem("Wait until it is gone. If it does not go, an API that is down keeps it: see \"kubectl get apiservices\" for what is not available.",
			"namespace %s is being deleted since %s%s", f.Namespace, ns.DeletionTimestamp.UTC().Format("2006-01-02 15:04:05 MST"), why)
	}
	const enforce = "pod-security.kubernetes.io/enforce"
	if level := ns.Labels[enforce]; level == "baseline" || level == "restricted" {
		return problem(fmt.Sprintf("kubectl label namespace %s %s=privileged --overwrite", f.Namespace, enforce),
			"namespace %s lets only %s pods run, and the agent loads programs into the kernel", f.Namespace, level)
	}
	return good("%s is there", f.Namespace)
}

// existing compares with what is installed.
func existing(f *Facts) []Finding {
	if f.Installed == nil {
		return good("none")
	}
	if *f.Installed != f.Wanted {
		return problem("A cluster's name and ID stay as they are. To change them: meshctl uninstall --purge-data, and install anew.",
			"the mesh is installed here already, as %s with the ID %d", f.Installed.Name, f.Installed.ID)
	}
	if f.InstalledBy != "" && f.InstalledBy != "meshctl" {
		return problem("Uninstall it first with meshctl uninstall, which keeps the store's volume.", "the mesh is installed here already, but not by meshctl or Helm")
	}
	return good("it is the same")
}

// sameName looks for what would be taken for the mesh's own.
func sameName(f *Facts) []Finding {
	if len(f.Strangers) > 0 {
		return problem("Ask whom they belong to: they have to go, or to be called otherwise, before the mesh is installed.",
			"there are objects that are called like those of the mesh: %s", Listed(f.Strangers))
	}
	return good("none")
}

// taken looks into the mesh for the name, the ID and the cluster itself.
func taken(f *Facts) []Finding {
	var found []Finding
	for i := range f.Members {
		found = append(found, takenBy(f, &f.Members[i], "this cluster knows", true)...)
	}
	for _, other := range f.Others {
		if other.Error != "" {
			found = append(found, problem("Check the context, or leave it out of --mesh-contexts.", "the mesh of context %s could not be asked: %s", other.Context, other.Error)...)
			continue
		}
		for i := range other.Members {
			found = append(found, takenBy(f, &other.Members[i], "the cluster of context "+other.Context+" knows", false)...)
		}
	}
	switch {
	case found != nil:
		return found
	case len(f.Others) == 0:
		return good("not taken here; --mesh-contexts asks other clusters, too")
	}
	return good("not taken in the mesh")
}

func takenBy(f *Facts, m *v1alpha1.MeshCluster, who string, here bool) []Finding {
	// It is this cluster itself that another one knows, or that is installed here.
	itself := here && m.Spec.KubeconfigSecretRef == nil || f.UID != "" && m.Status.UID == f.UID
	const do = "Choose another one: names and IDs are unique in a mesh."
	switch {
	case itself && (m.Name != f.Wanted.Name || m.Spec.ID != f.Wanted.ID):
		if here && m.Spec.KubeconfigSecretRef == nil {
			who = "the mesh here knows"
		}
		text := fmt.Sprintf("%s this cluster as %s with the ID %d", who, m.Name, m.Spec.ID)
		if meta.IsStatusConditionTrue(m.Status.Conditions, v1alpha1.MeshClusterIdentityConflict) {
			text += ", in conflict"
		}
		return problem("Use that name and ID, or disconnect it there first.", "%s", text)
	case itself:
		return nil
	case m.Name == f.Wanted.Name && m.Spec.ID == f.Wanted.ID && !here && m.Status.UID == "":
		// Somebody has already announced this cluster.
		return nil
	case m.Name == f.Wanted.Name:
		return problem(do, "the name %s is taken: %s another cluster by it", f.Wanted.Name, who)
	case m.Spec.ID == f.Wanted.ID:
		return problem(do, "the ID %d is taken: %s %s by it", f.Wanted.ID, who, m.Name)
	}
	return nil
}

// defaultClass marks the StorageClass that is used where none is named.
const defaultClass = "storageclass.kubernetes.io/is-default-class"

func volume(f *Facts) []Finding {
	if !f.NeedsVolume {
		return good("none is asked for")
	}
	if f.StorageError != "" {
		return note("See to it that the one for the store's volume is there.", "the StorageClasses could not be read: %s", f.StorageError)
	}
	for i := range f.StorageClasses {
		c := &f.StorageClasses[i]
		if f.StorageClass == c.Name || f.StorageClass == "" && c.Annotations[defaultClass] == strconv.FormatBool(true) {
			return good("of StorageClass %s", c.Name)
		}
	}
	const do = "Name one with --set persistence.storageClass=…, or keep the store in a folder of its node with --set persistence.type=hostPath."
	if f.StorageClass != "" {
		return problem(do, "there is no StorageClass %s for the store's volume", f.StorageClass)
	}
	return problem(do, "the store needs a volume, and there is no default StorageClass")
}

func cilium(f *Facts) []Finding {
	if f.CiliumMesh {
		return note("To move from it to this one, use the annotations mesh.io/*, or --set ciliumAnnotations=on once it is off.",
			"Cilium's own cluster mesh runs here: its annotations are left to it")
	}
	return good("its own cluster mesh does not run here")
}

// Excuse makes notes of the problems that the named checks found.
func Excuse(findings []Finding, names []string) error {
	for _, name := range names {
		if !slices.ContainsFunc(Checks, func(c Check) bool { return c.Name == name }) {
			var known []string
			for _, c := range Checks {
				known = append(known, strconv.Quote(c.Name))
			}
			return fmt.Errorf("there is no check %q: they are %s", name, strings.Join(known, ", "))
		}
		for i := range findings {
			if findings[i].Check == name && findings[i].Level == Problem {
				findings[i].Level = Note
			}
		}
	}
	return nil
}
