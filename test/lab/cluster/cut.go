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

package cluster

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"mesh.io/clustermesh/test/lab/plan"
)

// Cut separates clusters from all others, or nodes from everything, without a word
// to either side: packets are lost. Mend is the reverse.
func (l *Lab) Cut(names []string) error { return l.cut(names, true) }

// Mend undoes Cut.
func (l *Lab) Mend(names []string) error { return l.cut(names, false) }

func (l *Lab) cut(names []string, apart bool) error {
	if found, err := l.load(); err != nil || !found {
		return errors.Join(err, errNone)
	}
	router, err := l.space(fabric)
	if err != nil {
		return err
	}
	defer router.Close()
	for _, name := range names {
		if err := l.cutOne(router, name, apart); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) cutOne(router space, name string, apart bool) error {
	for _, cluster := range l.state.Plan.Clusters {
		if cluster.Name == name {
			return cutCluster(router, cluster, apart)
		}
		for _, node := range cluster.Nodes {
			if node.Name == name {
				return cutNode(router, nodePort(cluster, node), apart)
			}
		}
	}
	return fmt.Errorf("%q is neither a cluster nor a node", name)
}

// cutCluster makes the fabric lose what comes from the cluster, or goes to it. Its
// own members reach each other over their bridge.
func cutCluster(router space, cluster plan.Cluster, apart bool) error {
	var rules []*netlink.Rule
	for i, family := range []int{unix.AF_INET, unix.AF_INET6} {
		rule := func(change func(*netlink.Rule)) {
			rule := netlink.NewRule()
			rule.Family, rule.Type = family, unix.RTN_BLACKHOLE
			// Before the rule that looks at the routes.
			rule.Priority = 100
			change(rule)
			rules = append(rules, rule)
		}
		rule(func(r *netlink.Rule) { r.IifName = cluster.Name })
		for _, own := range []netip.Prefix{cluster.PodCIDR, cluster.NodeCIDR} {
			rule(func(r *netlink.Rule) { r.Dst = ipNet(plan.Networks(own)[i]) })
		}
	}
	for _, rule := range rules {
		change, ignored := router.RuleAdd, unix.EEXIST
		if !apart {
			change, ignored = router.RuleDel, unix.ENOENT
		}
		if err := change(rule); err != nil && !errors.Is(err, ignored) {
			return fmt.Errorf("changing the fabric's rules for %s: %w", cluster.Name, err)
		}
	}
	return nil
}

func cutNode(router space, port string, apart bool) error {
	link, err := router.LinkByName(port)
	if err != nil {
		return fmt.Errorf("finding %s: %w", port, err)
	}
	change := router.LinkSetUp
	if apart {
		change = router.LinkSetDown
	}
	if err := change(link); err != nil {
		return fmt.Errorf("changing %s: %w", port, err)
	}
	return nil
}
