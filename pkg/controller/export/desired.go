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

package export

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/utils/ptr"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/controller/view"
)

const (
	// maxEndpoints and maxPorts are the most that an exported slice may hold.
	maxEndpoints = 100
	maxPorts     = 100

	ownSlices = "endpointslice-controller.k8s.io"
	// labelSourceCluster is what the multi-cluster services API puts on imported slices.
	labelSourceCluster = "multicluster.kubernetes.io/source-cluster"
)

// foreignSlices are the controllers that bring other clusters' endpoints here. What
// they brought is not this cluster's to offer.
var foreignSlices = []string{"endpointslice-mesh-controller.cilium.io", "lighthouse-agent.submariner.io"}

// broadcast is no address that a pod can have.
var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// Identity is this cluster in the mesh.
type Identity struct {
	Name string
	ID   int32
}

// Offered says whether a Service is exported, and where that is not what its
// annotations ask for, why not: a reason for an Event and a sentence.
func Offered(service view.Service, namespaces []string) (offered bool, reason, message string) {
	switch {
	case !service.Policy.Global.Value:
		return false, "", ""
	case service.Reserved != "":
		return false, "Reserved", "The Service can never be global: " + service.Reserved + "."
	case service.Spec.Type == corev1.ServiceTypeExternalName:
		return false, "ExternalName", "A Service of type ExternalName has no endpoints of its own and cannot be global."
	case !service.Policy.Shared.Value, service.DeletionTimestamp != nil:
		return false, "", ""
	case len(namespaces) > 0 && !slices.Contains(namespaces, service.Namespace):
		return false, "NamespaceNotExported", fmt.Sprintf("Namespace %q is not among those that this cluster exports (spec.export.namespaces of its MeshCluster).", service.Namespace)
	}
	return true, "", ""
}

// Service is the export of a Service. exportedAt is when its export began.
func Service(service *corev1.Service, self Identity, exportedAt metav1.Time) *v1alpha1.ExportedService {
	record := v1alpha1.ServiceRecord{
		Cluster:         self.Name,
		ClusterID:       self.ID,
		Type:            v1alpha1.ServiceTypeClusterIP,
		IPFamilies:      slices.Clone(service.Spec.IPFamilies),
		SessionAffinity: service.Spec.SessionAffinity,
		ExportedAt:      exportedAt,
	}
	if record.SessionAffinity == "" {
		record.SessionAffinity = corev1.ServiceAffinityNone
	}
	if service.Spec.ClusterIP == corev1.ClusterIPNone {
		record.Type = v1alpha1.ServiceTypeHeadless
	}
	record.Ports = Ports(service)
	return &v1alpha1.ExportedService{
		ObjectMeta: metav1.ObjectMeta{Namespace: service.Namespace, Name: service.Name, Labels: labels(self, service.Name)},
		Spec:       record,
	}
}

// Ports are the ports of a Service as the mesh knows them.
func Ports(service *corev1.Service) []v1alpha1.ServicePort {
	var ports []v1alpha1.ServicePort
	for _, port := range service.Spec.Ports[:min(len(service.Spec.Ports), maxPorts)] {
		ports = append(ports, v1alpha1.ServicePort{
			Name:        port.Name,
			Protocol:    protocol(port.Protocol),
			Port:        port.Port,
			AppProtocol: ptr.Deref(port.AppProtocol, ""),
		})
	}
	return ports
}

// OwnSlice says whether a slice holds endpoints of this cluster that its Service
// lets us export. Nothing that was brought here from another cluster is.
func OwnSlice(slice *discoveryv1.EndpointSlice, exportManual bool) bool {
	if slice.AddressType != discoveryv1.AddressTypeIPv4 && slice.AddressType != discoveryv1.AddressTypeIPv6 {
		return false
	}
	for _, label := range []string{labelSourceCluster, v1alpha1.LabelCluster} {
		if _, imported := slice.Labels[label]; imported {
			return false
		}
	}
	manager := slice.Labels[discoveryv1.LabelManagedBy]
	return manager == ownSlices || exportManual && !slices.Contains(foreignSlices, manager)
}

// Slices is the export of one EndpointSlice: one part of up to 100 endpoints, more
// for a larger slice. previous are the parts that are exported now; an endpoint
// stays in the part that it is in, so that a change touches few of them.
func Slices(slice *discoveryv1.EndpointSlice, headless bool, self Identity, previous []*v1alpha1.ExportedEndpointSlice, changedAt metav1.MicroTime) []*v1alpha1.ExportedEndpointSlice {
	service := slice.Labels[discoveryv1.LabelServiceName]
	var ports []v1alpha1.EndpointPort
	for _, port := range slice.Ports[:min(len(slice.Ports), maxPorts)] {
		if port.Port == nil || *port.Port < 1 {
			continue // "all ports": nothing that a Service port could be sent to
		}
		ports = append(ports, v1alpha1.EndpointPort{
			Name:        ptr.Deref(port.Name, ""),
			Protocol:    protocol(ptr.Deref(port.Protocol, "")),
			Port:        *port.Port,
			AppProtocol: ptr.Deref(port.AppProtocol, ""),
		})
	}

	var result []*v1alpha1.ExportedEndpointSlice
	for i, part := range split(usable(slice), previous) {
		exported := &v1alpha1.ExportedEndpointSlice{
			ObjectMeta: metav1.ObjectMeta{Namespace: slice.Namespace, Name: PartName(slice.Name, i), Labels: labels(self, service)},
			Spec: v1alpha1.SliceRecord{
				Cluster: self.Name, ClusterID: self.ID, Service: service,
				AddressType: slice.AddressType, Ports: ports, ChangedAt: changedAt,
			},
		}
		if i > 0 {
			exported.Annotations = map[string]string{view.AnnotationSource: slice.Name}
		}
		exported.Spec.Endpoints, exported.Spec.Zones = endpoints(part, headless)
		result = append(result, exported)
	}
	return result
}

// PartName is the name of a part of an exported slice; the first has the slice's own.
func PartName(slice string, part int) string {
	if part == 0 {
		return slice
	}
	sum := sha256.Sum256([]byte(slice))
	suffix := fmt.Sprintf("-part%d-%s", part, hex.EncodeToString(sum[:4]))
	return strings.TrimRight(slice[:min(len(slice), 253-len(suffix))], ".-") + suffix
}

// usable returns the endpoints that can be offered, each address once and in its
// shortest form. By the EndpointSlice API only the first address of an endpoint counts.
func usable(slice *discoveryv1.EndpointSlice) []discoveryv1.Endpoint {
	var result []discoveryv1.Endpoint
	seen := map[netip.Addr]bool{}
	for _, endpoint := range slice.Endpoints {
		if len(endpoint.Addresses) == 0 {
			continue
		}
		addr, err := netip.ParseAddr(endpoint.Addresses[0])
		if err != nil || addr.Zone() != "" || addr.Is4() != (slice.AddressType == discoveryv1.AddressTypeIPv4) || addr.Is4In6() ||
			addr.IsUnspecified() || addr == broadcast || addr.IsLoopback() || addr.IsLinkLocalUnicast() || addr.IsMulticast() || seen[addr] {
			continue // made by hand; it means nothing to another cluster
		}
		seen[addr] = true
		endpoint.Addresses = []string{addr.String()}
		result = append(result, endpoint)
	}
	return result
}

// split deals endpoints out to parts of at most maxEndpoints. There is always a first.
func split(endpoints []discoveryv1.Endpoint, previous []*v1alpha1.ExportedEndpointSlice) [][]discoveryv1.Endpoint {
	parts := make([][]discoveryv1.Endpoint, max(1, (len(endpoints)+maxEndpoints-1)/maxEndpoints))
	where := map[string]int{}
	for i, part := range previous[:min(len(previous), len(parts))] {
		for _, endpoint := range part.Spec.Endpoints {
			where[endpoint.Address] = i
		}
	}
	var rest []discoveryv1.Endpoint
	for _, endpoint := range endpoints {
		if i, known := where[endpoint.Addresses[0]]; known && len(parts[i]) < maxEndpoints {
			parts[i] = append(parts[i], endpoint)
		} else {
			rest = append(rest, endpoint)
		}
	}
	i := 0
	for _, endpoint := range rest {
		for len(parts[i]) >= maxEndpoints {
			i++
		}
		parts[i] = append(parts[i], endpoint)
	}
	return parts
}

// endpoints converts endpoints and orders them by address, so that the order in
// which they are listed is not a change.
func endpoints(from []discoveryv1.Endpoint, headless bool) (to []v1alpha1.Endpoint, zones []string) {
	from = slices.Clone(from)
	slices.SortStableFunc(from, func(a, b discoveryv1.Endpoint) int {
		left, _ := netip.ParseAddr(a.Addresses[0])
		right, _ := netip.ParseAddr(b.Addresses[0])
		return left.Compare(right)
	})
	indexes := map[string]int32{}
	for _, endpoint := range from {
		// An absent condition means what the EndpointSlice API says it means: ready
		// unless told otherwise, and serving exactly when ready.
		ready := ptr.Deref(endpoint.Conditions.Ready, true)
		converted := v1alpha1.Endpoint{
			Address:     endpoint.Addresses[0],
			Ready:       ready,
			Serving:     ptr.Deref(endpoint.Conditions.Serving, ready),
			Terminating: ptr.Deref(endpoint.Conditions.Terminating, false),
		}
		if headless {
			converted.Hostname = ptr.Deref(endpoint.Hostname, "")
		}
		// One that is no legal label value would be refused. It is only a hint.
		if zone := ptr.Deref(endpoint.Zone, ""); zone != "" && len(validation.IsValidLabelValue(zone)) == 0 {
			index, known := indexes[zone]
			if !known {
				index = int32(len(zones))
				indexes[zone] = index
				zones = append(zones, zone)
			}
			converted.Zone = &index
		}
		to = append(to, converted)
	}
	return to, zones
}

func labels(self Identity, service string) map[string]string {
	return map[string]string{
		v1alpha1.LabelCluster:     self.Name,
		v1alpha1.LabelServiceName: service,
		v1alpha1.LabelManagedBy:   v1alpha1.ManagedByController,
	}
}

func protocol(p corev1.Protocol) corev1.Protocol {
	if p == "" {
		return corev1.ProtocolTCP
	}
	return p
}

// sameService and sameSlice compare what is exported, without the times, which only
// change together with something else.
func sameService(actual, desired *v1alpha1.ExportedService) bool {
	a, b := actual.Spec, desired.Spec
	a.ExportedAt, b.ExportedAt = metav1.Time{}, metav1.Time{}
	return equal(a, b) && equal(actual.Labels, desired.Labels)
}

func sameSlice(actual, desired *v1alpha1.ExportedEndpointSlice) bool {
	a, b := actual.Spec, desired.Spec
	a.ChangedAt, b.ChangedAt = metav1.MicroTime{}, metav1.MicroTime{}
	return equal(a, b) && equal(actual.Labels, desired.Labels) && equal(actual.Annotations, desired.Annotations)
}
