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

package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"

	"mesh.io/clustermesh/pkg/agent/bypass"
	"mesh.io/clustermesh/pkg/agent/datapath"
	"mesh.io/clustermesh/pkg/agent/desired"
	"mesh.io/clustermesh/pkg/agent/nodeaddr"
	"mesh.io/clustermesh/pkg/agent/source"
	"mesh.io/clustermesh/pkg/generated/clientset/versioned"
	"mesh.io/clustermesh/pkg/policy"
)

const (
	// DefaultMetricsAddress serves /metrics, /livez and /readyz.
	// The port is none that Kubernetes, Cilium (9879 among others) or Calico uses on a
	// node.
	DefaultMetricsAddress = "127.0.0.1:9476"
	// DefaultServiceSeries is how many pairs of a Service and a cluster have metrics of
	// their own: some eight series each, of those that the node's pods connect to.
	DefaultServiceSeries = 500
	// meshService is the name of the mesh API's Service, in the mesh's namespace.
	meshService = "mesh-apiserver"
	// caConfigMap is where the mesh API publishes its CA, in the mesh's namespace.
	caConfigMap = "mesh-ca"
	// pinFolder is ours on the bpffs.
	pinFolder = "clustermesh"
)

// places are where the kernel's table and what goes with it are found.
type places struct {
	BPFFS    string
	StateDir string
}

func (p *places) addFlags(flags *pflag.FlagSet) {
	flags.StringVar(&p.BPFFS, "bpffs", p.BPFFS, "Where the bpffs is mounted. The maps and links are pinned in its folder \""+pinFolder+"\".")
	flags.StringVar(&p.StateDir, "state-dir", p.StateDir, "The folder for what outlives the agent: the snapshot of the mesh, its status file, its lock.")
}

func (p *places) pinDir() string { return filepath.Join(p.BPFFS, pinFolder) }

// ErrRunning is returned by Run beside another agent on the same node, which goes on
// undisturbed.
var ErrRunning = errors.New("another mesh-agent runs")

// ExitRunning is the program's exit code for ErrRunning: that of a failure which may be
// over when it is tried again (EX_TEMPFAIL of sysexits.h). Any other is 1.
const ExitRunning = 75

// Options is what a person may ask of the agent.
type Options struct {
	places
	ClusterName       string
	NodeName          string
	Namespace         string
	Kubeconfig        string
	KubeAPIServer     string
	MeshServer        string
	MeshCAFile        string
	CgroupRoot        string
	CiliumAnnotations string
	MetricsAddress    string
	Sizes             datapath.Sizes
	StaleAfter        time.Duration
	StartupTaint      string
	PodOptOut         bool
	DestroyStaleUDP   bool
	Proc              string
	SkipServiceChains string
	LoadBalancerIPs   bool
	ServiceSeries     int
	PerBackendMetrics bool
}

// NewOptions returns the defaults.
func NewOptions() *Options {
	return &Options{
		places:            places{BPFFS: "/sys/fs/bpf", StateDir: "/var/lib/mesh-agent"},
		NodeName:          os.Getenv("NODE_NAME"),
		Namespace:         "mesh-system",
		CiliumAnnotations: "auto",
		MetricsAddress:    DefaultMetricsAddress,
		Sizes:             datapath.DefaultSizes,
		StaleAfter:        datapath.DefaultStaleAfter,
		PodOptOut:         true,
		DestroyStaleUDP:   true,
		Proc:              "/proc",
		SkipServiceChains: string(SkipOff),
		ServiceSeries:     DefaultServiceSeries,
	}
}

// AddFlags adds the flags of the options.
func (o *Options) AddFlags(flags *pflag.FlagSet) {
	o.addFlags(flags)
	flags.StringVar(&o.ClusterName, "cluster-name", o.ClusterName, "This cluster's name in the mesh, as in its MeshCluster. Required.")
	flags.StringVar(&o.NodeName, "node-name", o.NodeName, "This node's name. The default is the variable NODE_NAME.")
	flags.StringVar(&o.Namespace, "namespace", o.Namespace, "The namespace of the mesh's own programs.")
	flags.StringVar(&o.Kubeconfig, "kubeconfig", o.Kubeconfig, "How to reach kube-apiserver. The default is the pod's service account.")
	flags.StringVar(&o.KubeAPIServer, "kube-apiserver", o.KubeAPIServer, "URL of kube-apiserver in the place of the one that the kubeconfig or the pod's environment names.")
	flags.StringVar(&o.MeshServer, "mesh-server", o.MeshServer, "URL of the mesh API, whose certificate must be for "+meshService+".<namespace>.svc all the same. The default is the Service "+meshService+" in --namespace, by the addresses that kube-apiserver tells; no DNS is needed.")
	flags.StringVar(&o.MeshCAFile, "mesh-ca-file", o.MeshCAFile, "File with the CA of the mesh API, read again when it changes. The default is the ConfigMap "+caConfigMap+" in --namespace.")
	flags.StringVar(&o.CgroupRoot, "cgroup-root", o.CgroupRoot, "The cgroup (version 2) whose children are served. The default is the root of the node's tree.")
	flags.StringVar(&o.CiliumAnnotations, "cilium-annotations", o.CiliumAnnotations, "Whether service.cilium.io/* annotations count: on, off, or auto, which is off while Cilium's own cluster mesh runs here.")
	flags.StringVar(&o.MetricsAddress, "metrics-bind-address", o.MetricsAddress, "Where to serve /metrics, /livez and /readyz; 0 for nowhere.")
	flags.IntVar(&o.ServiceSeries, "max-service-series", o.ServiceSeries, "How many pairs of a Service and a cluster have metrics of their own; the connections of further ones are counted together, by cluster, under service=\"_other\".")
	flags.BoolVar(&o.PerBackendMetrics, "per-backend-metrics", o.PerBackendMetrics, "Serve metrics of every backend that pods of this node connect to, too. There may be as many series as there are pods.")
	flags.Uint32Var(&o.Sizes.Frontends, "max-frontends", o.Sizes.Frontends, "How many frontends the maps hold: one for each port of each global Service.")
	flags.Uint32Var(&o.Sizes.Backends, "max-backends", o.Sizes.Backends, "How many backends the maps hold, each counted once for every frontend.")
	flags.Uint32Var(&o.Sizes.Slots, "max-slots", o.Sizes.Slots, "How many slots the maps hold: one for each backend, and more where weights differ.")
	flags.DurationVar(&o.StaleAfter, "stale-after", o.StaleAfter, "How long after the agent's last sign of life the kernel hands services with ready local backends back to kube-proxy.")
	flags.BoolVar(&o.PodOptOut, "pod-opt-out", o.PodOptOut, "Leave the connections of pods alone that are annotated "+policy.AnnotationSocketLB+": \"false\", or whose Namespace is. It takes the right to watch pods; without --node-name it is off.")
	flags.BoolVar(&o.DestroyStaleUDP, "destroy-stale-udp", o.DestroyStaleUDP, "Destroy UDP sockets that were connected through a Service to a backend which is gone, so that their applications connect again. In pods it takes CAP_SYS_ADMIN, and CAP_SYS_PTRACE and the node's --proc where the kernel is older than 6.18.")
	flags.StringVar(&o.Proc, "proc", o.Proc, "A procfs that shows all processes of the node, to find the network namespaces of pods by.")
	flags.BoolVar(&o.LoadBalancerIPs, "load-balancer-ips", o.LoadBalancerIPs, "Balance connections to the addresses of load balancers of global Services, too, as those to cluster IPs: those with the ipMode VIP, of Services of the type LoadBalancer with externalTrafficPolicy Cluster and without source ranges.")
	flags.StringVar(&o.SkipServiceChains, "skip-service-chains", o.SkipServiceChains, "Which new connections are led past the chain KUBE-SERVICES, beside kube-proxy in iptables mode: off, remote (those to the backends of other clusters), or all (those to this cluster's backends of global Services, too). They match none of its rules, and would be compared with each. It takes a table of nftables, \""+bypass.TableName+"\", and is not done beside nat chains that are not known to do without these packets.")
	flags.StringVar(&o.StartupTaint, "startup-taint", o.StartupTaint, "The key of a taint that is taken from this node, whatever its effect, whenever the agent is ready: the other clusters' backends are programmed. The default is to leave taints alone.")
}

// Validate returns everything that is wrong with the options.
func (o *Options) Validate() error {
	var errs []error
	switch {
	case o.ClusterName == "":
		errs = append(errs, errors.New("--cluster-name is required"))
	case len(validation.IsDNS1123Label(o.ClusterName)) > 0 || len(o.ClusterName) > 32 || o.ClusterName == "default":
		errs = append(errs, fmt.Errorf("--cluster-name %q is not a DNS label of at most 32 characters, or is \"default\"", o.ClusterName))
	}
	if o.Namespace == "" {
		errs = append(errs, errors.New("--namespace must not be empty"))
	}
	switch o.CiliumAnnotations {
	case "auto", "on", "off":
	default:
		errs = append(errs, fmt.Errorf("--cilium-annotations %q is none of auto, on, off", o.CiliumAnnotations))
	}
	switch SkipServiceChains(o.SkipServiceChains) {
	case SkipOff, SkipRemote, SkipAll:
	default:
		errs = append(errs, fmt.Errorf("--skip-service-chains %q is none of off, remote, all", o.SkipServiceChains))
	}
	for flag, path := range map[string]string{"--bpffs": o.BPFFS, "--state-dir": o.StateDir, "--proc": o.Proc} {
		if !filepath.IsAbs(path) {
			errs = append(errs, fmt.Errorf("%s %q is not an absolute path", flag, path))
		}
	}
	if o.MeshServer != "" {
		if u, err := url.Parse(o.MeshServer); err != nil || u.Scheme != "https" || u.Host == "" {
			errs = append(errs, fmt.Errorf("--mesh-server %q is not an https URL", o.MeshServer))
		}
	}
	if o.StartupTaint != "" {
		if problems := validation.IsQualifiedName(o.StartupTaint); len(problems) > 0 {
			errs = append(errs, fmt.Errorf("--startup-taint %q is no key of a taint: %s", o.StartupTaint, strings.Join(problems, "; ")))
		}
		if o.NodeName == "" {
			errs = append(errs, errors.New("--startup-taint needs --node-name"))
		}
	}
	if o.ServiceSeries < 0 {
		errs = append(errs, fmt.Errorf("--max-service-series %d is negative", o.ServiceSeries))
	}
	if o.StaleAfter < time.Second {
		errs = append(errs, fmt.Errorf("--stale-after %s is less than a second", o.StaleAfter))
	}
	return errors.Join(errs...)
}

// Run runs the agent until ctx ends.
func (o *Options) Run(ctx context.Context) error {
	if err := o.Validate(); err != nil {
		return err
	}
	root := o.CgroupRoot
	if root == "" {
		var err error
		if root, err = findCgroupRoot(usualRoots); err != nil {
			return err
		}
	}
	// The loop attaches to the cgroups, and tries again where it may not: what other
	// cgroups have must not stop with it.
	kernel, err := datapath.Open(datapath.Config{
		PinDir:     o.pinDir(),
		StateDir:   o.StateDir,
		Sizes:      o.Sizes,
		StaleAfter: o.StaleAfter,

		KeepStaleUDP: !o.DestroyStaleUDP,
		Proc:         o.Proc,
		OnStaleSweep: logSweeps(klog.FromContext(ctx)),
	})
	if errors.Is(err, datapath.ErrLocked) {
		return fmt.Errorf("%w on this node: %w; stop it first (lslocks shows its process), or give this one a --bpffs and a --state-dir of its own", ErrRunning, err)
	} else if err != nil {
		return fmt.Errorf("opening the data path: %w", err)
	}
	defer kernel.Close()
	if sizes := kernel.Sizes(); sizes != o.Sizes {
		klog.FromContext(ctx).Info("The maps are larger than asked for, as what they hold needs it; they shrink at a later start",
			"sizes", sizes, "asked", o.Sizes)
	}
	sizes := kernel.Sizes()
	klog.FromContext(ctx).Info("The maps have room, and take the kernel's memory whether it is used or not",
		"frontends", sizes.Frontends, "backends", sizes.Backends, "slots", sizes.Slots, "MiB", sizes.Memory()>>20)

	if SkipServiceChains(o.SkipServiceChains) == SkipOff {
		// An agent before this one may have been asked for it.
		if err := bypass.Remove(); err != nil {
			klog.FromContext(ctx).Error(err, "Cannot remove the table of nftables of an earlier agent, if there is one")
		}
	}
	config, err := o.restConfig()
	if err != nil {
		return err
	}
	return o.RunWith(ctx, config, eBPF{kernel}, root)
}

// logSweeps returns a function that logs what looks for stale UDP sockets have come to:
// what goes wrong once, as long as it is the same.
func logSweeps(logger klog.Logger) func(datapath.StaleSweep) {
	last := ""
	return func(sweep datapath.StaleSweep) {
		if sweep.Destroyed > 0 {
			logger.Info("Destroyed UDP sockets that were connected to backends which are gone; their applications can connect again",
				"sockets", sweep.Destroyed, "namespaces", sweep.Netns, "took", sweep.Took)
		}
		logger.V(4).Info("Looked for UDP sockets that are connected to backends which are gone", "by", sweep.By, "found", sweep.Found, "took", sweep.Took)
		if sweep.Err != nil && sweep.Err.Error() != last {
			last = sweep.Err.Error()
			logger.Error(sweep.Err, "UDP sockets may stay connected to backends which are gone, until their applications connect again",
				"sockets", sweep.Failed, "by", sweep.By)
		}
	}
}

// RunWith runs the agent with the given way to kube-apiserver and kernel.
func (o *Options) RunWith(ctx context.Context, config *rest.Config, kernel Kernel, cgroupRoot string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	logger := klog.FromContext(ctx)

	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("making a client of kube-apiserver: %w", err)
	}
	meta, err := metadata.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("making a metadata client of kube-apiserver: %w", err)
	}
	state := source.NewState(source.Config{
		Cluster:    o.ClusterName,
		Namespace:  o.Namespace,
		Node:       o.NodeName,
		Policy:     policy.Reader{Cilium: o.CiliumAnnotations == "on"},
		CiliumAuto: o.CiliumAnnotations == "auto",

		LoadBalancerIPs: o.LoadBalancerIPs,
	})
	// What the node itself has must be known before anything is programmed.
	bound, err := nodeaddr.List()
	if err != nil {
		logger.Error(err, "What the node itself has is not known; this will be tried again")
	}
	state.SetBound(bound)

	server, serverName := o.MeshServer, meshService+"."+o.Namespace+".svc"
	name := desired.Name{Namespace: o.Namespace, Name: meshService}
	addresses := func() []netip.AddrPort { return state.MeshService(name) }
	if server == "" {
		server = "https://" + serverName
	} else {
		addresses = nil // the URL says it
	}
	reach, err := source.NewReach(serverName, addresses, config)
	if err != nil {
		return err
	}
	var ca *source.Watches
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	if o.MeshCAFile != "" {
		group.Go(func() { followCA(ctx, o.MeshCAFile, reach) })
	} else {
		ca = source.NewCA(kube, o.Namespace, caConfigMap, func(bundle []byte) {
			if err := reach.SetCA(bundle); err != nil {
				logger.Error(err, "Ignored the ConfigMap with the CA of the mesh API", "configMap", klog.KRef(o.Namespace, caConfigMap))
			}
		})
	}
	mesh, err := versioned.NewForConfig(reach.Config(server, config))
	if err != nil {
		return fmt.Errorf("making a client of the mesh API: %w", err)
	}

	group.Go(func() { nodeaddr.Watch(ctx, bound, state.SetBound) })
	if o.NodeName != "" {
		zone := source.NewZone(state, meta, o.NodeName)
		group.Go(func() { zone.Run(ctx) })
	}
	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	defer broadcaster.Shutdown()
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: kube.CoreV1().Events("")})
	agent := New(Config{
		Cluster:    o.ClusterName,
		StateDir:   o.StateDir,
		CgroupRoot: cgroupRoot,
		Kernel:     kernel,
		State:      state,

		StartupTaint: o.StartupTaint,
		Node:         o.NodeName,
		Kube:         kube,
		Events:       broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "mesh-agent", Host: o.NodeName}),
		PodOptOut:    o.PodOptOut && o.NodeName != "",
		Meta:         meta,

		SkipServiceChains: SkipServiceChains(o.SkipServiceChains),
		ServiceSeries:     o.ServiceSeries,
		PerBackendMetrics: o.PerBackendMetrics,

		Health:     o.MetricsAddress,
		Local:      source.NewLocal(state, kube, meta, o.Namespace, reach.Moved),
		Mesh:       source.NewMesh(state, mesh),
		CA:         ca,
		MeshClient: mesh,
		Timing:     Timing{Heartbeat: min(10*time.Second, o.StaleAfter/6)},
	})
	if o.MetricsAddress != "" && o.MetricsAddress != "0" {
		// A port that someone else has must not stop the data path: the kubelet will
		// say that the agent is not ready.
		group.Go(func() {
			for ctx.Err() == nil {
				if err := agent.serve(ctx, o.MetricsAddress); err != nil {
					logger.Error(err, "Metrics and health are not served; this will be tried again")
				}
				pause(ctx, 5*time.Second)
			}
		})
	}
	logger.Info("Started", "cluster", o.ClusterName, "node", o.NodeName, "cgroups", cgroupRoot, "bpffs", o.BPFFS)
	agent.Run(ctx)
	logger.Info("Stopped; the kernel's table stays at work")
	return nil
}

// restConfig returns how to reach kube-apiserver.
func (o *Options) restConfig() (*rest.Config, error) {
	var config *rest.Config
	var err error
	if o.Kubeconfig != "" {
		config, err = clientcmd.BuildConfigFromFlags(o.KubeAPIServer, o.Kubeconfig)
	} else if config, err = rest.InClusterConfig(); err == nil && o.KubeAPIServer != "" {
		config.Host = o.KubeAPIServer
	}
	if err != nil {
		return nil, fmt.Errorf("finding kube-apiserver: %w", err)
	}
	config.UserAgent = "mesh-agent"
	// A handful of watches; what limits them is their own backoff.
	config.QPS = -1
	config.ContentType = "application/vnd.kubernetes.protobuf"
	config.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	return config, nil
}

// followCA reads the CA file, and again whenever it has changed.
func followCA(ctx context.Context, path string, reach *source.Reach) {
	logger := klog.FromContext(ctx)
	var last string
	for ctx.Err() == nil {
		bundle, err := os.ReadFile(path)
		if err == nil && string(bundle) != last {
			last = string(bundle)
			err = reach.SetCA(bundle)
		}
		if err != nil {
			logger.Error(err, "Cannot take up the CA of the mesh API", "file", path)
		}
		pause(ctx, 10*time.Second)
	}
}
