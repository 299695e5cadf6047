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

// Package validation checks what the declarative rules on the wire types cannot
// say: names, addresses, and fields that have to agree with each other.
package validation

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apimachineryvalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"mesh.io/clustermesh/pkg/apis/mesh"
)

// MaxClusterNameLength leaves room for a cluster's name in the names of objects and
// in label values.
const MaxClusterNameLength = 32

// reservedClusterName is what other tools call a cluster that nobody named.
const reservedClusterName = "default"

var protocols = []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}

// ClusterName checks the name of a member of the mesh.
func ClusterName(name string) []string {
	problems := validation.IsDNS1123Label(name)
	if len(name) > MaxClusterNameLength {
		problems = append(problems, validation.MaxLenError(MaxClusterNameLength))
	}
	if name == reservedClusterName {
		problems = append(problems, fmt.Sprintf("%q is what a cluster without a name is called; choose one that is unique in the mesh", name))
	}
	return problems
}

// GlobalService checks a GlobalService that is created or whose spec is updated.
func GlobalService(service *mesh.GlobalService) field.ErrorList {
	errs := serviceName(service.Name, field.NewPath("metadata", "name"))
	for i, cluster := range service.Spec.Clusters {
		errs = append(errs, reserved(cluster.Name, field.NewPath("spec", "clusters").Index(i).Child("name"))...)
	}
	return errs
}

// GlobalServiceStatus checks the status that the controller reports.
func GlobalServiceStatus(service *mesh.GlobalService) field.ErrorList {
	return metav1validation.ValidateConditions(service.Status.Conditions, field.NewPath("status", "conditions"))
}

// MeshCluster checks a MeshCluster that is created.
func MeshCluster(cluster *mesh.MeshCluster) field.ErrorList {
	errs := clusterName(cluster.Name, field.NewPath("metadata", "name"))
	spec := field.NewPath("spec")
	for i, text := range cluster.Spec.PodCIDRs {
		errs = append(errs, prefix(text, spec.Child("podCIDRs").Index(i))...)
	}
	errs = append(errs, namespaces(cluster.Spec.Import.Namespaces, spec.Child("import", "namespaces"))...)
	errs = append(errs, namespaces(cluster.Spec.Export.Namespaces, spec.Child("export", "namespaces"))...)
	if ref := cluster.Spec.KubeconfigSecretRef; ref != nil && ref.Key != "" {
		for _, problem := range validation.IsConfigMapKey(ref.Key) {
			errs = append(errs, field.Invalid(spec.Child("kubeconfigSecretRef", "key"), ref.Key, problem))
		}
	}
	return errs
}

// MeshClusterUpdate checks a change of a MeshCluster's spec.
func MeshClusterUpdate(cluster, old *mesh.MeshCluster) field.ErrorList {
	errs := MeshCluster(cluster)
	if (cluster.Spec.KubeconfigSecretRef == nil) != (old.Spec.KubeconfigSecretRef == nil) {
		errs = append(errs, field.Forbidden(field.NewPath("spec", "kubeconfigSecretRef"),
			"may not be added or removed: the local cluster has none and each peer has one; delete the object and create it anew"))
	}
	return errs
}

// MeshClusterStatus checks the status that the controller reports.
func MeshClusterStatus(cluster *mesh.MeshCluster) field.ErrorList {
	return metav1validation.ValidateConditions(cluster.Status.Conditions, field.NewPath("status", "conditions"))
}

// ServiceRecord checks the record of an exported or imported Service.
func ServiceRecord(object metav1.Object, record *mesh.ServiceRecord, imported bool) field.ErrorList {
	errs := recordName(object.GetName(), record.Cluster, imported, validation.IsDNS1123Label)
	spec := field.NewPath("spec")
	errs = append(errs, reserved(record.Cluster, spec.Child("cluster"))...)
	names := sets.New[string]()
	for i, port := range record.Ports {
		errs = append(errs, portName(port.Name, len(record.Ports), names, spec.Child("ports").Index(i).Child("name"))...)
		errs = append(errs, oneOf(port.Protocol, protocols, spec.Child("ports").Index(i).Child("protocol"))...)
	}
	families := sets.New[corev1.IPFamily]()
	for i, family := range record.IPFamilies {
		path := spec.Child("ipFamilies").Index(i)
		errs = append(errs, oneOf(family, []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}, path)...)
		if families.Has(family) {
			errs = append(errs, field.Duplicate(path, family))
		}
		families.Insert(family)
	}
	errs = append(errs, oneOf(record.SessionAffinity,
		[]corev1.ServiceAffinity{corev1.ServiceAffinityNone, corev1.ServiceAffinityClientIP}, spec.Child("sessionAffinity"))...)
	for i, consumer := range record.Consumers {
		errs = append(errs, clusterName(consumer, spec.Child("consumers").Index(i))...)
	}
	return errs
}

// SliceRecord checks the record of an exported or imported endpoint slice.
func SliceRecord(object metav1.Object, record *mesh.SliceRecord, imported bool) field.ErrorList {
	errs := recordName(object.GetName(), record.Cluster, imported, validation.IsDNS1123Subdomain)
	spec := field.NewPath("spec")
	errs = append(errs, reserved(record.Cluster, spec.Child("cluster"))...)
	errs = append(errs, oneOf(record.AddressType,
		[]discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6}, spec.Child("addressType"))...)

	zones := sets.New[string]()
	for i, zone := range record.Zones {
		path := spec.Child("zones").Index(i)
		if zones.Has(zone) {
			errs = append(errs, field.Duplicate(path, zone))
		}
		zones.Insert(zone)
		if zone == "" {
			errs = append(errs, field.Required(path, ""))
		}
		for _, problem := range validation.IsValidLabelValue(zone) {
			errs = append(errs, field.Invalid(path, zone, problem))
		}
	}
	addresses := sets.New[string]()
	for i, endpoint := range record.Endpoints {
		path := spec.Child("endpoints").Index(i)
		errs = append(errs, address(endpoint.Address, record.AddressType, path.Child("address"))...)
		if addresses.Has(endpoint.Address) {
			errs = append(errs, field.Duplicate(path.Child("address"), endpoint.Address))
		}
		addresses.Insert(endpoint.Address)
		if zone := endpoint.Zone; zone != nil && int(*zone) >= len(record.Zones) {
			errs = append(errs, field.Invalid(path.Child("zone"), *zone, fmt.Sprintf("the slice has %d zones, counted from 0", len(record.Zones))))
		}
	}
	names := sets.New[string]()
	for i, port := range record.Ports {
		errs = append(errs, portName(port.Name, len(record.Ports), names, spec.Child("ports").Index(i).Child("name"))...)
		errs = append(errs, oneOf(port.Protocol, protocols, spec.Child("ports").Index(i).Child("protocol"))...)
	}
	return errs
}

// recordName checks an exported or imported object's name. What is imported is
// named after its cluster, so that two clusters' objects never meet.
func recordName(name, cluster string, imported bool, valid func(string) []string) field.ErrorList {
	path := field.NewPath("metadata", "name")
	if imported {
		start := cluster + "."
		if !strings.HasPrefix(name, start) {
			return field.ErrorList{field.Invalid(path, name, fmt.Sprintf("must begin with the cluster's name and a dot, %q", start))}
		}
		valid = validation.IsDNS1123Subdomain
	}
	var errs field.ErrorList
	for _, problem := range valid(name) {
		errs = append(errs, field.Invalid(path, name, problem))
	}
	return errs
}

func serviceName(name string, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for _, problem := range apimachineryvalidation.NameIsDNSLabel(name, false) {
		errs = append(errs, field.Invalid(path, name, problem))
	}
	return errs
}

// reserved checks a cluster's name whose form is checked declaratively.
func reserved(name string, path *field.Path) field.ErrorList {
	if name != reservedClusterName {
		return nil
	}
	return clusterName(name, path)
}

func clusterName(name string, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for _, problem := range ClusterName(name) {
		errs = append(errs, field.Invalid(path, name, problem))
	}
	return errs
}

func namespaces(names []string, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, name := range names {
		for _, problem := range validation.IsDNS1123Label(name) {
			errs = append(errs, field.Invalid(path.Index(i), name, problem))
		}
	}
	return errs
}

func portName(name string, ports int, seen sets.Set[string], path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if name == "" && ports > 1 {
		errs = append(errs, field.Required(path, "each of several ports needs a name"))
	}
	if name != "" && seen.Has(name) {
		errs = append(errs, field.Duplicate(path, name))
	}
	seen.Insert(name)
	return errs
}

func oneOf[T ~string](value T, allowed []T, path *field.Path) field.ErrorList {
	if slices.Contains(allowed, value) {
		return nil
	}
	return field.ErrorList{field.NotSupported(path, value, allowed)}
}

// prefix checks that the text is a prefix in the one form that it has.
func prefix(text string, path *field.Path) field.ErrorList {
	parsed, err := netip.ParsePrefix(text)
	if err != nil || parsed.Addr().Is4In6() {
		return field.ErrorList{field.Invalid(path, text, "must be a prefix such as 10.0.0.0/16 or fd00::/48")}
	}
	if canonical := parsed.Masked().String(); canonical != text {
		return field.ErrorList{field.Invalid(path, text, fmt.Sprintf("must be in its shortest form without host bits, %s", canonical))}
	}
	if parsed.Bits() == 0 {
		return field.ErrorList{field.Invalid(path, text, "must not hold every address")}
	}
	return nil
}

// address checks that the text is an address of the type that a pod can have.
func address(text string, addressType discoveryv1.AddressType, path *field.Path) field.ErrorList {
	if text == "" {
		return nil // reported as required
	}
	parsed, err := netip.ParseAddr(text)
	if err != nil || parsed.Zone() != "" {
		return field.ErrorList{field.Invalid(path, text, "must be an IP address")}
	}
	switch {
	case addressType == discoveryv1.AddressTypeIPv4 && !parsed.Is4(),
		addressType == discoveryv1.AddressTypeIPv6 && (!parsed.Is6() || parsed.Is4In6()):
		return field.ErrorList{field.Invalid(path, text, fmt.Sprintf("must be an %s address, as the slice's addressType says", addressType))}
	case parsed.String() != text:
		return field.ErrorList{field.Invalid(path, text, fmt.Sprintf("must be in its shortest form, %s", parsed))}
	case parsed.IsUnspecified():
		return field.ErrorList{field.Invalid(path, text, "must not be the unspecified address")}
	case parsed.IsLoopback():
		return field.ErrorList{field.Invalid(path, text, "must not be a loopback address")}
	case parsed.IsLinkLocalUnicast():
		return field.ErrorList{field.Invalid(path, text, "must not be a link-local address")}
	case parsed.IsMulticast():
		return field.ErrorList{field.Invalid(path, text, "must not be a multicast address")}
	case parsed == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return field.ErrorList{field.Invalid(path, text, "must not be the broadcast address")}
	}
	return nil
}
