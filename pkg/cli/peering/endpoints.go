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

package peering

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// PeerService is the Service by which other clusters reach a mesh API.
const PeerService = "mesh-apiserver-peer"

// maxEndpoints bounds the addresses that a peer is given. An importer needs one that
// answers; a cluster of a thousand nodes would fill the Secret.
const maxEndpoints = 32

// Discover returns the addresses, as host:port, at which other clusters reach the mesh
// API behind a Service: those of its load balancer, else its port on the nodes. The
// nodes' addresses of the preferred type count, and those of the other type where no
// node has one. Those of an IP family that the Service is not of do not count: it has no
// port there. Nodes that are ready come first.
func Discover(service *corev1.Service, nodes []corev1.Node, prefer corev1.NodeAddressType) ([]string, error) {
	if len(service.Spec.Ports) == 0 {
		return nil, fmt.Errorf("service %s has no port", service.Name)
	}
	port := service.Spec.Ports[0]
	for _, p := range service.Spec.Ports {
		if p.Name == "https" {
			port = p
		}
	}
	switch service.Spec.Type {
	case corev1.ServiceTypeLoadBalancer:
		var found []string
		for _, ingress := range service.Status.LoadBalancer.Ingress {
			for _, host := range []string{ingress.IP, ingress.Hostname} {
				if host != "" {
					found = append(found, address(host, port.Port))
				}
			}
		}
		if len(found) == 0 {
			return nil, fmt.Errorf("service %s is a LoadBalancer and has no address yet: try again when it has", service.Name)
		}
		return clip(found), nil
	case corev1.ServiceTypeNodePort:
		if port.NodePort == 0 {
			return nil, fmt.Errorf("service %s has no node port", service.Name)
		}
		other := corev1.NodeExternalIP
		if prefer == corev1.NodeExternalIP {
			other = corev1.NodeInternalIP
		}
		for _, kind := range []corev1.NodeAddressType{prefer, other} {
			if found := nodeAddresses(nodes, kind, service.Spec.IPFamilies, port.NodePort); len(found) > 0 {
				return found, nil
			}
		}
		return nil, errors.New("no node has an address of an IP family of service " + service.Name)
	}
	return nil, fmt.Errorf("service %s is of type %s, which other clusters cannot reach: make it a NodePort or a LoadBalancer", service.Name, service.Spec.Type)
}

// nodeAddresses are the nodes' addresses of a type with a port. Where there are too
// many, each zone has some among those that are taken.
func nodeAddresses(nodes []corev1.Node, kind corev1.NodeAddressType, families []corev1.IPFamily, port int32) []string {
	type candidate struct {
		host  string
		ready bool
		turn  int // how many of the same zone come before
		name  string
	}
	var candidates []candidate
	turns := map[string]int{}
	sorted := slices.Clone(nodes)
	slices.SortStableFunc(sorted, func(a, b corev1.Node) int {
		return cmp.Or(-compareBool(ready(&a), ready(&b)), strings.Compare(a.Name, b.Name))
	})
	for i := range sorted {
		node := &sorted[i]
		if node.DeletionTimestamp != nil {
			continue
		}
		zone := node.Labels[corev1.LabelTopologyZone]
		seen := false
		for _, a := range node.Status.Addresses {
			if a.Type == kind && a.Address != "" && served(a.Address, families) {
				seen = true
				candidates = append(candidates, candidate{a.Address, ready(node), turns[zone], node.Name})
			}
		}
		if seen {
			turns[zone]++
		}
	}
	slices.SortStableFunc(candidates, func(a, b candidate) int {
		return cmp.Or(-compareBool(a.ready, b.ready), cmp.Compare(a.turn, b.turn), strings.Compare(a.name, b.name))
	})
	var found []string
	for _, c := range candidates {
		found = append(found, address(c.host, port))
	}
	return clip(found)
}

// served says whether a NodePort Service of some IP families, if they are known, can be
// reached at an address.
func served(host string, families []corev1.IPFamily) bool {
	ip, err := netip.ParseAddr(host)
	if err != nil || len(families) == 0 {
		return true
	}
	family := corev1.IPv6Protocol
	if ip.Unmap().Is4() {
		family = corev1.IPv4Protocol
	}
	return slices.Contains(families, family)
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

func ready(node *corev1.Node) bool {
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}

func address(host string, port int32) string {
	return net.JoinHostPort(host, strconv.Itoa(int(port)))
}

// clip drops what is there twice, and what is too much.
func clip(addresses []string) []string {
	var found []string
	for _, a := range addresses {
		if len(found) < maxEndpoints && !slices.Contains(found, a) {
			found = append(found, a)
		}
	}
	return found
}

// ParseEndpoint reads an address that a person gave: a host or IP address, with a port
// or without one, which is then 443.
func ParseEndpoint(text string) (string, error) {
	wrong := fmt.Errorf("%q is no address: give HOST or HOST:PORT", text)
	rest := text
	if strings.Contains(rest, "://") {
		u, err := url.Parse(rest)
		if err != nil || u.Scheme != "https" || strings.Trim(u.Path, "/") != "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			return "", wrong
		}
		rest = u.Host
	}
	host, port := rest, "443"
	if ip := net.ParseIP(strings.Trim(rest, "[]")); ip == nil {
		if h, p, err := net.SplitHostPort(rest); err == nil {
			host, port = h, p
		}
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil || number == 0 {
		return "", wrong
	}
	if net.ParseIP(host) == nil && len(validation.IsDNS1123Subdomain(strings.ToLower(host))) > 0 {
		return "", wrong
	}
	return address(host, int32(number)), nil
}

// ParseEndpoints reads several.
func ParseEndpoints(texts []string) ([]string, error) {
	var found []string
	for _, text := range texts {
		endpoint, err := ParseEndpoint(text)
		if err != nil {
			return nil, err
		}
		found = append(found, endpoint)
	}
	if kept := clip(found); len(kept) < len(found) && len(kept) == maxEndpoints {
		return nil, fmt.Errorf("there are more than %d addresses", maxEndpoints)
	}
	return clip(found), nil
}
