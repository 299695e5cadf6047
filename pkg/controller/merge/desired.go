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

package merge

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/policy"
)

// Input is everything that is known of one namespace/name.
type Input struct {
	// Cluster and ID are this cluster's.
	Cluster string
	ID      int32
	// Global is the GlobalService, or nil where there is none.
	Global *v1alpha1.GlobalService
	// Service is this cluster's, or nil. Policy and Reserved are about it.
	Service  *corev1.Service
	Policy   policy.Service
	Reserved string
	// Slices are this cluster's EndpointSlices of the Service.
	Slices []*discoveryv1.EndpointSlice
	// Exported is this cluster's own export, or nil.
	Exported *v1alpha1.ExportedService
	// Imported and ImportedSlices are what the peers offer.
	Imported       []*v1alpha1.ImportedService
	ImportedSlices []*v1alpha1.ImportedEndpointSlice
	// Members are the clusters of the mesh by name, as they may be drained as a whole.
	Members map[string]*v1alpha1.MeshClusterSpec
}

// takesPart says whether this cluster's Service is global.
func (in Input) takesPart() bool {
	return in.Service != nil && in.Policy.Global.Value && in.Reserved == "" && in.Service.Spec.Type != corev1.ServiceTypeExternalName
}

// Wanted says whether there has to be a GlobalService: some cluster exports the
// Service, or it is global here.
func Wanted(in Input) bool {
	return in.takesPart() || in.Exported != nil || len(in.Imported) > 0
}

// Ours says whether a GlobalService was made by the controller and used by nobody:
// only such a one is ever deleted.
func Ours(global *v1alpha1.GlobalService) bool {
	return global.Labels[v1alpha1.LabelManagedBy] == v1alpha1.ManagedByController &&
		equality.Semantic.DeepEqual(global.Spec, v1alpha1.GlobalServiceSpec{}) && len(global.Finalizers) == 0
}

// Made is the GlobalService that the controller makes.
func Made(namespace, name string) *v1alpha1.GlobalService {
	return &v1alpha1.GlobalService{ObjectMeta: metav1.ObjectMeta{
		Namespace: namespace, Name: name,
		Labels: map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedByController},
	}}
}

// offer is one cluster's version of the Service, for comparing them.
type offer struct {
	status v1alpha1.ClusterStatus
	// reached counts the endpoints that clients here can be led to: those of a family in
	// which the Service here has an address.
	reached  v1alpha1.EndpointCount
	families []corev1.IPFamily
	affinity corev1.ServiceAffinity
	since    time.Time
}

// Status is the status of a GlobalService. Conditions that others set stay.
func Status(in Input) v1alpha1.GlobalServiceStatus {
	status := *in.Global.Status.DeepCopy()
	status.ObservedGeneration = in.Global.Generation
	status.Shared = v1alpha1.EffectiveShared{Value: in.takesPart() && in.Policy.Shared.Value, Source: in.Policy.Shared.Source}
	status.Affinity = v1alpha1.EffectiveAffinity{Value: in.Policy.Affinity.Value, Source: in.Policy.Affinity.Source}
	if in.Service == nil {
		// Without a Service only the spec and the defaults are left to say anything.
		effective := policy.Reader{}.Service(nil, nil, &in.Global.Spec)
		status.Shared = v1alpha1.EffectiveShared{Value: false, Source: effective.Shared.Source}
		status.Affinity = v1alpha1.EffectiveAffinity{Value: effective.Affinity.Value, Source: effective.Affinity.Source}
	}
	offers := offersOf(in)
	status.Clusters = nil
	for _, o := range offers {
		status.Clusters = append(status.Clusters, o.status)
	}

	condition := func(kind string, is bool, reason, message string) {
		value := metav1.ConditionFalse
		if is {
			value = metav1.ConditionTrue
		}
		meta.SetStatusCondition(&status.Conditions, metav1.Condition{
			Type: kind, Status: value, Reason: reason, Message: message, ObservedGeneration: in.Global.Generation,
		})
	}
	switch {
	case in.Service == nil:
		condition(v1alpha1.GlobalServiceLocalService, false, "NotFound", "There is no Service of this name here. Clients here need one, with the same name and ports; it needs no endpoints.")
	case in.Reserved != "":
		condition(v1alpha1.GlobalServiceLocalService, false, "Reserved", "The Service can never be global: "+in.Reserved+".")
	case in.Service.Spec.Type == corev1.ServiceTypeExternalName:
		condition(v1alpha1.GlobalServiceLocalService, false, "ExternalName", "A Service of type ExternalName has no endpoints of its own and cannot be global.")
	case !in.Policy.Global.Value:
		condition(v1alpha1.GlobalServiceLocalService, false, "NotGlobal", `The Service here does not take part. Annotate it with mesh.io/global: "true".`)
	default:
		condition(v1alpha1.GlobalServiceLocalService, true, "Global", "The Service here takes part.")
	}

	ready, total, drained, apart := int32(0), int32(0), 0, 0
	for _, o := range offers {
		if policy.Cluster(&in.Global.Spec, o.status.Name, in.Members[o.status.Name]).Weight == 0 {
			drained++
			continue
		}
		ready += o.reached.Ready
		total += o.reached.Total
		if o.reached.Total == 0 && o.status.Endpoints.Total > 0 {
			apart++
		}
	}
	switch {
	case !in.takesPart():
		condition(v1alpha1.GlobalServiceReady, false, "NotUsedHere", "The Service does not take part here, so no backend of it is used here.")
	case ready > 0:
		condition(v1alpha1.GlobalServiceReady, true, "BackendsReady", "At least one backend is ready.")
	case apart > 0 && total == 0:
		condition(v1alpha1.GlobalServiceReady, false, "NoCommonIPFamily", fmt.Sprintf("The Service here is of %s, and every endpoint of the other family.", families(in.Service.Spec.IPFamilies)))
	case drained > 0 && total == 0:
		condition(v1alpha1.GlobalServiceReady, false, "Drained", "Every cluster that has endpoints is drained.")
	case total > 0:
		condition(v1alpha1.GlobalServiceReady, false, "NoneReady", "There are endpoints, but none is ready.")
	default:
		condition(v1alpha1.GlobalServiceReady, false, "NoEndpoints", "No cluster has an endpoint.")
	}

	if message := conflict(offers); message != "" {
		condition(v1alpha1.GlobalServiceConflict, true, "ClustersDiffer", message)
	} else {
		condition(v1alpha1.GlobalServiceConflict, false, "NoConflict", "The clusters agree about the Service.")
	}

	var problems []string
	for _, problem := range in.Policy.Problems {
		problems = append(problems, problem.String())
	}
	if len(problems) > 0 {
		condition(v1alpha1.GlobalServiceAnnotationsValid, false, "InvalidValue", list(problems, "; ", maxMessage))
	} else {
		condition(v1alpha1.GlobalServiceAnnotationsValid, true, "Valid", "Every annotation has a value that means something.")
	}
	return status
}

// offersOf lists what each cluster has of the Service, this one first.
func offersOf(in Input) []offer {
	var offers []offer
	if in.takesPart() {
		local := offer{
			status: v1alpha1.ClusterStatus{
				Name: in.Cluster, ID: in.ID, Local: true, Shared: in.Policy.Shared.Value,
				Type: v1alpha1.ServiceTypeClusterIP, Ports: portsOf(in.Service),
			},
			families: in.Service.Spec.IPFamilies,
			affinity: in.Service.Spec.SessionAffinity,
			since:    in.Service.CreationTimestamp.Time,
		}
		if in.Service.Spec.ClusterIP == corev1.ClusterIPNone {
			local.status.Type = v1alpha1.ServiceTypeHeadless
		}
		if in.Exported != nil {
			local.since = in.Exported.Spec.ExportedAt.Time
		}
		local.count(in, countLocal(in.Slices))
		offers = append(offers, local)
	}
	var remote []offer
	for _, imported := range in.Imported {
		o := offer{
			status: v1alpha1.ClusterStatus{
				Name: imported.Spec.Cluster, ID: imported.Spec.ClusterID, Shared: true,
				Type: imported.Spec.Type, Ports: imported.Spec.Ports,
			},
			families: imported.Spec.IPFamilies,
			affinity: imported.Spec.SessionAffinity,
			since:    imported.Spec.ExportedAt.Time,
		}
		o.count(in, countImported(in.ImportedSlices, imported.Spec.Cluster))
		remote = append(remote, o)
	}
	slices.SortFunc(remote, func(a, b offer) int { return strings.Compare(a.status.Name, b.status.Name) })
	return append(offers, remote...)
}

const (
	// maxMessage is the most bytes of a list in a condition, maxOfCluster of what one
	// cluster has in it.
	maxMessage   = 768
	maxOfCluster = 256
)

// list joins what fits into so many bytes, and counts the rest. The first always does.
func list(items []string, separator string, most int) string {
	var text strings.Builder
	for i, item := range items {
		if i > 0 && text.Len()+len(separator)+len(item) > most {
			fmt.Fprintf(&text, "%s… and %d more", separator, len(items)-i)
			break
		}
		if i > 0 {
			text.WriteString(separator)
		}
		text.WriteString(item)
	}
	return text.String()
}

// conflict says what differs between the clusters, whose version holds here and why,
// or "". Clients use what their own cluster's Service says; only where there is none
// is the version that has been exported longest the one to compare with.
func conflict(offers []offer) string {
	if len(offers) < 2 {
		return ""
	}
	reference := offers[0]
	if !reference.status.Local {
		for _, o := range offers[1:] {
			if o.since.Before(reference.since) || o.since.Equal(reference.since) && o.status.Name < reference.status.Name {
				reference = o
			}
		}
	}
	var differences []string
	for _, o := range offers {
		if o.status.Name == reference.status.Name {
			continue
		}
		var what []string
		if o.status.Type != reference.status.Type {
			what = append(what, fmt.Sprintf("type is %s, not %s", o.status.Type, reference.status.Type))
		}
		if none(o.affinity) != none(reference.affinity) {
			what = append(what, fmt.Sprintf("sessionAffinity is %s, not %s", none(o.affinity), none(reference.affinity)))
		}
		what = append(what, familiesMissing(o.families, reference.families)...)
		what = append(what, portsDiffer(o.status.Ports, reference.status.Ports)...)
		if len(what) > 0 {
			differences = append(differences, fmt.Sprintf("in %s %s", o.status.Name, list(what, ", ", maxOfCluster)))
		}
	}
	if len(differences) == 0 {
		return ""
	}
	found := list(differences, "; ", maxMessage) + "."
	if reference.status.Local {
		return "Clients here use the ports, type and session affinity of this cluster's own Service, " +
			"and another cluster's backends through the port of the same name and protocol. What differs: " + found
	}
	return fmt.Sprintf("No Service here takes part, so no version holds here. Compared with %s, where it has been exported longest, this differs: %s",
		reference.status.Name, found)
}

func none(affinity corev1.ServiceAffinity) corev1.ServiceAffinity {
	if affinity == "" {
		return corev1.ServiceAffinityNone
	}
	return affinity
}

// familiesMissing compares IP families, where both are known. One that is more is no
// loss: nobody comes by it.
func familiesMissing(these, others []corev1.IPFamily) []string {
	var what []string
	for _, family := range others {
		if len(these) > 0 && !slices.Contains(these, family) {
			what = append(what, fmt.Sprintf("IP family %s is missing", family))
		}
	}
	return what
}

func families(list []corev1.IPFamily) string {
	names := make([]string, len(list))
	for i, family := range list {
		names[i] = string(family)
	}
	return strings.Join(names, " and ")
}

// portsDiffer compares ports by name.
func portsDiffer(these, others []v1alpha1.ServicePort) []string {
	find := func(ports []v1alpha1.ServicePort, name string) *v1alpha1.ServicePort {
		for i := range ports {
			if ports[i].Name == name {
				return &ports[i]
			}
		}
		return nil
	}
	var what []string
	for _, want := range others {
		have := find(these, want.Name)
		switch {
		case have == nil:
			what = append(what, fmt.Sprintf("port %s is missing", describe(want)))
		case have.Port != want.Port || have.Protocol != want.Protocol:
			what = append(what, fmt.Sprintf("port %s is %d/%s", describe(want), have.Port, have.Protocol))
		}
	}
	for _, have := range these {
		if find(others, have.Name) == nil {
			what = append(what, fmt.Sprintf("port %s is more", describe(have)))
		}
	}
	return what
}

func describe(port v1alpha1.ServicePort) string {
	text := fmt.Sprintf("%d/%s", port.Port, port.Protocol)
	if port.Name != "" {
		text = fmt.Sprintf("%q (%s)", port.Name, text)
	}
	return text
}

func portsOf(service *corev1.Service) []v1alpha1.ServicePort {
	var ports []v1alpha1.ServicePort
	for _, port := range service.Spec.Ports[:min(len(service.Spec.Ports), 100)] {
		protocol := port.Protocol
		if protocol == "" {
			protocol = corev1.ProtocolTCP
		}
		ports = append(ports, v1alpha1.ServicePort{Name: port.Name, Protocol: protocol, Port: port.Port, AppProtocol: ptr.Deref(port.AppProtocol, "")})
	}
	return ports
}

// counter counts addresses, each once: ready where it is ready anywhere.
type counter map[string]bool

func (c counter) add(address string, ready bool) { c[address] = c[address] || ready }

// count counts the endpoints of some families, by the family that has more of them: a
// pod of a dual-stack Service has an address of each.
func (c counter) count(families ...corev1.IPFamily) v1alpha1.EndpointCount {
	counts := map[corev1.IPFamily]v1alpha1.EndpointCount{}
	for address, ready := range c {
		family := corev1.IPv4Protocol
		if strings.Contains(address, ":") {
			family = corev1.IPv6Protocol
		}
		count := counts[family]
		count.Total++
		if ready {
			count.Ready++
		}
		counts[family] = count
	}
	var most v1alpha1.EndpointCount
	for _, family := range families {
		if count := counts[family]; cmp.Or(cmp.Compare(count.Total, most.Total), cmp.Compare(count.Ready, most.Ready)) > 0 {
			most = count
		}
	}
	return most
}

// count notes how many endpoints a cluster has, and how many of them clients here reach.
func (o *offer) count(in Input, c counter) {
	o.status.Endpoints = c.count(corev1.IPv4Protocol, corev1.IPv6Protocol)
	o.reached = o.status.Endpoints
	if in.Service != nil && len(in.Service.Spec.IPFamilies) > 0 {
		o.reached = c.count(in.Service.Spec.IPFamilies...)
	}
}

func countLocal(slices []*discoveryv1.EndpointSlice) counter {
	c := counter{}
	for _, slice := range slices {
		if slice.AddressType == discoveryv1.AddressTypeFQDN {
			continue
		}
		for _, endpoint := range slice.Endpoints {
			if len(endpoint.Addresses) > 0 {
				c.add(endpoint.Addresses[0], ptr.Deref(endpoint.Conditions.Ready, true))
			}
		}
	}
	return c
}

func countImported(slices []*v1alpha1.ImportedEndpointSlice, cluster string) counter {
	c := counter{}
	for _, slice := range slices {
		if slice.Spec.Cluster != cluster {
			continue
		}
		for _, endpoint := range slice.Spec.Endpoints {
			c.add(endpoint.Address, endpoint.Ready)
		}
	}
	return c
}
