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

package bypass

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// servicesChain is the chain in which kube-proxy's iptables mode has a rule for each
// address and port of each Service.
const servicesChain = "KUBE-SERVICES"

// jumpsAway are the chains beside kube-proxy's that a packet to a backend may miss.
//
// Others may do more than translate: that of Amazon's CNI, for one, marks connections in
// a nat chain, and later routes by the mark.
var jumpsAway = map[string]bool{
	servicesChain: true,
	// Calico's translate floating IPs, which are no backends' addresses.
	"cali-PREROUTING": true,
	"cali-OUTPUT":     true,
}

// rule is a rule of a base chain of iptables' nat table, as far as it matters here.
type rule struct {
	// target is the chain that it jumps to, or the name of its target. It is empty where
	// the rule decides nothing but whether others of the chain are asked.
	target string
	// local is set where it is only for addresses of this host, as those for the ports of
	// nodes are.
	local bool
	// to is the only destination that it is for, if it is valid.
	to netip.Prefix
}

// finding is what was found of other programs' nat chains that packets go through before
// their destination is decided.
type finding struct {
	// rules are those of iptables' chains PREROUTING and OUTPUT, of each of its variants.
	rules []rule
	// others are nat chains of nftables' that are not iptables', as table/chain.
	others []string
}

// judge says whether our chains should be there, and if not, why; and which destinations
// must be left to others.
func judge(f finding) (state State, reason string, left []netip.Prefix) {
	if !slices.ContainsFunc(f.rules, func(r rule) bool { return r.target == servicesChain }) {
		return Unneeded, "", nil
	}
	unknown := slices.Clone(f.others)
	for _, r := range f.rules {
		switch {
		case r.target == "" || r.local || jumpsAway[r.target]:
		case r.to.IsValid():
			left = append(left, r.to)
		default:
			unknown = append(unknown, r.target)
		}
	}
	if len(unknown) > 0 {
		slices.Sort(unknown)
		return Refused, fmt.Sprintf("other programs' nat chains may be for connections to backends: %s", strings.Join(slices.Compact(unknown), ", ")), nil
	}
	return Active, "", left
}
