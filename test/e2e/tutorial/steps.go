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
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"mesh.io/clustermesh/test/e2e/trace"
)

// bare makes sure that nothing of the mesh is there, and remembers what is.
func (w *walk) bare() error {
	if err := w.must("kubectl --context cluster1 get nodes", "kubectl --context cluster2 get nodes"); err != nil {
		return err
	}
	for _, cluster := range clusters {
		picture, err := w.lab().Take(w.ctx, cluster)
		if err != nil {
			return err
		}
		w.checks++
		if _, ok := picture["namespaces mesh-system"]; ok {
			return fmt.Errorf("%s is not bare: it has a namespace mesh-system", cluster)
		}
		w.before[cluster] = picture
		w.printf("✓ nothing of the mesh is in %s (%d things remembered)\n", cluster, len(picture))
	}
	w.began = time.Now()
	return nil
}

func (w *walk) lab() trace.Lab {
	return trace.Lab{Kubeconfig: w.Kubeconfig, Program: filepath.Join(w.BinDir, "lab")}
}

// connected ends the four commands with the first of the section.
func (w *walk) connected() error {
	if err := w.block(0); err != nil {
		return err
	}
	w.four = time.Since(w.began)
	w.printf("✓ from two bare clusters to a connected mesh in four commands and %.0f s\n", w.four.Seconds())
	for i := range w.here.blocks[1:] {
		if err := w.block(i + 1); err != nil {
			return err
		}
	}
	return nil
}

func (w *walk) oneService() error {
	for _, do := range []func() error{w.asWritten, w.read, w.bothAnswer} {
		if err := do(); err != nil {
			return err
		}
	}
	return nil
}

func (w *walk) read() error {
	for _, cluster := range clusters {
		if err := w.expect("kubectl --context "+cluster+" get globalservices -A", "one global service with 2 of 2 backends", func(out string) bool {
			return contains("userlist-svc", "2/2")(out)
		}); err != nil {
			return err
		}
	}
	if err := w.must(
		"kubectl --context cluster1 -n song wait globalservice/userlist-svc --for=condition=Ready --timeout 30s",
		"kubectl --context cluster1 -n song get globalservice userlist-svc -o yaml",
	); err != nil {
		return err
	}
	// A user who may read only the namespace song.
	if err := w.must(
		"kubectl --context cluster1 -n song create rolebinding reader --clusterrole=view --user=reader",
	); err != nil {
		return err
	}
	if err := w.expect("kubectl --context cluster1 --as reader -n song get globalservices", "the reader of song sees it", contains("userlist-svc")); err != nil {
		return err
	}
	return w.expect("kubectl --context cluster1 --as reader -n default get globalservices || true", "and nothing elsewhere", contains("Forbidden"))
}

func (w *walk) bothAnswer() error {
	for _, cluster := range clusters {
		if err := w.whoAnswers(cluster, "cluster1", "cluster2"); err != nil {
			return err
		}
	}
	return w.kernelTable("cluster1", "the kernel holds a backend of each cluster", func(rows []string) bool {
		return len(rows) == 2 && preferred("cluster1", "cluster2")(rows)
	})
}

func (w *walk) scale() error {
	if err := w.asWritten(); err != nil {
		return err
	}
	if err := w.underLoad(func() error {
		if err := w.must("kubectl --context cluster2 -n song scale deploy userlist --replicas=0"); err != nil {
			return err
		}
		for _, cluster := range clusters {
			if err := w.whoAnswers(cluster, "cluster1"); err != nil {
				return err
			}
		}
		// The pod goes on for 2 s after it is told to stop; wait until it is gone.
		return w.expect("kubectl --context cluster2 -n song get pods -l app=userlist", "its pod is gone", contains("No resources found"))
	}); err != nil {
		return err
	}
	return w.underLoad(func() error {
		if err := w.must("kubectl --context cluster2 -n song scale deploy userlist --replicas=1"); err != nil {
			return err
		}
		for _, cluster := range clusters {
			if err := w.whoAnswers(cluster, "cluster1", "cluster2"); err != nil {
				return err
			}
		}
		return nil
	})
}

func (w *walk) affinity() error {
	if err := w.asWritten(); err != nil {
		return err
	}
	both := []string{"cluster1", "cluster2"}
	for _, step := range []struct {
		annotation string
		answers    []string // to cluster1's client
	}{
		{"service.cilium.io/affinity=local", []string{"cluster1"}},
		{"service.cilium.io/affinity=remote", []string{"cluster2"}},
		{"service.cilium.io/affinity=none", both},
		{"service.cilium.io/affinity-", both},
	} {
		overwrite := " --overwrite"
		if strings.HasSuffix(step.annotation, "-") {
			overwrite = ""
		}
		if err := w.must("kubectl --context cluster1 -n song annotate service userlist-svc " + step.annotation + overwrite); err != nil {
			return err
		}
		if err := w.kernelTable("cluster1", fmt.Sprintf("preferred: %s", strings.Join(step.answers, " and ")), preferred(step.answers...)); err != nil {
			return err
		}
		if err := w.whoAnswers("cluster1", step.answers...); err != nil {
			return err
		}
	}
	return w.whoAnswers("cluster2", both...)
}

func (w *walk) shared() error {
	if err := w.asWritten(); err != nil {
		return err
	}
	if err := w.must("kubectl --context cluster2 -n song annotate service userlist-svc service.cilium.io/shared=false --overwrite"); err != nil {
		return err
	}
	if err := w.whoAnswers("cluster1", "cluster1"); err != nil {
		return err
	}
	if err := w.whoAnswers("cluster2", "cluster1", "cluster2"); err != nil {
		return err
	}
	if err := w.must("kubectl --context cluster2 -n song annotate service userlist-svc service.cilium.io/shared=true --overwrite"); err != nil {
		return err
	}
	return w.whoAnswers("cluster1", "cluster1", "cluster2")
}

func (w *walk) drain() error {
	if err := w.asWritten(); err != nil {
		return err
	}
	if err := w.must(`kubectl --context cluster1 -n song patch globalservice userlist-svc --type merge -p '{"spec":{"clusters":[{"name":"cluster2","weight":0}]}}'`); err != nil {
		return err
	}
	if err := w.whoAnswers("cluster1", "cluster1"); err != nil {
		return err
	}
	if err := w.whoAnswers("cluster2", "cluster1", "cluster2"); err != nil {
		return err
	}
	if err := w.must(`kubectl --context cluster1 -n song patch globalservice userlist-svc --type merge -p '{"spec":{"clusters":null}}'`); err != nil {
		return err
	}
	return w.whoAnswers("cluster1", "cluster1", "cluster2")
}

func (w *walk) kill() error {
	return w.underLoad(func() error {
		if err := w.must("lab kill 'cluster2:mesh-*'"); err != nil {
			return err
		}
		for _, cluster := range clusters {
			if err := w.whoAnswers(cluster, "cluster1", "cluster2"); err != nil {
				return err
			}
		}
		// The kubelet starts them again.
		if err := w.must(
			"kubectl --context cluster2 -n mesh-system rollout status --timeout 90s statefulset/mesh-apiserver",
			"kubectl --context cluster2 -n mesh-system rollout status --timeout 90s deploy/mesh-controller",
			"kubectl --context cluster2 -n mesh-system rollout status --timeout 90s ds/mesh-agent",
		); err != nil {
			return err
		}
		for _, cluster := range clusters {
			if err := w.expect("kubectl --context "+cluster+" get globalservices -A", "still 2 of 2 backends", contains("userlist-svc", "2/2")); err != nil {
				return err
			}
			if err := w.whoAnswers(cluster, "cluster1", "cluster2"); err != nil {
				return err
			}
		}
		return w.expect("kubectl --context cluster2 -n mesh-system get pods", "every program was restarted", func(out string) bool {
			return !strings.Contains(out, " 0 ") && !strings.Contains(out, "CrashLoop")
		})
	})
}

// diagnose is what the section says; nothing may be found wrong after all that was done.
func (w *walk) diagnose() error {
	const bundle = "cluster1.tar.gz" // as the tutorial calls it
	defer os.Remove(filepath.Join(w.Root, bundle))
	if err := w.asWritten(); err != nil {
		return err
	}
	w.checks++
	info, err := os.Stat(filepath.Join(w.Root, bundle))
	if err != nil {
		return err
	}
	w.printf("✓ the bundle is there, with %d bytes\n", info.Size())
	return nil
}

// leave removes the mesh, and finds no trace of it.
func (w *walk) leave() error {
	if err := w.asWritten(); err != nil {
		return err
	}
	for _, cluster := range clusters {
		w.checks++
		differences, err := w.lab().Settled(w.ctx, cluster, w.before[cluster], patience)
		if err != nil {
			return err
		}
		if len(differences) > 0 {
			return fmt.Errorf("%s is not as it was before:\n%s", cluster, strings.Join(differences, "\n"))
		}
		w.printf("✓ %s is as it was before, on the API and on its nodes\n", cluster)
	}
	return nil
}
