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

package importer

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/policy"
)

// Why something of a peer is refused.
const (
	RefusedName      = "InvalidName"
	RefusedNamespace = "NamespaceNotAllowed"
	RefusedReserved  = "Reserved"
	RefusedInvalid   = "InvalidObject"
	RefusedAddress   = "AddressNotAllowed"
	RefusedLimit     = "LimitExceeded"
	RefusedByAPI     = "RejectedByAPI"
)

// Refusal is something of a peer that is not imported.
type Refusal struct {
	Reason  string
	Message string
	// Count is how many objects or endpoints it stands for.
	Count int
}

// Rules is what a peer's objects are checked against. They come from this cluster
// only, never from the peer.
type Rules struct {
	// Cluster and ID are the peer's, by its MeshCluster here.
	Cluster string
	ID      int32
	// Self is this cluster's name.
	Self string
	// Namespaces are those that are imported; nil means all.
	Namespaces    map[string]bool
	MeshNamespace string
	// Inside are the prefixes that the peer's endpoints must be in; Bounded says that
	// there are any.
	Inside  []netip.Prefix
	Bounded bool
	// Outside are this cluster's own prefixes, each with what it is.
	Outside []Own
	// Taken says what of this cluster has the address, or "".
	Taken func(netip.Addr) string
}

// Own is a prefix of this cluster's own.
type Own struct {
	netip.Prefix
	What string
}

// NewRules makes the rules for a peer from its MeshCluster, this cluster's own, and
// the Nodes here. local may be nil.
func NewRules(cluster, local *v1alpha1.MeshCluster, nodes []*corev1.Node, meshNamespace string, clusterIP func(string) bool) *Rules {
	rules := &Rules{
		Cluster: cluster.Name, ID: cluster.Spec.ID, MeshNamespace: meshNamespace,
		Bounded: len(cluster.Spec.PodCIDRs) > 0,
	}
	if names := cluster.Spec.Import.Namespaces; len(names) > 0 {
		rules.Namespaces = map[string]bool{}
		for _, name := range names {
			rules.Namespaces[name] = true
		}
	}
	for _, cidr := range cluster.Spec.PodCIDRs {
		// One that cannot be read admits nothing, rather than everything.
		if prefix, err := netip.ParsePrefix(cidr); err == nil {
			rules.Inside = append(rules.Inside, prefix)
		}
	}
	own := func(cidr, what string) {
		if prefix, err := netip.ParsePrefix(cidr); err == nil {
			rules.Outside = append(rules.Outside, Own{prefix, what})
		}
	}
	if local != nil {
		rules.Self = local.Name
		for _, cidr := range local.Spec.PodCIDRs {
			own(cidr, "this cluster's pod CIDR "+cidr)
		}
	}
	addresses := map[netip.Addr]string{}
	for _, node := range nodes {
		for _, cidr := range node.Spec.PodCIDRs {
			own(cidr, fmt.Sprintf("the pod CIDR %s of node %q here", cidr, node.Name))
		}
		for _, address := range node.Status.Addresses {
			if addr, err := netip.ParseAddr(address.Address); err == nil {
				addresses[addr.Unmap()] = fmt.Sprintf("node %q here", node.Name)
			}
		}
	}
	rules.Taken = func(addr netip.Addr) string {
		if what := addresses[addr]; what != "" {
			return what
		}
		if clusterIP != nil && clusterIP(addr.String()) {
			return "a Service here"
		}
		return ""
	}
	return rules
}

// Object checks what every object of a peer must fulfil: where it is, what it is
// called, and of which Service it is.
func (r *Rules) Object(namespace, name, service string) *Refusal {
	refuse := func(reason, format string, args ...any) *Refusal {
		return &Refusal{Reason: reason, Message: fmt.Sprintf(format, args...), Count: 1}
	}
	switch {
	case len(validation.IsDNS1123Label(namespace)) > 0, len(validation.IsDNS1123Subdomain(name)) > 0:
		return refuse(RefusedName, "the name %.80q in namespace %.80q is none that an object can have", name, namespace)
	case len(validation.IsDNS1123Label(service)) > 0:
		return refuse(RefusedInvalid, "%.80q is not the name of a Service", service)
	case r.Namespaces != nil && !r.Namespaces[namespace]:
		return refuse(RefusedNamespace, "namespace %q is not among those imported from this cluster", namespace)
	}
	if why := policy.Reserved(namespace, service, r.MeshNamespace); why != "" {
		return refuse(RefusedReserved, "%s", why)
	}
	return nil
}

// OfferedHere says whether a peer's Service is offered to this cluster.
func (r *Rules) OfferedHere(consumers []string) bool {
	return len(consumers) == 0 || slices.Contains(consumers, r.Self)
}

// maxSize is the most bytes of one object, whatever its fields: more than any that
// keeps to the counts and lengths of our API has.
const maxSize = 64 << 10

// checkService checks what a Service must be like to exist here at all, as our API does.
func checkService(from *v1alpha1.ExportedService) *Refusal {
	refuse := func(format string, args ...any) *Refusal {
		return &Refusal{Reason: RefusedInvalid, Message: fmt.Sprintf(format, args...), Count: 1}
	}
	record := from.Spec
	switch size := from.Size(); {
	case size > maxSize:
		return refuse("its %d bytes exceed the limit of %d for one object", size, maxSize)
	case record.Type != v1alpha1.ServiceTypeClusterIP && record.Type != v1alpha1.ServiceTypeHeadless:
		return refuse("type %.40q is not known", record.Type)
	case record.SessionAffinity != corev1.ServiceAffinityNone && record.SessionAffinity != corev1.ServiceAffinityClientIP:
		return refuse("session affinity %.40q is not known", record.SessionAffinity)
	case len(record.Ports) > 100:
		return refuse("%d ports are more than 100", len(record.Ports))
	case len(record.IPFamilies) > 2:
		return refuse("%d IP families are more than 2", len(record.IPFamilies))
	case len(record.Consumers) > 256:
		return refuse("%d consumers are more than 256", len(record.Consumers))
	}
	for n, family := range record.IPFamilies {
		if family != corev1.IPv4Protocol && family != corev1.IPv6Protocol {
			return refuse("IP family %.40q is not known", family)
		}
		if slices.Contains(record.IPFamilies[:n], family) {
			return refuse("IP family %q is there twice", family)
		}
	}
	ports := make([]v1alpha1.EndpointPort, 0, len(record.Ports))
	for _, port := range record.Ports {
		ports = append(ports, v1alpha1.EndpointPort(port))
	}
	if problem := checkPorts(ports); problem != "" {
		return refuse("%s", problem)
	}
	return nil
}

// Service is the import of a peer's Service, or why there is none.
func (r *Rules) Service(from *v1alpha1.ExportedService) (*v1alpha1.ImportedService, *Refusal) {
	refusal := r.Object(from.Namespace, from.Name, from.Name)
	if refusal == nil {
		refusal = checkService(from)
	}
	if refusal != nil {
		return nil, refusal
	}
	record := *from.Spec.DeepCopy()
	record.Cluster, record.ClusterID, record.Consumers = r.Cluster, r.ID, nil
	return &v1alpha1.ImportedService{
		ObjectMeta: r.meta(from.Namespace, from.Name, from.Name),
		Spec:       record,
	}, nil
}

// checkSlice checks what a slice must be like to exist here at all, as our API does.
func checkSlice(from *v1alpha1.ExportedEndpointSlice) *Refusal {
	refuse := func(format string, args ...any) *Refusal {
		return &Refusal{Reason: RefusedInvalid, Message: fmt.Sprintf(format, args...), Count: 1}
	}
	record := from.Spec
	switch size := from.Size(); {
	case size > maxSize:
		return refuse("its %d bytes exceed the limit of %d for one object", size, maxSize)
	case record.AddressType != discoveryv1.AddressTypeIPv4 && record.AddressType != discoveryv1.AddressTypeIPv6:
		return refuse("address type %.40q is not known", record.AddressType)
	case len(record.Endpoints) > 100:
		return refuse("%d endpoints are more than 100", len(record.Endpoints))
	case len(record.Ports) > 100:
		return refuse("%d ports are more than 100", len(record.Ports))
	case len(record.Zones) > 100:
		return refuse("%d zones are more than 100", len(record.Zones))
	}
	if problem := checkPorts(record.Ports); problem != "" {
		return refuse("%s", problem)
	}
	return nil
}

// Slice is the import of a peer's slice: nil where the whole of it is refused, else
// without the endpoints that are. The refused endpoints are told together.
func (r *Rules) Slice(from *v1alpha1.ExportedEndpointSlice) (*v1alpha1.ImportedEndpointSlice, []Refusal) {
	refusal := r.Object(from.Namespace, from.Name, from.Spec.Service)
	if refusal == nil {
		refusal = checkSlice(from)
	}
	if refusal != nil {
		return nil, []Refusal{*refusal}
	}
	record := from.Spec

	result := &v1alpha1.ImportedEndpointSlice{
		ObjectMeta: r.meta(from.Namespace, from.Name, record.Service),
		Spec:       *record.DeepCopy(),
	}
	result.Spec.Cluster, result.Spec.ClusterID = r.Cluster, r.ID
	result.Spec.Endpoints, result.Spec.Zones = nil, nil
	// Zones are decoration: one that our API does not take is none.
	zones := make([]int32, len(record.Zones)) // where each is now; -1: nowhere
	for n, zone := range record.Zones {
		zones[n] = int32(slices.Index(result.Spec.Zones, zone))
		if zones[n] < 0 && zone != "" && len(validation.IsValidLabelValue(zone)) == 0 {
			zones[n] = int32(len(result.Spec.Zones))
			result.Spec.Zones = append(result.Spec.Zones, zone)
		}
	}
	refused := Refusal{Reason: RefusedAddress}
	seen := map[netip.Addr]bool{}
	for _, endpoint := range from.Spec.Endpoints {
		addr, problem := r.address(endpoint.Address, record.AddressType)
		if problem != "" {
			if refused.Count++; refused.Count == 1 {
				refused.Message = fmt.Sprintf("endpoint %.45q %s", endpoint.Address, problem)
			}
			continue
		}
		if seen[addr] {
			continue
		}
		seen[addr] = true
		endpoint.Address = addr.String()
		// What is only decoration is dropped where it makes no sense.
		if zone := endpoint.Zone; zone != nil {
			endpoint.Zone = nil
			if *zone >= 0 && int(*zone) < len(zones) && zones[*zone] >= 0 {
				endpoint.Zone = &zones[*zone]
			}
		}
		if endpoint.Hostname != "" && len(validation.IsDNS1123Label(endpoint.Hostname)) > 0 {
			endpoint.Hostname = ""
		}
		result.Spec.Endpoints = append(result.Spec.Endpoints, endpoint)
	}
	switch refused.Count {
	case 0:
		return result, nil
	case 1:
	default:
		refused.Message += fmt.Sprintf(", and so on: %d endpoints", refused.Count)
	}
	return result, []Refusal{refused}
}

// address reads an endpoint's address, or says why it may not be one.
func (r *Rules) address(text string, family discoveryv1.AddressType) (netip.Addr, string) {
	addr, err := netip.ParseAddr(text)
	switch {
	case err != nil:
		return addr, "is not an IP address"
	case addr.Zone() != "":
		return addr, "has a zone"
	case addr.Is4In6():
		return addr, "is an IPv4 address written as IPv6"
	case addr.Is4() != (family == discoveryv1.AddressTypeIPv4):
		return addr, "is not of the slice's address type " + string(family)
	case addr.IsUnspecified():
		return addr, "is the unspecified address"
	case addr.IsLoopback():
		return addr, "is a loopback address"
	case addr.IsLinkLocalUnicast():
		return addr, "is a link-local address"
	case addr.IsMulticast():
		return addr, "is a multicast address"
	case addr.Is4() && (addr.As4()[0] == 0 || addr.As4()[0] >= 240):
		return addr, "is in a reserved range"
	}
	if r.Bounded && !slices.ContainsFunc(r.Inside, func(p netip.Prefix) bool { return p.Contains(addr) }) {
		return addr, "is outside the pod CIDRs of its cluster"
	}
	for _, own := range r.Outside {
		if own.Contains(addr) {
			return addr, "is inside " + own.What
		}
	}
	if r.Taken != nil {
		if what := r.Taken(addr); what != "" {
			return addr, "is the address of " + what
		}
	}
	return addr, ""
}

func (r *Rules) meta(namespace, name, service string) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace: namespace,
		Name:      Name(r.Cluster, name),
		Labels: map[string]string{
			v1alpha1.LabelCluster:     r.Cluster,
			v1alpha1.LabelServiceName: service,
			v1alpha1.LabelManagedBy:   v1alpha1.ManagedByController,
		},
	}
}

// Name is the name of what is imported from a cluster under a name there.
func Name(cluster, name string) string {
	full := cluster + "." + name
	if len(full) <= validation.DNS1123SubdomainMaxLength {
		return full
	}
	sum := sha256.Sum256([]byte(full))
	suffix := "-" + hex.EncodeToString(sum[:8])
	return strings.TrimRight(full[:validation.DNS1123SubdomainMaxLength-len(suffix)], ".-") + suffix
}

func checkPorts(ports []v1alpha1.EndpointPort) string {
	names := map[string]bool{}
	for _, port := range ports {
		switch {
		case port.Port < 1 || port.Port > 65535:
			return fmt.Sprintf("port %d is not between 1 and 65535", port.Port)
		case port.Protocol != corev1.ProtocolTCP && port.Protocol != corev1.ProtocolUDP && port.Protocol != corev1.ProtocolSCTP:
			return fmt.Sprintf("protocol %.40q is not known", port.Protocol)
		case port.Name == "" && len(ports) > 1:
			return "one of several ports has no name"
		case port.Name != "" && len(validation.IsDNS1123Label(port.Name)) > 0:
			return fmt.Sprintf("%.80q is not the name of a port", port.Name)
		case names[port.Name]:
			return fmt.Sprintf("two ports are called %q", port.Name)
		case len(port.AppProtocol) > 253:
			return fmt.Sprintf("an appProtocol has %d characters", len(port.AppProtocol))
		case !utf8.ValidString(port.AppProtocol):
			return fmt.Sprintf("appProtocol %.80q is not text", port.AppProtocol)
		}
		names[port.Name] = true
	}
	return ""
}

func sameService(actual, desired *v1alpha1.ImportedService) bool {
	return equal(actual.Spec, desired.Spec) && equal(actual.Labels, desired.Labels)
}

// sameSlice does not look at changedAt: it changes together with something else.
func sameSlice(actual, desired *v1alpha1.ImportedEndpointSlice) bool {
	a, b := actual.Spec, desired.Spec
	a.ChangedAt, b.ChangedAt = metav1.MicroTime{}, metav1.MicroTime{}
	return equal(a, b) && equal(actual.Labels, desired.Labels)
}

func equal(a, b any) bool { return equality.Semantic.DeepEqual(a, b) }
