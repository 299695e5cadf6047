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

package tutorial

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// echo reaches every pod of both clusters over each protocol, by the Service's name.
func (w *walk) echo() error {
	for _, cluster := range clusters {
		if err := w.must("kubectl --context " + cluster + " -n song apply -f artifacts/examples/echo.yaml"); err != nil {
			return err
		}
	}
	for _, cluster := range clusters {
		if err := w.must("kubectl --context " + cluster + " -n song rollout status --timeout 60s deploy/echo"); err != nil {
			return err
		}
	}
	for _, cluster := range clusters {
		for _, protocol := range []string{"tcp", "udp"} {
			// A connected socket of each kind, opened anew for each question. The answer is
			// read in one piece: of a datagram, what is not read at once is lost.
			script := fmt.Sprintf(`for i in $(seq 60); do exec 3<>/dev/%s/echo.song.svc/7; echo hello >&3; timeout 5 dd bs=64k count=1 status=none <&3; exec 3>&-; done`, protocol)
			command := fmt.Sprintf("kubectl --context %s -n song exec deploy/curltest -- bash -c '%s'", cluster, script)
			if err := w.expect(command+" | sort | uniq -c | sed 's/\"client.*//' | sort -u -k2", "both pods of both clusters answer over "+protocol, func(out string) bool {
				return strings.Count(out, `"cluster":"cluster1"`) == 2 && strings.Count(out, `"cluster":"cluster2"`) == 2
			}); err != nil {
				return err
			}
		}
	}
	return nil
}

// stays checks for a while that something does not change.
func (w *walk) stays(command, outcome string, during time.Duration, ok func(string) bool) error {
	w.checks++
	for began := time.Now(); time.Since(began) < during; time.Sleep(500 * time.Millisecond) {
		out, err := w.quietly(command)
		if err != nil || !ok(out) {
			w.show(command, out)
			return errors.Join(fmt.Errorf("after %.1f s no longer so: %s", time.Since(began).Seconds(), outcome), err)
		}
	}
	out, err := w.quietly(command)
	w.show(command, out)
	w.printf("✓ %s (all the time, for %.0f s)\n", outcome, during.Seconds())
	return err
}

func (w *walk) cut() error {
	// Clients prefer their own side, so that the lost packets don't concern them.
	if err := w.must("kubectl --context cluster1 -n song annotate service userlist-svc mesh.io/affinity=local --overwrite"); err != nil {
		return err
	}
	if err := w.whoAnswers("cluster1", "cluster1"); err != nil {
		return err
	}
	if err := w.must("lab cut cluster2"); err != nil {
		return err
	}
	const table = "kubectl --context cluster1 -n mesh-system exec ds/mesh-agent -- mesh-agent dump"
	err := w.underLoadFrom([]string{"cluster1"}, func() error {
		if err := w.stays(table, "cluster2's backend stays in the kernel", 8*time.Second, contains(":8181 cluster2 (active)")); err != nil {
			return err
		}
		// Promise 1: no other cluster is needed to change this one.
		if err := w.must("kubectl --context cluster1 -n song scale deploy userlist --replicas=2"); err != nil {
			return err
		}
		if err := w.expect(table, "a second local pod is programmed meanwhile", func(out string) bool {
			return strings.Count(out, ":8181 cluster1 (active)") == 2 && strings.Contains(out, ":8181 cluster2 (active)")
		}); err != nil {
			return err
		}
		return w.must(`kubectl --context cluster1 -n song patch globalservice userlist-svc --type merge -p '{"spec":{"affinity":"Local"}}'`)
	})
	if err != nil {
		return err
	}
	if err := w.must(
		"lab mend cluster2",
		"kubectl --context cluster1 -n song scale deploy userlist --replicas=1",
		`kubectl --context cluster1 -n song patch globalservice userlist-svc --type merge -p '{"spec":{"affinity":null}}'`,
		"kubectl --context cluster1 -n song annotate service userlist-svc mesh.io/affinity-",
	); err != nil {
		return err
	}
	for _, cluster := range clusters {
		if err := w.whoAnswers(cluster, clusters...); err != nil {
			return err
		}
	}
	return nil
}

func (w *walk) emptied() error {
	out, err := w.quietly("kubectl --context cluster2 -n mesh-system get pod mesh-apiserver-0 -o json")
	if err != nil {
		return err
	}
	var pod struct {
		Spec struct {
			NodeName string `json:"nodeName"`
		} `json:"spec"`
	}
	if err := json.Unmarshal([]byte(out), &pod); err != nil {
		return err
	}
	return w.underLoad(func() error {
		if err := w.must(
			"lab exec --node "+pod.Spec.NodeName+" -- sh -c 'rm -rf /var/lib/volumes/*/*'",
			"lab kill 'cluster2:mesh-apiserver'",
		); err != nil {
			return err
		}
		for _, cluster := range clusters {
			if err := w.stays("kubectl --context "+cluster+" -n mesh-system exec ds/mesh-agent -- mesh-agent dump", "the kernel keeps the backends of both clusters", 8*time.Second,
				contains(":8181 cluster1 (active)", ":8181 cluster2 (active)")); err != nil {
				return err
			}
		}
		// The lost store held cluster2's members: connecting again brings them back.
		if err := w.must("meshctl connect --context cluster1 --destination-context cluster2"); err != nil {
			return err
		}
		for _, cluster := range clusters {
			if err := w.expect("kubectl --context "+cluster+" -n song get globalservices userlist-svc", "2 of 2 backends again", contains("userlist-svc", "2/2")); err != nil {
				return err
			}
			if err := w.whoAnswers(cluster, clusters...); err != nil {
				return err
			}
		}
		return nil
	})
}
