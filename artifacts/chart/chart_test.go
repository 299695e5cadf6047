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

package chart

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"sigs.k8s.io/yaml"

	"helm.sh/helm/v4/pkg/strvals"
)

// types are what the chart's objects are decoded into, by kind. Those of the Prometheus
// operator have no Go types here.
var types = map[string]func() any{
	"APIService":                       func() any { return &apiregistrationv1.APIService{} },
	"ClusterRole":                      func() any { return &rbacv1.ClusterRole{} },
	"ClusterRoleBinding":               func() any { return &rbacv1.ClusterRoleBinding{} },
	"ConfigMap":                        func() any { return &corev1.ConfigMap{} },
	"DaemonSet":                        func() any { return &appsv1.DaemonSet{} },
	"Deployment":                       func() any { return &appsv1.Deployment{} },
	"NetworkPolicy":                    func() any { return &networkingv1.NetworkPolicy{} },
	"PodDisruptionBudget":              func() any { return &policyv1.PodDisruptionBudget{} },
	"Role":                             func() any { return &rbacv1.Role{} },
	"RoleBinding":                      func() any { return &rbacv1.RoleBinding{} },
	"Service":                          func() any { return &corev1.Service{} },
	"ServiceAccount":                   func() any { return &corev1.ServiceAccount{} },
	"StatefulSet":                      func() any { return &appsv1.StatefulSet{} },
	"ValidatingAdmissionPolicy":        func() any { return &admissionregistrationv1.ValidatingAdmissionPolicy{} },
	"ValidatingAdmissionPolicyBinding": func() any { return &admissionregistrationv1.ValidatingAdmissionPolicyBinding{} },
	"ServiceMonitor":                   func() any { return &map[string]any{} },
	"PodMonitor":                       func() any { return &map[string]any{} },
}

// render decodes, strictly, all objects that values make, by "Kind/name".
func render(t testing.TB, values map[string]any) map[string]any {
	t.Helper()
	files, err := Render(values, Namespace, nil)
	if err != nil {
		t.Fatalf("%v\nvalues: %v", err, values)
	}
	objects := map[string]any{}
	for _, file := range files {
		if filepath.Ext(file.Name) != ".yaml" {
			continue
		}
		for _, document := range strings.Split("\n"+file.Content, "\n---\n") {
			var meta unstructured.Unstructured
			content, err := yaml.YAMLToJSONStrict([]byte(document))
			if err != nil {
				t.Fatalf("%s: %v\n%s\nvalues: %v", file.Name, err, document, values)
			}
			if string(content) == "null" {
				continue
			}
			if err := json.Unmarshal(content, &meta.Object); err != nil {
				t.Fatal(err)
			}
			make, ok := types[meta.GetKind()]
			if !ok {
				t.Fatalf("%s makes a %s", file.Name, meta.GetKind())
			}
			object := make()
			if err := yaml.UnmarshalStrict([]byte(document), object); err != nil {
				t.Fatalf("%s: %v\n%s\nvalues: %v", file.Name, err, document, values)
			}
			key := meta.GetKind() + "/" + meta.GetName()
			if objects[key] != nil {
				t.Fatalf("%s is there twice", key)
			}
			objects[key] = object
			check(t, key, object, values)
		}
	}
	return objects
}

// check tells what is wrong with an object whatever the values are.
func check(t testing.TB, key string, object any, values map[string]any) {
	t.Helper()
	var pod *corev1.PodSpec
	switch object := object.(type) {
	case *apiregistrationv1.APIService:
		if len(object.Spec.CABundle) > 0 || object.Spec.InsecureSkipTLSVerify {
			t.Errorf("%s says itself whom to trust", key)
		}
	case *appsv1.DaemonSet:
		pod = &object.Spec.Template.Spec
	case *appsv1.Deployment:
		pod = &object.Spec.Template.Spec
	case *appsv1.StatefulSet:
		pod = &object.Spec.Template.Spec
	}
	if pod == nil {
		return
	}
	container := pod.Containers[0]
	if strings.HasSuffix(container.Image, ":latest") && container.ImagePullPolicy == corev1.PullIfNotPresent && at(values, "image.pullPolicy") != "IfNotPresent" {
		t.Errorf("%s: %s is not pulled anew", key, container.Image)
	}
	security := container.SecurityContext
	if !*security.ReadOnlyRootFilesystem || *security.AllowPrivilegeEscalation || !slices.Equal(security.Capabilities.Drop, []corev1.Capability{"ALL"}) {
		t.Errorf("%s: security context %v", key, security)
	}
	if key == "DaemonSet/mesh-agent" {
		return
	}
	rootful := at(values, "persistence.type") == "hostPath" && at(values, "persistence.hostPath.runAsRoot") != false
	if nonRoot := *pod.SecurityContext.RunAsNonRoot; !nonRoot && (!rootful || key != "StatefulSet/mesh-apiserver") {
		t.Errorf("%s: may be root with %v", key, values)
	}
	if pod.SecurityContext.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault || len(security.Capabilities.Add) > 0 {
		t.Errorf("%s: security contexts %v %v", key, pod.SecurityContext, security)
	}
}

func at(values map[string]any, dotted string) any {
	first, rest, nested := strings.Cut(dotted, ".")
	if !nested {
		return values[first]
	}
	next, _ := values[first].(map[string]any)
	return at(next, rest)
}

func set(t testing.TB, pairs ...string) map[string]any {
	t.Helper()
	values := map[string]any{}
	for _, pair := range append([]string{"cluster.name=cluster1", "cluster.id=1"}, pairs...) {
		if err := strvals.ParseInto(pair, values); err != nil {
			t.Fatal(err)
		}
	}
	return values
}

func TestOptions(t *testing.T) {
	const external = "etcd.external.servers={https://a:2379,https://b:2379}"
	for _, test := range []struct {
		name    string
		values  []string
		there   []string
		missing []string
		text    []string // in what is rendered
	}{
		{name: "defaults", there: []string{"StatefulSet/mesh-apiserver", "Deployment/mesh-controller", "DaemonSet/mesh-agent", "Service/mesh-apiserver", "Service/mesh-apiserver-peer",
			"APIService/v1alpha1.mesh.io", "ConfigMap/mesh-config", "NetworkPolicy/mesh-apiserver", "PodDisruptionBudget/mesh-controller", "ClusterRole/mesh-edit"},
			missing: []string{"Deployment/mesh-apiserver", "PodDisruptionBudget/mesh-apiserver", "ServiceMonitor/mesh-apiserver", "ClusterRole/mesh-agent-startup-taint"},
			text:    []string{"nodePort: 32443", `cluster-id: "1"`, "whenDeleted: Retain", "terminationGracePeriodSeconds: 45", "priorityClassName: \"system-node-critical\""}},
		{name: "external etcd", values: []string{external, "etcd.external.tlsSecret=etcd", "apiserver.replicas=3"},
			there: []string{"Deployment/mesh-apiserver", "PodDisruptionBudget/mesh-apiserver"}, missing: []string{"StatefulSet/mesh-apiserver"},
			text: []string{"--etcd-servers=https://a:2379,https://b:2379", `secretName: "etcd"`}},
		{name: "folder", values: []string{"persistence.type=hostPath", "persistence.hostPath.node=n1"}, text: []string{"kubernetes.io/hostname: n1", "DirectoryOrCreate", "runAsUser: 0"}},
		{name: "own folder", values: []string{"persistence.type=hostPath", "persistence.hostPath.runAsRoot=false"}, text: []string{"type: Directory}"}},
		{name: "no data", values: []string{"persistence.type=emptyDir"}, text: []string{"emptyDir: {}", "WARNING: persistence.type is emptyDir"}},
		{name: "claim", values: []string{"persistence.size=9Gi", "persistence.storageClass=fast", "persistence.whenDeleted=Delete"}, text: []string{`storage: "9Gi"`, `storageClassName: "fast"`, "whenDeleted: Delete"}},
		{name: "digest", values: []string{"agent.image.digest=sha256:" + strings.Repeat("ab", 32), "image.registry=r:5000/m"}, text: []string{`"r:5000/m/mesh-agent@sha256:` + strings.Repeat("ab", 32), `"r:5000/m/mesh-controller:v0.1.0"`}},
		{name: "latest", values: []string{"image.tag=latest"}, text: []string{"imagePullPolicy: Always"}},
		{name: "load balancer", values: []string{"peer.service.type=LoadBalancer", "peer.service.loadBalancerClass=x", "peer.service.annotations.a=b"}, text: []string{"type: LoadBalancer", `loadBalancerClass: "x"`, "a: b"}},
		{name: "nothing more", values: []string{"networkPolicy.enabled=false", "podDisruptionBudget.enabled=false"}, missing: []string{"NetworkPolicy/mesh-apiserver", "PodDisruptionBudget/mesh-controller"}},
		{name: "monitors", values: []string{"serviceMonitor.enabled=true", "serviceMonitor.labels.release=p", "serviceMonitor.prometheus.serviceAccountName=p", "serviceMonitor.prometheus.namespace=m"},
			there: []string{"ServiceMonitor/mesh-apiserver", "PodMonitor/mesh-controller", "ClusterRole/mesh-metrics", "ClusterRoleBinding/mesh-metrics"}},
		{name: "startup taint", values: []string{"agent.startupTaint=mesh.io/agent-not-ready"},
			there: []string{"ClusterRole/mesh-agent-startup-taint", "ClusterRoleBinding/mesh-agent-startup-taint", "ValidatingAdmissionPolicy/mesh-agent-startup-taint", "ValidatingAdmissionPolicyBinding/mesh-agent-startup-taint"},
			text:  []string{"- --startup-taint=mesh.io/agent-not-ready"}},
		{name: "no pods", values: []string{"agent.podOptOut=false"}, text: []string{"- --pod-opt-out=false", "[services, namespaces, nodes]"}},
		{name: "sockets stay", values: []string{"agent.destroyStaleUDP=false"}, text: []string{"- --destroy-stale-udp=false", "add: [BPF, NET_ADMIN, PERFMON, SYS_RESOURCE]"}},
		{name: "load balancers", values: []string{"agent.loadBalancerIPs=true"}, text: []string{"- --load-balancer-ips\n"}},
		{name: "past kube-proxy's chains", values: []string{"agent.skipServiceChains=remote"}, text: []string{"- --skip-service-chains=remote"}},
		{name: "flags", values: []string{"agent.extraArgs={--v=4}", "ciliumAnnotations=off"}, text: []string{`- "--v=4"`, "--cilium-annotations=off"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			values := set(t, test.values...)
			objects := render(t, values)
			for _, key := range test.there {
				if objects[key] == nil {
					t.Errorf("no %s", key)
				}
			}
			for _, key := range test.missing {
				if objects[key] != nil {
					t.Errorf("there is a %s", key)
				}
			}
			files, err := Render(values, Namespace, nil)
			if err != nil {
				t.Fatal(err)
			}
			all := fmt.Sprint(files)
			for _, text := range test.text {
				if !strings.Contains(all, text) {
					t.Errorf("%q is not in what is rendered", text)
				}
			}
		})
	}
}

// The values that people may start from: everything is in the release's namespace, asks
// for what it needs, and only the agent is in its node's network.
func TestExampleValues(t *testing.T) {
	names, err := filepath.Glob("ci/*-values.yaml")
	if err != nil || len(names) == 0 {
		t.Fatalf("no files of values: %v", err)
	}
	for _, name := range names {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var values map[string]any
		if err := yaml.UnmarshalStrict(content, &values); err != nil {
			t.Fatal(err)
		}
		elsewhere, err := Render(values, "elsewhere", nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range elsewhere {
			if strings.Contains(file.Content, Namespace) {
				t.Errorf("%s: %s names namespace %s, and is installed in another", name, file.Name, Namespace)
			}
		}
		workloads := 0
		for key, object := range render(t, values) {
			var pod corev1.PodSpec
			switch object := object.(type) {
			case *appsv1.DaemonSet:
				pod = object.Spec.Template.Spec
			case *appsv1.Deployment:
				pod = object.Spec.Template.Spec
			case *appsv1.StatefulSet:
				pod = object.Spec.Template.Spec
			default:
				continue
			}
			workloads++
			for _, resource := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
				if request := pod.Containers[0].Resources.Requests[resource]; request.IsZero() {
					t.Errorf("%s: %s requests no %s", name, key, resource)
				}
			}
			if pod.HostNetwork != (key == "DaemonSet/mesh-agent") {
				t.Errorf("%s: %s: hostNetwork is %v", name, key, pod.HostNetwork)
			}
		}
		if workloads != 3 {
			t.Errorf("%s: %d workloads", name, workloads)
		}
	}
}

func TestRefusals(t *testing.T) {
	for _, test := range []struct{ value, path string }{
		{"cluster.name=default", "/cluster/name"},
		{"cluster.name=Cluster", "/cluster/name"},
		{"cluster.name=" + strings.Repeat("a", 33), "/cluster/name"},
		{"cluster.id=0", "/cluster/id"},
		{"cluster.id=65536", "/cluster/id"},
		{"cluster.id=one", "/cluster/id"},
		{"cluster.name=null", "/cluster"},
		{"clutser.name=x", "clutser"},
		{"apiserver.replicas=3", "/apiserver/replicas"},
		{"apiserver.replicas=0", "/apiserver/replicas"},
		{"apiserver.image.pullPolicy=Always", "pullPolicy"},
		{"apiserver.extraArgs={--data-dir=/x}", "/apiserver/extraArgs/0"},
		{"controller.extraArgs={--cluster-name=x}", "/controller/extraArgs/0"},
		{"agent.image.digest=sha256:1", "/agent/image/digest"},
		{"etcd.external.servers={http://a:2379}", "/etcd/external/servers/0"},
		{"etcd.external.servers={https://a:2379}", "/etcd/external/tlsSecret"},
		{"etcd.external.tlsSecret=x", "/etcd/external/tlsSecret"},
		{"persistence.type=nfs", "/persistence/type"},
		{"persistence.size=lots", "/persistence/size"},
		{"persistence.hostPath.path=/var/../etc", "/persistence/hostPath/path"},
		{"peer.service.nodePort=70000", "/peer/service/nodePort"},
		{"peer.service.type=ExternalName", "/peer/service/type"},
		{"agent.maxUnavailable=0", "/agent/maxUnavailable"},
		{"ciliumAnnotations=true", "/ciliumAnnotations"},
		{"agent.skipServiceChains=false", "/agent/skipServiceChains"},
		{"controller.resources.requests.gpu=1", "gpu"},
		{"serviceMonitor.prometheus.serviceAccountName=p", "/serviceMonitor/prometheus/namespace"},
	} {
		if _, err := Render(set(t, test.value), Namespace, nil); err == nil || !strings.Contains(err.Error(), test.path) {
			t.Errorf("%s: %v, want an error that names %s", test.value, err, test.path)
		}
	}
	if _, err := Render(set(t), "kube-system", nil); err == nil || !strings.Contains(err.Error(), "use mesh-system") {
		t.Errorf("in kube-system: %v", err)
	}
}

// schema is the part of JSON schemas that ours uses.
type schema struct {
	Ref                  string            `json:"$ref"`
	Type                 any               `json:"type"`
	Properties           map[string]schema `json:"properties"`
	Required             []string          `json:"required"`
	AdditionalProperties json.RawMessage   `json:"additionalProperties"`
	PropertyNames        *schema           `json:"propertyNames"`
	Items                *schema           `json:"items"`
	AnyOf                []schema          `json:"anyOf"`
	Enum, Examples       []any
	Minimum, Maximum     *float64
	Defs                 map[string]schema `json:"$defs"`
}

func readSchema(t testing.TB) schema {
	t.Helper()
	content, err := FS.ReadFile("values.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	var s schema
	if err := json.Unmarshal(content, &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// random makes a value that a schema takes: any of its examples where it has some.
func (s schema) random(root schema, r *rand.Rand) any {
	if s.Ref != "" {
		return root.Defs[strings.TrimPrefix(s.Ref, "#/$defs/")].random(root, r)
	}
	if choices := append(s.Enum, s.Examples...); len(choices) > 0 {
		return choices[r.IntN(len(choices))]
	}
	if len(s.AnyOf) > 0 {
		return s.AnyOf[r.IntN(len(s.AnyOf))].random(root, r)
	}
	switch s.Type {
	case "object":
		object := map[string]any{}
		for name, property := range s.Properties {
			if slices.Contains(s.Required, name) || r.IntN(2) == 0 {
				object[name] = property.random(root, r)
			}
		}
		var values schema
		if s.PropertyNames != nil && json.Unmarshal(s.AdditionalProperties, &values) == nil {
			for range r.IntN(3) {
				object[s.PropertyNames.random(root, r).(string)] = values.random(root, r)
			}
		}
		return object
	case "array":
		array := []any{}
		for range r.IntN(3) {
			array = append(array, s.Items.random(root, r))
		}
		return array
	case "boolean":
		return r.IntN(2) == 0
	case "integer":
		low, high := 0, 100
		if s.Minimum != nil {
			low = int(*s.Minimum)
		}
		if s.Maximum != nil {
			high = int(*s.Maximum)
		}
		return low + r.IntN(high-low+1)
	}
	return []string{"", "x", "a: b", "{{ .Values }}", "\"", "on"}[r.IntN(6)]
}

// TestAnyValues renders what the schema takes, and what it would take but for one
// wrong value, which has to be refused by its path.
func TestAnyValues(t *testing.T) {
	root := readSchema(t)
	accepted := 0
	for seed := range uint64(150) {
		r := rand.New(rand.NewPCG(seed, 0))
		values := root.random(root, r).(map[string]any)
		_, err := Render(values, Namespace, nil)
		if err != nil && strings.Contains(err.Error(), "checking the values") {
			// Rules across values (replicas, tlsSecret, ...) are tables above.
			if !strings.ContainsAny(err.Error(), "/") {
				t.Errorf("seed %d: no path in %v", seed, err)
			}
			continue
		}
		accepted++
		render(t, values)
		path := spoil(values, r, "")
		if _, err := Render(values, Namespace, nil); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("seed %d: a wrong value at %s: %v", seed, path, err)
		}
		if t.Failed() {
			return
		}
	}
	if accepted < 25 {
		t.Errorf("only %d values were taken", accepted)
	}
}

// spoil puts something nowhere allowed into values and returns where.
func spoil(values map[string]any, r *rand.Rand, path string) string {
	names := spoilable(values)
	name := names[r.IntN(len(names))]
	if next, ok := values[name].(map[string]any); ok && len(spoilable(next)) > 0 && r.IntN(4) > 0 && !strings.Contains(name, "abels") && name != "nodeSelector" {
		return spoil(next, r, path+"/"+name)
	}
	values[name] = []any{map[string]any{"no": "such"}}
	return path + "/" + name
}

// spoilable returns the names of the values that are not free in what they hold.
func spoilable(values map[string]any) (names []string) {
	for name := range values {
		if name != "annotations" && name != "podAnnotations" && name != "global" && name != "affinity" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// What can be set is shown with its default.
func TestSchemaHasTheValues(t *testing.T) {
	content, err := FS.ReadFile("values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var values map[string]any
	if err := yaml.UnmarshalStrict(content, &values); err != nil {
		t.Fatal(err)
	}
	root := readSchema(t)
	for name := range root.Properties {
		if _, ok := values[name]; !ok && name != "global" {
			t.Errorf("values.yaml does not show %s", name)
		}
	}
}

// The example that restores a store has to run what the manifests run.
func TestExamplesRunTheSameImage(t *testing.T) {
	content, err := os.ReadFile("../examples/restore.yaml")
	if err != nil {
		t.Fatal(err)
	}
	server := render(t, set(t))["StatefulSet/mesh-apiserver"].(*appsv1.StatefulSet)
	if image := "image: " + server.Spec.Template.Spec.Containers[0].Image; !strings.Contains(string(content), image+"\n") {
		t.Errorf("restore.yaml has no %q", image)
	}
}
