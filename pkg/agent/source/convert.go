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

package source

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"mesh.io/clustermesh/pkg/agent/desired"
	"mesh.io/clustermesh/pkg/agent/optout"
	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/policy"
)

// labelProxyName gives a Service to another proxy than kube-proxy.
const labelProxyName = "service.kubernetes.io/service-proxy-name"

// annotationPrefixes are those of the annotations that policy reads. Others can be
// large, and change for reasons of their own.
var annotationPrefixes = []string{"mesh.io/", "service.cilium.io/", "io.cilium/"}

// convertService keeps of a Service what the table depends on.
func convertService(s *corev1.Service) *desired.LocalService {
	service := &desired.LocalService{}
	for name, value := range s.Annotations {
		if slices.ContainsFunc(annotationPrefixes, func(p string) bool { return strings.HasPrefix(name, p) }) {
			if service.Annotations == nil {
				service.Annotations = map[string]string{}
			}
			service.Annotations[name] = value
		}
	}
	for _, ip := range s.Spec.ClusterIPs {
		if addr, err := netip.ParseAddr(ip); err == nil {
			service.ClusterIPs = append(service.ClusterIPs, addr.Unmap())
		}
	}
	for _, ip := range s.Spec.ExternalIPs {
		if addr, err := netip.ParseAddr(ip); err == nil {
			service.ExternalIPs = append(service.ExternalIPs, addr.Unmap())
		}
	}
	service.LoadBalancerIPs = convertLoadBalancer(s, service.ClusterIPs)
	service.Created = s.CreationTimestamp.UTC()
	for _, p := range s.Spec.Ports {
		service.Ports = append(service.Ports, desired.LocalPort{Name: p.Name, Protocol: p.Protocol, Port: uint16(p.Port)})
	}
	service.InternalLocal = s.Spec.InternalTrafficPolicy != nil && *s.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal
	_, otherProxy := s.Labels[labelProxyName]
	switch {
	case s.Spec.Type == corev1.ServiceTypeExternalName:
		service.Reason = desired.ReasonExternalName
	case len(service.ClusterIPs) == 0:
		service.Reason = desired.ReasonHeadless
	case otherProxy:
		service.Reason = desired.ReasonOtherProxy
	}
	if s.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		service.AffinitySeconds = uint32(corev1.DefaultClientIPServiceAffinitySeconds)
		if c := s.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil && *c.ClientIP.TimeoutSeconds > 0 {
			service.AffinitySeconds = uint32(*c.ClientIP.TimeoutSeconds)
		}
	}
	return service
}

// convertLoadBalancer keeps the addresses of a Service's load balancer, with the reason why
// clients of the cluster may not be led past it, if there is one. They may where
// kube-proxy does the same: where the load balancer hands on what any client sends it, to
// any node.
func convertLoadBalancer(s *corev1.Service, clusterIPs []netip.Addr) (ips []desired.LoadBalancerIP) {
	var general string
	switch {
	case s.Spec.Type != corev1.ServiceTypeLoadBalancer:
		general = desired.ReasonLBType
	case len(s.Spec.LoadBalancerSourceRanges) > 0 || strings.TrimSpace(s.Annotations[corev1.AnnotationLoadBalancerSourceRangesKey]) != "":
		general = desired.ReasonLBRanges
	case s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal:
		general = desired.ReasonLBLocal
	}
	for _, ingress := range s.Status.LoadBalancer.Ingress {
		addr, err := netip.ParseAddr(ingress.IP)
		if err != nil {
			continue // it has a name
		}
		ip := desired.LoadBalancerIP{Addr: addr.Unmap(), Reason: general}
		switch {
		case ip.Reason != "":
		case ingress.IPMode != nil && *ingress.IPMode != corev1.LoadBalancerIPModeVIP:
			ip.Reason = desired.ReasonLBProxy
		case !usable(ip.Addr):
			ip.Reason = desired.ReasonLBAddress
		case !slices.ContainsFunc(clusterIPs, func(c netip.Addr) bool { return c.Is4() == ip.Addr.Is4() }):
			ip.Reason = desired.ReasonLBFamily
		}
		ips = append(ips, ip)
	}
	return ips
}

// convertSlice keeps of this cluster's EndpointSlice what kube-proxy would use; it
// returns nil for one that kube-proxy ignores too.
func convertSlice(s *discoveryv1.EndpointSlice) *desired.Slice {
	service := s.Labels[discoveryv1.LabelServiceName]
	_, headless := s.Labels[corev1.IsHeadlessService]
	_, otherProxy := s.Labels[labelProxyName]
	if service == "" || headless || otherProxy || s.AddressType == discoveryv1.AddressTypeFQDN {
		return nil
	}
	slice := &desired.Slice{Service: desired.Name{Namespace: s.Namespace, Name: service}, Object: s.Name}
	for _, p := range s.Ports {
		var name string
		if p.Name != nil {
			name = *p.Name
		}
		protocol := corev1.ProtocolTCP
		if p.Protocol != nil {
			protocol = *p.Protocol
		}
		if p.Port != nil {
			slice.Ports = appendPort(slice.Ports, name, protocol, *p.Port)
		}
	}
	type located struct {
		desired.Endpoint
		near desired.Near
	}
	all, known := make([]located, 0, len(s.Endpoints)), false
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		if len(e.Addresses) == 0 {
			continue
		}
		// An unknown condition means ready, as kube-proxy reads it.
		ready := e.Conditions.Ready == nil || *e.Conditions.Ready
		serving := e.Conditions.Serving == nil && ready || e.Conditions.Serving != nil && *e.Conditions.Serving
		terminating := e.Conditions.Terminating != nil && *e.Conditions.Terminating
		addr, err := netip.ParseAddr(e.Addresses[0])
		if err != nil || addr.IsUnspecified() || addr.Zone() != "" {
			continue
		}
		near := convertNear(e)
		known = known || near != desired.Near{}
		all = append(all, located{newEndpoint(addr, ready, serving, terminating), near})
	}
	slices.SortStableFunc(all, func(a, b located) int { return compareEndpoints(a.Endpoint, b.Endpoint) })
	all = slices.CompactFunc(all, func(a, b located) bool { return a.Addr == b.Addr })
	slice.Endpoints = make([]desired.Endpoint, len(all))
	for i := range all {
		slice.Endpoints[i] = all[i].Endpoint
	}
	if known {
		slice.Near = make([]desired.Near, len(all))
		for i := range all {
			slice.Near[i] = all[i].near
		}
	}
	return slice
}

// convertNear keeps of an endpoint where it is and whom it is meant for.
func convertNear(e *discoveryv1.Endpoint) (near desired.Near) {
	if e.NodeName != nil {
		near.Node = desired.Names(*e.NodeName)
	}
	if e.Hints == nil {
		return near
	}
	var zones, nodes []string
	for _, zone := range e.Hints.ForZones {
		zones = append(zones, zone.Name)
	}
	for _, node := range e.Hints.ForNodes {
		nodes = append(nodes, node.Name)
	}
	near.ForZones, near.ForNodes = desired.Names(zones...), desired.Names(nodes...)
	return near
}

// convertImported keeps of an imported slice what the table depends on. Addresses
// that no peer can mean are dropped: the controller refuses them already.
func convertImported(s *v1alpha1.ImportedEndpointSlice) *desired.Slice {
	slice := &desired.Slice{
		Cluster:   s.Spec.Cluster,
		Service:   desired.Name{Namespace: s.Namespace, Name: s.Spec.Service},
		Object:    s.Name,
		ChangedAt: s.Spec.ChangedAt.Time,
	}
	for _, p := range s.Spec.Ports {
		slice.Ports = appendPort(slice.Ports, p.Name, p.Protocol, p.Port)
	}
	for i := range s.Spec.Endpoints {
		e := &s.Spec.Endpoints[i]
		addr, err := netip.ParseAddr(e.Address)
		if err != nil || !usable(addr.Unmap()) {
			continue
		}
		slice.Endpoints = append(slice.Endpoints, newEndpoint(addr, e.Ready, e.Serving, e.Terminating))
	}
	slice.Endpoints = sortEndpoints(slice.Endpoints)
	return slice
}

// usable says whether another cluster can have an endpoint at the address.
func usable(addr netip.Addr) bool {
	return addr.Zone() == "" && !addr.IsUnspecified() && !addr.IsLoopback() && !addr.IsMulticast() &&
		!addr.IsLinkLocalUnicast() && addr != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

func newEndpoint(addr netip.Addr, ready, serving, terminating bool) desired.Endpoint {
	e := desired.Endpoint{Addr: addr.Unmap(), State: desired.NotReady, Leaving: terminating && !ready}
	switch {
	case ready:
		e.State = desired.Active
	case serving && terminating:
		e.State = desired.Terminating
	}
	return e
}

// compareEndpoints orders by address, and puts the best state of an address first.
func compareEndpoints(a, b desired.Endpoint) int {
	return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.State, b.State))
}

// sortEndpoints sorts by address and keeps each once, at its best.
func sortEndpoints(endpoints []desired.Endpoint) []desired.Endpoint {
	slices.SortFunc(endpoints, compareEndpoints)
	return slices.Clip(slices.CompactFunc(endpoints, func(a, b desired.Endpoint) bool { return a.Addr == b.Addr }))
}

func appendPort(ports []desired.SlicePort, name string, protocol corev1.Protocol, port int32) []desired.SlicePort {
	if port < 1 || port > 65535 {
		return ports
	}
	switch protocol {
	case corev1.ProtocolTCP, "":
		return append(ports, desired.SlicePort{Name: name, Protocol: desired.TCP, Port: uint16(port)})
	case corev1.ProtocolUDP:
		return append(ports, desired.SlicePort{Name: name, Protocol: desired.UDP, Port: uint16(port)})
	}
	return ports
}

// convertMember keeps of a MeshMember who the member is, and how its backends count.
func convertMember(m *v1alpha1.MeshMember) Member {
	return Member{
		Member: desired.Member{
			Name: m.Name,
			ID:   uint16(m.Spec.ID),
			Spec: v1alpha1.MeshClusterSpec{
				ID:       m.Spec.ID,
				Drained:  m.Spec.Drained,
				Weight:   m.Spec.Weight,
				Priority: m.Spec.Priority,
			},
		},
		Status: Status{Epoch: m.Spec.StoreEpoch},
	}
}

// convertTestimony keeps of a MeshCluster what it says about itself. revision is that
// of the store when it was read.
func convertTestimony(c *v1alpha1.MeshCluster, revision uint64) Member {
	m := Member{
		Member: desired.Member{Name: c.Name, ID: uint16(c.Spec.ID)},
		Status: Status{
			Revision:  revision,
			Epoch:     c.Status.StoreEpoch,
			Heartbeat: c.Status.LastContactTime.Time,
			Endpoints: int(c.Status.Endpoints),
		},
	}
	for _, condition := range c.Status.Conditions {
		if condition.Status != metav1.ConditionTrue {
			continue
		}
		switch condition.Type {
		case v1alpha1.MeshClusterSynced:
			m.Status.Synced = true
		case v1alpha1.MeshClusterExportsSynced:
			m.Status.ExportsSynced = true
		}
	}
	return m
}

// revisionOf is a resource version as a number: within one store it only grows.
func revisionOf(resourceVersion string) uint64 {
	n, _ := strconv.ParseUint(resourceVersion, 10, 64)
	return n
}

func convertPod(meta *metav1.ObjectMeta) optout.Pod {
	pod := optout.Pod{Namespace: meta.Namespace, Name: meta.Name, UID: string(meta.UID), CgroupUID: string(meta.UID)}
	if uid, ok := meta.Annotations[corev1.MirrorPodAnnotationKey]; ok {
		pod.CgroupUID = uid
	}
	if value, ok := meta.Annotations[policy.AnnotationSocketLB]; ok {
		pod.Value = &value
	}
	return pod
}
