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

package controller

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"
	cliflag "k8s.io/component-base/cli/flag"
)

// Options is what a person sets.
type Options struct {
	ClusterName string
	ClusterID   int32
	Namespace   string

	Kubeconfig     string
	MeshKubeconfig string
	MeshServer     string
	MeshServerName string
	MeshCAFile     string

	CiliumAnnotations string
	Workers           int
	KeepFor           time.Duration

	LeaderElect    bool
	LeaseName      string
	LeaseDuration  time.Duration
	RenewDeadline  time.Duration
	RetryPeriod    time.Duration
	Identity       string
	MetricsAddress string
}

// NewOptions returns the defaults.
func NewOptions() *Options {
	return &Options{
		Namespace:         "mesh-system",
		CiliumAnnotations: "auto",
		Workers:           8,
		KeepFor:           10 * time.Minute,
		LeaderElect:       true,
		LeaseName:         "mesh-controller",
		// A crashed leader is replaced in the sum of the lease and two retries, each up
		// to 2.2 times the period: below 10 seconds.
		LeaseDuration:  5 * time.Second,
		RenewDeadline:  4 * time.Second,
		RetryPeriod:    time.Second,
		MetricsAddress: ":8080",
	}
}

// Flags returns the flags by section.
func (o *Options) Flags() cliflag.NamedFlagSets {
	sets := cliflag.NamedFlagSets{}
	fs := sets.FlagSet("cluster")
	fs.StringVar(&o.ClusterName, "cluster-name", o.ClusterName, "The name of this cluster, unique in the mesh: a DNS label of at most 32 characters, not \"default\". Required.")
	fs.Int32Var(&o.ClusterID, "cluster-id", o.ClusterID, "The number of this cluster, unique in the mesh: 1 to 65535. Required.")
	fs.StringVar(&o.Namespace, "namespace", o.Namespace, "The namespace of the mesh's own programs, with the peers' kubeconfig Secrets and the lease.")
	fs.StringVar(&o.CiliumAnnotations, "cilium-annotations", o.CiliumAnnotations, "Whether service.cilium.io/* and io.cilium/* annotations count beside mesh.io/*: on, off, or auto, which is off where Cilium's own cluster mesh runs.")

	fs = sets.FlagSet("connections")
	fs.StringVar(&o.Kubeconfig, "kubeconfig", o.Kubeconfig, "The kubeconfig of this cluster's kube-apiserver. Without it, the Pod's service account is used.")
	fs.StringVar(&o.MeshKubeconfig, "mesh-kubeconfig", o.MeshKubeconfig, "The kubeconfig of this cluster's mesh-apiserver. Without it, --mesh-server is used with the credentials for the kube-apiserver.")
	fs.StringVar(&o.MeshServer, "mesh-server", o.MeshServer, "The address of this cluster's mesh-apiserver. By default https://mesh-apiserver.<namespace>.svc.")
	fs.StringVar(&o.MeshServerName, "mesh-tls-server-name", o.MeshServerName, "The name that mesh-apiserver's certificate must have. By default that in --mesh-server.")
	fs.StringVar(&o.MeshCAFile, "mesh-ca-file", o.MeshCAFile, "The file with the authorities that mesh-apiserver's certificate may be from; read again when it changes. Without it, they are read from the ConfigMap mesh-ca.")

	fs = sets.FlagSet("work")
	fs.IntVar(&o.Workers, "workers", o.Workers, "How many objects each loop, and the import from each peer, writes at once.")
	fs.DurationVar(&o.KeepFor, "keep-global-services", o.KeepFor, "How long a GlobalService that nobody has edited stays after the last export of its Service has ended.")
	fs.StringVar(&o.MetricsAddress, "metrics-bind-address", o.MetricsAddress, "The address of /metrics, /healthz and /readyz. Empty: none.")

	fs = sets.FlagSet("leader election")
	fs.BoolVar(&o.LeaderElect, "leader-elect", o.LeaderElect, "Whether only one of several replicas works at a time.")
	fs.StringVar(&o.LeaseName, "leader-elect-resource-name", o.LeaseName, "The name of the Lease in --namespace.")
	fs.DurationVar(&o.LeaseDuration, "leader-elect-lease-duration", o.LeaseDuration, "How long a leader that says nothing is waited for.")
	fs.DurationVar(&o.RenewDeadline, "leader-elect-renew-deadline", o.RenewDeadline, "How long a leader tries to say something before it gives up.")
	fs.DurationVar(&o.RetryPeriod, "leader-elect-retry-period", o.RetryPeriod, "How often the leader renews, and the others try.")
	fs.StringVar(&o.Identity, "leader-elect-identity", o.Identity, "The name of this replica. By default the host's name and the process ID.")
	return sets
}

// Complete fills in what depends on other options.
func (o *Options) Complete() {
	if o.MeshServer == "" {
		o.MeshServer = fmt.Sprintf("https://mesh-apiserver.%s.svc", o.Namespace)
	}
	if o.Identity == "" {
		host, _ := os.Hostname()
		o.Identity = fmt.Sprintf("%s-%d", host, os.Getpid())
	}
}

// Validate reports everything that is wrong.
func (o *Options) Validate() error {
	var errs []error
	if problems := clusterName(o.ClusterName); len(problems) > 0 {
		errs = append(errs, fmt.Errorf("--cluster-name %q: %v", o.ClusterName, problems))
	}
	if o.ClusterID < 1 || o.ClusterID > 65535 {
		errs = append(errs, fmt.Errorf("--cluster-id %d: must be between 1 and 65535", o.ClusterID))
	}
	if o.Namespace == "" {
		errs = append(errs, errors.New("--namespace: must not be empty"))
	}
	if !slices.Contains([]string{"auto", "on", "off"}, o.CiliumAnnotations) {
		errs = append(errs, fmt.Errorf("--cilium-annotations %q: must be auto, on or off", o.CiliumAnnotations))
	}
	if o.Workers < 1 {
		errs = append(errs, fmt.Errorf("--workers %d: must be at least 1", o.Workers))
	}
	if o.LeaderElect && (o.LeaseDuration <= o.RenewDeadline || o.RenewDeadline <= 12*o.RetryPeriod/10) {
		errs = append(errs, errors.New("--leader-elect-lease-duration must be longer than --leader-elect-renew-deadline, and that longer than 1.2 times --leader-elect-retry-period"))
	}
	return errors.Join(errs...)
}

func clusterName(name string) []string {
	if name == "" {
		return []string{"required"}
	}
	if len(name) > 32 {
		return []string{"must have at most 32 characters"}
	}
	if name == "default" {
		return []string{"\"default\" is what a cluster without a name is called; choose one that is unique in the mesh"}
	}
	return validation.IsDNS1123Label(name)
}
