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

package explain

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"mesh.io/clustermesh/pkg/agent/dump"
	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
)

var now = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

func ago(d time.Duration) metav1.Time { return metav1.NewTime(now.Add(-d)) }

func condition(kind string, status metav1.ConditionStatus, reason, message string) metav1.Condition {
	return metav1.Condition{Type: kind, Status: status, Reason: reason, Message: message, LastTransitionTime: ago(5 * time.Minute)}
}

func service(annotations map[string]string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "song", Name: "userlist-svc", Annotations: annotations, CreationTimestamp: ago(time.Hour)},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: "10.101.0.7", ClusterIPs: []string{"10.101.0.7"},
			Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}},
		},
	}
}

var global = map[string]string{"mesh.io/global": "true"}

func endpointSlice(address string) discoveryv1.EndpointSlice {
	return discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "song", Name: "s", Labels: map[string]string{discoveryv1.LabelServiceName: "userlist-svc"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To("http"), Protocol: ptr.To(corev1.ProtocolTCP), Port: ptr.To[int32](8181)}},
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{address}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)}}},
	}
}

func record(cluster string, id int32, address string, ready bool) v1alpha1.SliceRecord {
	return v1alpha1.SliceRecord{
		Cluster: cluster, ClusterID: id, Service: "userlist-svc", AddressType: discoveryv1.AddressTypeIPv4,
		Ports:     []v1alpha1.EndpointPort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 8181}},
		Endpoints: []v1alpha1.Endpoint{{Address: address, Ready: ready, Serving: ready}},
		ChangedAt: metav1.NewMicroTime(now.Add(-3 * time.Minute)),
	}
}

func member(name string, id int32, local bool) v1alpha1.MeshCluster {
	m := v1alpha1.MeshCluster{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.MeshClusterSpec{ID: id}}
	m.Status.LastContactTime = ago(2 * time.Second)
	if local {
		m.Status.Conditions = []metav1.Condition{condition(v1alpha1.MeshClusterExportsSynced, metav1.ConditionTrue, "Synced", "")}
		return m
	}
	m.Spec.KubeconfigSecretRef = &v1alpha1.SecretReference{Name: "mesh-peer-" + name}
	m.Status.Conditions = []metav1.Condition{
		condition(v1alpha1.MeshClusterConnected, metav1.ConditionTrue, "Connected", ""),
		condition(v1alpha1.MeshClusterSynced, metav1.ConditionTrue, "Synced", ""),
	}
	return m
}

// whole is a chain that nothing is wrong with.
func whole() *Facts {
	there := &Cluster{
		Context: "ctx2", Name: "cluster2", MeshNamespace: "mesh-system",
		Namespace: &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "song"}}, Service: service(global), Slices: []discoveryv1.EndpointSlice{endpointSlice("10.2.1.3")},
		Exported: &v1alpha1.ExportedService{Spec: v1alpha1.ServiceRecord{Cluster: "cluster2", ClusterID: 2, ExportedAt: ago(time.Hour)}},
		ExportedSlices: []v1alpha1.ExportedEndpointSlice{{
			ObjectMeta: metav1.ObjectMeta{Namespace: "song", Name: "userlist-abc"}, Spec: record("cluster2", 2, "10.2.1.3", true),
		}},
		Members: []v1alpha1.MeshCluster{member("cluster1", 1, false), member("cluster2", 2, true)},
	}
	age := 3.0
	return &Facts{
		Namespace: "song", Name: "userlist-svc", Now: now,
		Here: Cluster{
			Context: "ctx1", Name: "cluster1", MeshNamespace: "mesh-system",
			Namespace: &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "song"}}, Service: service(global), Slices: []discoveryv1.EndpointSlice{endpointSlice("10.1.1.3")},
			Members: []v1alpha1.MeshCluster{member("cluster1", 1, true), member("cluster2", 2, false)},
			Global: &v1alpha1.GlobalService{
				ObjectMeta: metav1.ObjectMeta{Namespace: "song", Name: "userlist-svc", Generation: 1},
				Status: v1alpha1.GlobalServiceStatus{ObservedGeneration: 1, Clusters: []v1alpha1.ClusterStatus{
					{Name: "cluster1", ID: 1, Local: true, Shared: true, Endpoints: v1alpha1.EndpointCount{Ready: 1, Total: 1}},
					{Name: "cluster2", ID: 2, Shared: true, Endpoints: v1alpha1.EndpointCount{Ready: 1, Total: 1}, Ports: []v1alpha1.ServicePort{{Name: "http", Protocol: "TCP", Port: 80}}},
				}},
			},
			Imported:       []v1alpha1.ImportedService{{ObjectMeta: metav1.ObjectMeta{CreationTimestamp: ago(time.Hour)}, Spec: v1alpha1.ServiceRecord{Cluster: "cluster2", ClusterID: 2}}},
			ImportedSlices: []v1alpha1.ImportedEndpointSlice{{ObjectMeta: metav1.ObjectMeta{Namespace: "song"}, Spec: record("cluster2", 2, "10.2.1.3", true)}},
		},
		Peers: []Peer{{Name: "cluster2", There: there}},
		Node: Node{
			Name: "node1", Exists: true,
			Pod: &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Namespace: "mesh-system", Name: "mesh-agent-x"},
				Status:     corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: ago(time.Hour)}}},
			},
			Dump: &dump.Document{
				HeartbeatAgeSeconds: &age, Agent: &dump.Agent{Ready: true},
				Services: []dump.Service{{
					ID: 1, Address: "10.101.0.7", Port: 80, Protocol: "TCP", Namespace: "song", Name: "userlist-svc", PortName: "http",
					Backends: []dump.Backend{
						{Address: "10.1.1.3", Port: 8181, Cluster: "cluster1", ClusterID: 1, State: "active", Slots: 1, Preferred: true},
						{Address: "10.2.1.3", Port: 8181, Cluster: "cluster2", ClusterID: 2, State: "active", Slots: 1, Preferred: true},
					},
				}},
			},
		},
	}
}

func TestWholeChain(t *testing.T) {
	chain := Chain(*whole())
	var names []string
	for _, l := range chain {
		if l.State != OK || len(l.Evidence) == 0 {
			t.Errorf("%s is %s: %q", l.Name, l.State, l.Evidence)
		}
		names = append(names, l.Name)
	}
	if got, want := strings.Join(names, " "), "annotation policy service export peer import merge share agent programmed"; got != want {
		t.Errorf("the links are %s", got)
	}
}

func TestEveryWayToBreak(t *testing.T) {
	there := func(f *Facts) *Cluster { return f.Peers[0].There }
	for name, test := range map[string]struct {
		change func(*Facts)
		link   string
		say    string // in the evidence
		do     string
	}{
		"not annotated":       {func(f *Facts) { f.Here.Service.Annotations = nil }, LinkAnnotation, "neither the Service nor its Namespace", "annotate --overwrite service userlist-svc mesh.io/global=true"},
		"annotated otherwise": {func(f *Facts) { f.Here.Service.Annotations = map[string]string{"service.cilium.io/global": "yes"} }, LinkAnnotation, `service.cilium.io/global: "yes" on the Service means nothing`, "annotate"},
		"annotated false":     {func(f *Facts) { f.Here.Service.Annotations = map[string]string{"mesh.io/global": "false"} }, LinkAnnotation, `"false"`, "annotate"},
		"the Namespace says no": {func(f *Facts) {
			f.Here.Service.Annotations, f.Here.Namespace.Annotations = nil, map[string]string{"mesh.io/global": "false"}
		}, LinkAnnotation, "on the Namespace", "annotate"},
		"Cilium's own mesh runs": {func(f *Facts) {
			f.Here.CiliumMesh, f.Here.Service.Annotations = true, map[string]string{"service.cilium.io/global": "true"}
		}, LinkAnnotation, "does not count, as Cilium's own cluster mesh runs", "mesh.io/global=true"},
		"reserved":         {func(f *Facts) { f.Here.MeshNamespace = "song" }, LinkPolicy, "Services of the mesh itself", "another namespace"},
		"no Service":       {func(f *Facts) { f.Here.Service, f.Here.Slices = nil, nil }, LinkService, "there is no Service song/userlist-svc in cluster1", "create it in cluster1"},
		"no Namespace":     {func(f *Facts) { f.Here.Service, f.Here.Namespace = nil, nil }, LinkService, "namespace song does not exist in cluster1", "create namespace"},
		"Service goes":     {func(f *Facts) { f.Here.Service.DeletionTimestamp = ptr.To(ago(time.Minute)) }, LinkService, "being deleted", "create it again"},
		"headless":         {func(f *Facts) { f.Here.Service.Spec.ClusterIPs = nil }, LinkService, "it has no cluster IP", "change the Service"},
		"only SCTP":        {func(f *Facts) { f.Here.Service.Spec.Ports[0].Protocol = corev1.ProtocolSCTP }, LinkService, "only TCP and UDP", "TCP or UDP"},
		"no peers":         {func(f *Facts) { f.Peers = nil; f.Here.Members = f.Here.Members[:1] }, LinkPeer, "connected to no other cluster", "meshctl connect --context ctx1"},
		"not there":        {func(f *Facts) { there(f).Service, there(f).Exported, f.Here.Imported = nil, nil, nil }, LinkExport, "there is no Service song/userlist-svc in cluster2", "create it there"},
		"not global there": {func(f *Facts) { there(f).Service.Annotations, there(f).Exported, f.Here.Imported = nil, nil, nil }, LinkExport, "not global there", "kubectl --context ctx2"},
		"reserved there":   {func(f *Facts) { there(f).MeshNamespace = "song" }, LinkExport, "it can never be global", "another namespace"},
		"an alias there":   {func(f *Facts) { there(f).Service.Spec.Type = corev1.ServiceTypeExternalName }, LinkExport, "ExternalName", "another type"},
		"not shared": {func(f *Facts) {
			there(f).Service.Annotations = map[string]string{"mesh.io/global": "true", "mesh.io/shared": "false"}
		}, LinkExport, "keeps its backends to itself: shared is false (annotation)", "mesh.io/shared=true"},
		"namespace not exported": {func(f *Facts) { there(f).Members[1].Spec.Export.Namespaces = []string{"other"} }, LinkExport, "does not export namespace song", "edit meshcluster cluster2"},
		"not exported": {func(f *Facts) {
			there(f).Exported = nil
			there(f).Members[1].Status.Conditions[0] = condition(v1alpha1.MeshClusterExportsSynced, metav1.ConditionFalse, "Writing", "3 are left")
		}, LinkExport, "its exports are not complete: Writing: 3 are left", "logs deploy/mesh-controller"},
		"offered to others": {func(f *Facts) { there(f).Exported.Spec.Consumers = []string{"cluster9"} }, LinkExport, "offered to cluster9 only", "consumers"},
		"no endpoints":      {func(f *Facts) { there(f).Slices, there(f).ExportedSlices = nil, nil }, LinkExport, "has no endpoints in cluster2", "start pods"},
		"made by hand":      {func(f *Facts) { there(f).ExportedSlices = nil }, LinkExport, "none is exported", "mesh.io/export-manual=true"},
		"none ready":        {func(f *Facts) { there(f).ExportedSlices[0].Spec.Endpoints[0].Ready = false }, LinkExport, "0/1 endpoints ready", "get pods"},
		"no MeshCluster":    {func(f *Facts) { f.Here.Members = f.Here.Members[:1] }, LinkPeer, "cluster1 has no MeshCluster cluster2", "meshctl connect --context ctx1 --destination-context ctx2"},
		"MeshCluster goes":  {func(f *Facts) { f.Here.Members[1].DeletionTimestamp = ptr.To(ago(time.Minute)) }, LinkPeer, "being deleted", "meshctl connect"},
		"identity conflict": {func(f *Facts) {
			f.Here.Members[1].Status.Conditions = append(f.Here.Members[1].Status.Conditions, condition(v1alpha1.MeshClusterIdentityConflict, metav1.ConditionTrue, "SameID", "both have 2"))
		}, LinkPeer, "SameID: both have 2", "another name or ID"},
		"not connected": {func(f *Facts) {
			f.Here.Members[1].Status.Conditions[0] = condition(v1alpha1.MeshClusterConnected, metav1.ConditionFalse, "Unreachable", "no route")
		}, LinkPeer, "not Connected: Unreachable: no route", "troubleshoot"},
		"not connected, and since when": {func(f *Facts) {
			f.Here.Members[1].Status.Conditions[0] = condition(v1alpha1.MeshClusterConnected, metav1.ConditionFalse, "Unreachable", "no route")
			f.Here.Members[1].Status.LastContactTime = ago(14 * time.Second)
		}, LinkPeer, "last heard of 14s ago; what was imported before stays", "troubleshoot"},
		"silent": {func(f *Facts) {
			f.Here.Members[1].Status.Conditions[0] = condition(v1alpha1.MeshClusterConnected, metav1.ConditionUnknown, "Silent", "gone silent")
			f.Here.Members[1].Status.LastContactTime = ago(9 * time.Second)
		}, LinkPeer, "cluster2 was last heard of 9s ago, and it has not answered", "troubleshoot"},
		"not heard of": {func(f *Facts) { f.Here.Members[1].Status.LastContactTime = ago(40 * time.Second) }, LinkPeer, "cluster2 was last heard of 40s ago, while", "troubleshoot"},
		"not synced": {func(f *Facts) {
			f.Here.Members[1].Status.Conditions[1] = condition(v1alpha1.MeshClusterSynced, metav1.ConditionFalse, "Listing", "being read")
		}, LinkPeer, "not Synced: Listing", "describe meshcluster cluster2"},
		"no status":              {func(f *Facts) { f.Here.Members[1].Status.Conditions = nil }, LinkPeer, "has not looked at it", "mesh-controller"},
		"controller dead":        {func(f *Facts) { f.Here.Members[0].Status.LastContactTime = ago(time.Hour) }, LinkPeer, "last alive 60m ago", "mesh-controller"},
		"namespace not imported": {func(f *Facts) { f.Here.Members[1].Spec.Import.Namespaces = []string{"other"} }, LinkImport, "imports no namespace song", "edit meshcluster cluster2"},
		"not imported":           {func(f *Facts) { f.Here.Imported, f.Here.ImportedSlices = nil, nil }, LinkImport, "there is no ImportedService cluster2.userlist-svc", "before this one"},
		"service refused": {func(f *Facts) {
			f.Here.Imported, f.Here.ImportedSlices = nil, nil
			f.Here.Members[1].Status.Refusals = []string{"service song/cluster2.userlist-svc: LimitExceeded: 10000 are taken"}
		}, LinkImport, "LimitExceeded", "limits"},
		"some refused": {func(f *Facts) {
			f.Here.Imported, f.Here.ImportedSlices = nil, nil
			f.Here.Members[1].Status.Refused = 7
		}, LinkImport, "7 objects or endpoints of cluster2 are refused", "describe"},
		"endpoints refused": {func(f *Facts) {
			f.Here.ImportedSlices = nil
			f.Here.Members[1].Status.Refusals = []string{"slice song/cluster2.userlist-abc: AddressNotAllowed: endpoint is outside"}
		}, LinkImport, "AddressNotAllowed", "describe"},
		"endpoints refused, of a peer that is not asked": {func(f *Facts) {
			f.Peers[0].There = nil
			f.Here.ImportedSlices[0].Name = "cluster2.userlist-abc"
			f.Here.ImportedSlices[0].Spec.Endpoints = nil
			f.Here.Members[1].Status.Refusals = []string{"slice song/cluster2.userlist-abc: AddressNotAllowed: endpoint is outside"}
		}, LinkImport, "AddressNotAllowed", "describe"},
		"another service's endpoints are refused": {func(f *Facts) {
			f.Here.ImportedSlices = nil
			f.Here.Members[1].Status.Refusals = []string{"slice song/cluster2.userlist-abcd: AddressNotAllowed: endpoint is outside"}
		}, LinkImport, "no endpoint is imported", "look at the links before"},
		"endpoints missing": {func(f *Facts) {
			there(f).ExportedSlices[0].Spec.Endpoints = append(there(f).ExportedSlices[0].Spec.Endpoints, v1alpha1.Endpoint{Address: "10.2.1.4", Ready: true})
		}, LinkImport, "1 that are exported are not here", "describe"},
		"import not ready": {func(f *Facts) { f.Here.ImportedSlices[0].Spec.Endpoints[0].Ready = false }, LinkImport, "0/1 endpoints ready", "cluster2"},
		"no GlobalService": {func(f *Facts) { f.Here.Global = nil }, LinkMerge, "there is no GlobalService", "logs deploy/mesh-controller"},
		"spec not seen":    {func(f *Facts) { f.Here.Global.Generation = 2 }, LinkMerge, "has seen generation 1", "logs"},
		"not merged":       {func(f *Facts) { f.Here.Global.Status.Clusters = f.Here.Global.Status.Clusters[:1] }, LinkMerge, "does not list cluster2", "before"},
		"ports differ": {func(f *Facts) {
			f.Here.Global.Status.Clusters[1].Ports[0].Name = "web"
			f.Here.Global.Status.Conditions = []metav1.Condition{condition(v1alpha1.GlobalServiceConflict, metav1.ConditionTrue, "ClustersDiffer", "port differs")}
		}, LinkMerge, "no port of the Service here", "same names"},
		"no IP family in common": {func(f *Facts) {
			f.Here.Service.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol}
			f.Here.Imported[0].Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol}
		}, LinkMerge, "of IPv6 here, and of IPv4 in cluster2", "PreferDualStack"},
		"drained": {func(f *Facts) {
			f.Here.Global.Spec.Clusters = []v1alpha1.ClusterPolicy{{Name: "cluster2", Weight: ptr.To[int32](0)}}
		}, LinkShare, "weight 0 (spec)", "meshctl service drain song/userlist-svc --context ctx1 --cluster cluster2 --undo"},
		"drained as a whole": {func(f *Facts) { f.Here.Members[1].Spec.Drained = true }, LinkShare, "weight 0 (drained)", `{"spec":{"drained":false}}`},
		"weight 0 of all":    {func(f *Facts) { f.Here.Members[1].Spec.Weight = ptr.To[int32](0) }, LinkShare, "weight 0 (MeshCluster)", `{"spec":{"weight":null}}`},
		"no node":            {func(f *Facts) { f.Node = Node{Name: "node9"} }, LinkAgent, "has no node node9", "get nodes"},
		"no agent":           {func(f *Facts) { f.Node.Pod, f.Node.Dump = nil, nil }, LinkAgent, "no mesh-agent runs on node1", "get pods"},
		"agent pending":      {func(f *Facts) { f.Node.Pod.Status.Phase, f.Node.Dump = corev1.PodPending, nil }, LinkAgent, "is Pending", "logs mesh-agent-x"},
		"agent dead":         {func(f *Facts) { f.Node.Dump.HeartbeatAgeSeconds = ptr.To(400.0) }, LinkAgent, "last sign of life 6m ago", "logs"},
		"agent never lived":  {func(f *Facts) { f.Node.Dump.HeartbeatAgeSeconds = nil }, LinkAgent, "no agent has been alive", "logs"},
		"agent not synced": {func(f *Facts) {
			f.Node.Dump.Agent.Checks = []dump.Check{{Name: "mesh-api", Message: "not in sync yet"}}
		}, LinkAgent, "mesh-api: not in sync yet", "logs"},
		"not programmed": {func(f *Facts) {
			f.Node.Dump.Services, f.Node.Dump.LeftToKubeProxy = nil, []dump.Left{{Service: "song/userlist-svc:http", Reason: "the maps are full"}}
		}, LinkProgrammed, "the maps are full", "logs"},
		"not taken up":  {func(f *Facts) { f.Node.Dump.Services[0].Backends = f.Node.Dump.Services[0].Backends[:1] }, LinkProgrammed, "has not taken up 1 backend", "ask again"},
		"not preferred": {func(f *Facts) { f.Node.Dump.Services[0].Backends[1].Preferred = false }, LinkProgrammed, "has not taken up", "ask again"},
	} {
		t.Run(name, func(t *testing.T) {
			f := whole()
			test.change(f)
			chain := Chain(*f)
			at := FirstBroken(chain)
			if at < 0 {
				t.Fatalf("nothing is broken: %+v", chain)
			}
			l := chain[at]
			if l.Name != test.link || !strings.Contains(strings.Join(l.Evidence, "; "), test.say) || !strings.Contains(l.Do, test.do) {
				t.Errorf("got %s: %q, do %q", l.Name, l.Evidence, l.Do)
			}
		})
	}
}

func TestNotBroken(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*Facts)
		link   string
		state  State
		say    string
	}{
		"standby by affinity": {func(f *Facts) {
			f.Here.Service.Annotations = map[string]string{"mesh.io/global": "TRUE", "mesh.io/affinity": "local"}
			f.Node.Dump.Services[0].Backends[1].Preferred = false
		}, LinkProgrammed, OK, "standby: affinity Local prefers cluster1"},
		"another annotation is wrong": {func(f *Facts) {
			f.Here.Service.Annotations = map[string]string{"mesh.io/global": "true", "mesh.io/affinity": "near"}
		}, LinkAnnotation, OK, "which means nothing"},
		"a pod with two addresses": {func(f *Facts) {
			six := f.Peers[0].There.ExportedSlices[0].DeepCopy()
			six.Spec.AddressType, six.Spec.Endpoints[0].Address = discoveryv1.AddressTypeIPv6, "fd00:2::3"
			f.Peers[0].There.ExportedSlices = append(f.Peers[0].There.ExportedSlices, *six)
			f.Here.ImportedSlices = append(f.Here.ImportedSlices, v1alpha1.ImportedEndpointSlice{Spec: six.Spec})
		}, LinkImport, OK, "1/1 endpoints ready, in 2 slices"},
		"one IP family in common": {func(f *Facts) {
			f.Here.Service.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
			f.Here.Imported[0].Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol}
		}, LinkMerge, OK, "cluster2 has 1/1"},
		"no context of the peer":      {func(f *Facts) { f.Peers[0].There = nil }, LinkExport, OK, "no context of cluster2 was given"},
		"a context does not answer":   {func(f *Facts) { f.Peers[0].There, f.Unnamed = nil, []string{"ctx2 is dead"} }, LinkExport, OK, "cluster2 could not be asked: ctx2 is dead"},
		"nothing known of the peer":   {func(f *Facts) { f.Peers[0].There, f.Here.Imported = nil, nil }, LinkExport, Unknown, "no context of cluster2"},
		"the peer's mesh API is dead": {func(f *Facts) { f.Peers[0].There.MeshProblem = "it does not answer" }, LinkExport, Unknown, "it does not answer"},
		"the mesh API here is dead":   {func(f *Facts) { f.Here.MeshProblem = "it does not answer" }, LinkPeer, Unknown, "it does not answer"},
		"kube-apiserver is dead":      {func(f *Facts) { f.Here.Problem = "it does not answer" }, LinkService, Unknown, "it does not answer"},
		"the node has one of its addresses": {func(f *Facts) {
			f.Here.Service.Spec.ClusterIPs = []string{"10.101.0.7", "10.101.0.8"}
			f.Node.Dump.LeftToKubeProxy = []dump.Left{{Service: "song/userlist-svc", Reason: "the node itself has its address: 10.101.0.8 on nodelocaldns"}}
		}, LinkProgrammed, OK, "10.101.0.8 on nodelocaldns"},
		"the node cannot be asked": {func(f *Facts) { f.Node.Dump, f.Node.DumpProblem = nil, "pods/exec is forbidden" }, LinkProgrammed, Unknown, "could not be read"},
		"the agent tells of a lost API": {func(f *Facts) {
			f.Node.Dump.Agent.Checks = []dump.Check{{Name: "mesh-api", OK: true, Message: "no contact"}}
		}, LinkAgent, OK, "mesh-api: no contact"},
	} {
		t.Run(name, func(t *testing.T) {
			f := whole()
			test.change(f)
			for _, l := range Chain(*f) {
				if l.Name == test.link {
					if l.State != test.state || !strings.Contains(strings.Join(l.Evidence, "; "), test.say) {
						t.Errorf("%s is %s: %q", l.Name, l.State, l.Evidence)
					}
				}
			}
		})
	}
}

// A third cluster without the service breaks nothing, unless it was asked about.
func TestClustersThatDoNotTakePart(t *testing.T) {
	f := whole()
	f.Here.Members = append(f.Here.Members, member("cluster3", 3, false))
	f.Peers = append(f.Peers, Peer{Name: "cluster3", There: &Cluster{Context: "ctx3", Name: "cluster3"}})
	if at := FirstBroken(Chain(*f)); at >= 0 {
		t.Errorf("broken: %+v", Chain(*f)[at])
	}
	f.Only = true
	chain := Chain(*f)
	if at := FirstBroken(chain); at < 0 || chain[at].Name != LinkExport || chain[at].Peer != "cluster3" {
		t.Errorf("got %+v", chain)
	}
}
