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

// Package controlplane runs what a cluster's control plane consists of as far as
// the mesh needs it, for a test: a real etcd, a real kube-apiserver and this
// module's mesh-apiserver, on free loopback ports, registered with each other by the
// manifests that are shipped. All of it ends with the test.
//
//	plane := controlplane.Start(t, controlplane.Options{})
//	core := kubernetes.NewForConfigOrDie(plane.Kube)   // Services, EndpointSlices, ...
//	people := meshclient.NewForConfigOrDie(plane.Kube) // mesh.io through the aggregator
//	direct := meshclient.NewForConfigOrDie(plane.Mesh) // mesh.io as controllers and agents do it
//	kube, mesh := plane.User(t, "alice", "developers") // the same two doors for another user
//	controller := plane.ServiceAccount(t, "mesh-controller")
//
// Start returns when the mesh API is available through both doors. The namespace
// mesh-system and the roles of artifacts/manifests/rbac.yaml exist. There is no
// controller manager: nobody makes EndpointSlices for Services, deletes the content
// of a namespace, or adds to the roles view, edit and admin.
package controlplane

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	aggregator "k8s.io/kube-aggregator/pkg/client/clientset_generated/clientset"
)

const (
	// Namespace is where the mesh's own objects are.
	Namespace = "mesh-system"
	// MeshServerName is the name in the mesh API's certificate, whatever its address.
	MeshServerName = "mesh-apiserver.mesh-system.svc"
	// APIService is the registration of the mesh API.
	APIService = "v1alpha1.mesh.io"

	startTimeout = 2 * time.Minute
)

// Options changes what Start runs. The zero value is the usual control plane.
type Options struct {
	// ExternalMeshEtcd gives the mesh API an etcd process of its own, MeshEtcd, in
	// the place of the embedded one.
	ExternalMeshEtcd bool
	// MeshEtcdTLS makes that etcd ask for certificates, and show one.
	MeshEtcdTLS bool
	// MeshArgs are further flags of mesh-apiserver.
	MeshArgs []string
	// KubeArgs are further flags of kube-apiserver.
	KubeArgs []string
	// WithoutMesh leaves out mesh-apiserver and its registration.
	WithoutMesh bool
}

// ControlPlane is a running control plane.
type ControlPlane struct {
	// Dir is the folder with all files. Its path is short.
	Dir string
	// Kube is an administrator's access to kube-apiserver, and through it to the mesh API.
	Kube *rest.Config
	// Mesh is an administrator's access to mesh-apiserver itself.
	Mesh *rest.Config
	// MeshDataDir is the folder of the embedded etcd.
	MeshDataDir string

	Etcd, MeshEtcd, KubeAPIServer, MeshAPIServer *Process

	options  Options
	clients  *authority
	kubeURL  string
	kubeCA   string
	meshPort int
	binary   string
}

// Start runs a control plane.
func Start(t testing.TB, options Options) *ControlPlane {
	t.Helper()
	kubeAPIServer, etcd := Binary(t, "kube-apiserver"), Binary(t, "etcd")
	dir, err := os.MkdirTemp("", "plane")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	c := &ControlPlane{Dir: dir, MeshDataDir: filepath.Join(dir, "mesh"), options: options, clients: newAuthority(t, dir, "client-ca")}

	etcdURL := ""
	c.Etcd, etcdURL = runEtcd(t, etcd, dir, "kube-etcd", nil)
	c.startKube(t, kubeAPIServer, etcdURL)
	if options.WithoutMesh {
		return c
	}
	if options.ExternalMeshEtcd {
		c.startMeshEtcd(t, etcd)
	} else {
		c.options.MeshArgs = append([]string{"--data-dir=" + c.MeshDataDir}, options.MeshArgs...)
	}
	c.binary = Build(t, "mesh-apiserver")
	c.meshPort = FreePort(t)
	c.register(t)
	c.StartMesh(t)
	c.WaitAvailable(t)
	return c
}

// FreePort is a TCP port that nobody listens on.
func FreePort(t testing.TB) int {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port
}

// Eventually waits for a condition and fails the test with its last answer.
func Eventually(t testing.TB, timeout time.Duration, what string, condition func(context.Context) error) {
	t.Helper()
	var last error
	err := wait.PollUntilContextTimeout(t.Context(), 100*time.Millisecond, timeout, true, func(ctx context.Context) (bool, error) {
		last = condition(ctx)
		if errors.Is(last, errEnded) {
			return false, last // it will not come back
		}
		return last == nil, nil
	})
	if err != nil {
		t.Fatalf("waiting for %s: %v", what, last)
	}
}

func (c *ControlPlane) startMeshEtcd(t testing.TB, binary string) {
	t.Helper()
	var tls []string
	var args []string
	if c.options.MeshEtcdTLS {
		ca := newAuthority(t, c.Dir, "etcd-ca")
		cert, key := ca.issue(t, "etcd-server", "etcd", nil, x509.ExtKeyUsageServerAuth)
		tls = []string{"--cert-file=" + cert, "--key-file=" + key, "--client-cert-auth", "--trusted-ca-file=" + ca.file}
		cert, key = ca.issue(t, "etcd-client", "mesh-apiserver", nil, x509.ExtKeyUsageClientAuth)
		args = []string{"--etcd-cafile=" + ca.file, "--etcd-certfile=" + cert, "--etcd-keyfile=" + key}
	}
	process, url := runEtcd(t, binary, c.Dir, "mesh-etcd", tls)
	c.MeshEtcd = process
	c.options.MeshArgs = slices.Concat([]string{"--etcd-servers=" + url}, args, c.options.MeshArgs)
}

func runEtcd(t testing.TB, binary, dir, name string, tls []string) (*Process, string) {
	t.Helper()
	scheme := "http"
	if len(tls) > 0 {
		scheme = "https"
	}
	url := fmt.Sprintf("%s://127.0.0.1:%d", scheme, FreePort(t))
	peer := fmt.Sprintf("http://127.0.0.1:%d", FreePort(t))
	health := fmt.Sprintf("http://127.0.0.1:%d", FreePort(t))
	process := Run(t, dir, binary, append([]string{
		"--name=" + name, "--data-dir=" + filepath.Join(dir, name), "--log-level=warn",
		"--listen-client-urls=" + url, "--advertise-client-urls=" + url, "--listen-metrics-urls=" + health,
		"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer, "--initial-cluster=" + name + "=" + peer,
	}, tls...)...)
	Eventually(t, startTimeout, name, func(context.Context) error {
		if err := alive(process); err != nil {
			return err
		}
		answer, err := http.Get(health + "/health")
		if err != nil {
			return err
		}
		return answer.Body.Close()
	})
	return process, url
}

func (c *ControlPlane) startKube(t testing.TB, binary, etcdURL string) {
	t.Helper()
	servers := newAuthority(t, c.Dir, "kube-ca")
	proxies := newAuthority(t, c.Dir, "front-proxy-ca")
	cert, key := servers.issue(t, "kube-apiserver", "kube-apiserver", nil, x509.ExtKeyUsageServerAuth)
	proxyCert, proxyKey := proxies.issue(t, "front-proxy", "front-proxy", nil, x509.ExtKeyUsageClientAuth)
	_, accountKey := servers.issue(t, "service-accounts", "service-accounts", nil, x509.ExtKeyUsageClientAuth)
	port := FreePort(t)
	c.kubeURL, c.kubeCA = fmt.Sprintf("https://127.0.0.1:%d", port), servers.file
	c.KubeAPIServer = Run(t, c.Dir, binary, append([]string{
		"--etcd-servers=" + etcdURL,
		"--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", port),
		"--tls-cert-file=" + cert, "--tls-private-key-file=" + key,
		"--client-ca-file=" + c.clients.file,
		"--authorization-mode=RBAC",
		"--service-cluster-ip-range=10.96.0.0/16",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + accountKey, "--service-account-signing-key-file=" + accountKey,
		"--endpoint-reconciler-type=none",
		// Without a controller manager no namespace has its default account.
		"--disable-admission-plugins=ServiceAccount",
		"--requestheader-client-ca-file=" + proxies.file,
		"--requestheader-allowed-names=front-proxy",
		"--requestheader-username-headers=X-Remote-User",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file=" + proxyCert, "--proxy-client-key-file=" + proxyKey,
	}, c.options.KubeArgs...)...)

	c.Kube, _ = c.User(t, "admin", "system:masters")
	client := kubernetes.NewForConfigOrDie(c.Kube)
	Eventually(t, startTimeout, "kube-apiserver", func(ctx context.Context) error {
		if err := alive(c.KubeAPIServer); err != nil {
			return err
		}
		return client.RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	})
}

// register applies the manifests. The Service leads to the test's loopback port.
func (c *ControlPlane) register(t testing.TB) {
	t.Helper()
	manifests := filepath.Join(Root(t), "artifacts", "manifests")
	c.MustKubectl(t, "apply", "-f", filepath.Join(manifests, "namespace.yaml"))
	c.MustKubectl(t, "apply", "-f", filepath.Join(manifests, "rbac.yaml"))
	// No EndpointSlice may hold a loopback address, but a Service may be a name.
	c.MustKubectl(t, "create", "service", "externalname", "mesh-apiserver", "--namespace="+Namespace, "--external-name=localhost")
	content, err := os.ReadFile(filepath.Join(manifests, "apiservice.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	edited := strings.Replace(string(content), "port: 443", fmt.Sprintf("port: %d", c.meshPort), 1)
	file := filepath.Join(c.Dir, "apiservice.yaml")
	if err := os.WriteFile(file, []byte(edited), 0o600); err != nil {
		t.Fatal(err)
	}
	c.MustKubectl(t, "apply", "-f", file)
}

// StartMesh runs mesh-apiserver, again if it was stopped, and waits until it is ready.
func (c *ControlPlane) StartMesh(t testing.TB) {
	t.Helper()
	account := c.ServiceAccountKube(t, "mesh-apiserver")
	c.MeshAPIServer = Run(t, c.Dir, c.binary, append([]string{
		"--kubeconfig=" + c.Kubeconfig(t, account),
		"--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", c.meshPort),
	}, c.options.MeshArgs...)...)
	Eventually(t, startTimeout, "mesh-apiserver", func(ctx context.Context) error {
		if err := alive(c.MeshAPIServer); err != nil {
			return err
		}
		if c.Mesh == nil {
			_, mesh := c.User(t, "admin", "system:masters")
			if len(mesh.CAData) == 0 {
				return fmt.Errorf("ConfigMap %s/mesh-ca is not there yet", Namespace)
			}
			c.Mesh = mesh
		}
		client, err := kubernetes.NewForConfig(c.Mesh)
		if err != nil {
			return err
		}
		return client.RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	})
}

// MeshCommand runs a command of mesh-apiserver, which it is given input for.
func (c *ControlPlane) MeshCommand(t testing.TB, input []byte, args ...string) (output []byte, messages string, err error) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	command := exec.CommandContext(t.Context(), c.binary, args...)
	command.Stdin, command.Stdout, command.Stderr = bytes.NewReader(input), &stdout, &stderr
	err = command.Run()
	return stdout.Bytes(), stderr.String(), err
}

// MeshArgs are the flags of mesh-apiserver beside those for its own address and the
// cluster; --etcd-servers or --data-dir among them says where the store is.
func (c *ControlPlane) MeshArgs() []string { return slices.Clone(c.options.MeshArgs) }

// WaitAvailable waits until the mesh API is available through the aggregator.
func (c *ControlPlane) WaitAvailable(t testing.TB) {
	t.Helper()
	services := aggregator.NewForConfigOrDie(c.Kube).ApiregistrationV1().APIServices()
	Eventually(t, startTimeout, "APIService "+APIService, func(ctx context.Context) error {
		if err := alive(c.MeshAPIServer); err != nil {
			return err
		}
		service, err := services.Get(ctx, APIService, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, condition := range service.Status.Conditions {
			if condition.Type == apiregistrationv1.Available && condition.Status == apiregistrationv1.ConditionTrue {
				// kubectl finds the resources a moment later.
				_, lists, err := kubernetes.NewForConfigOrDie(c.Kube).Discovery().ServerGroupsAndResources()
				for _, list := range lists {
					if list.GroupVersion == "mesh.io/v1alpha1" && len(list.APIResources) > 0 {
						return nil
					}
				}
				return errors.Join(errors.New("not in the discovery document"), err)
			}
		}
		return fmt.Errorf("its conditions are %v", service.Status.Conditions)
	})
}

// User returns a user's access to kube-apiserver and to mesh-apiserver, by a
// client certificate. The user has the rights that the test binds.
func (c *ControlPlane) User(t testing.TB, name string, groups ...string) (kube, mesh *rest.Config) {
	t.Helper()
	file := "user-" + strings.ReplaceAll(name, ":", "-")
	cert, key := c.clients.issue(t, file, name, groups, x509.ExtKeyUsageClientAuth)
	kube = &rest.Config{
		Host:            c.kubeURL,
		TLSClientConfig: rest.TLSClientConfig{CAFile: c.kubeCA, CertFile: cert, KeyFile: key},
		QPS:             -1,
	}
	mesh = &rest.Config{
		Host:            fmt.Sprintf("https://127.0.0.1:%d", c.meshPort),
		TLSClientConfig: rest.TLSClientConfig{CAData: c.MeshCA(), ServerName: MeshServerName, CertFile: cert, KeyFile: key},
		QPS:             -1,
	}
	return kube, mesh
}

// ServiceAccount is User for a service account in the namespace of the mesh.
func (c *ControlPlane) ServiceAccount(t testing.TB, name string) (kube, mesh *rest.Config) {
	t.Helper()
	return c.User(t, "system:serviceaccount:"+Namespace+":"+name, "system:serviceaccounts", "system:serviceaccounts:"+Namespace)
}

// ServiceAccountKube is the first result of ServiceAccount.
func (c *ControlPlane) ServiceAccountKube(t testing.TB, name string) *rest.Config {
	t.Helper()
	kube, _ := c.ServiceAccount(t, name)
	return kube
}

// MeshCA is what a client of mesh-apiserver has to trust now, or nothing if that
// has not been published yet.
func (c *ControlPlane) MeshCA() []byte {
	if c.Kube == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	found, err := kubernetes.NewForConfigOrDie(c.Kube).CoreV1().ConfigMaps(Namespace).Get(ctx, "mesh-ca", metav1.GetOptions{})
	if err != nil {
		return nil
	}
	return []byte(found.Data["ca.crt"])
}

// Kubeconfig writes a kubeconfig for an access and returns its path.
func (c *ControlPlane) Kubeconfig(t testing.TB, config *rest.Config) string {
	t.Helper()
	kubeconfig := clientcmdapi.NewConfig()
	kubeconfig.Clusters["c"] = &clientcmdapi.Cluster{
		Server: config.Host, CertificateAuthority: config.CAFile, CertificateAuthorityData: config.CAData, TLSServerName: config.ServerName,
	}
	kubeconfig.AuthInfos["u"] = &clientcmdapi.AuthInfo{ClientCertificate: config.CertFile, ClientKey: config.KeyFile, Token: config.BearerToken}
	kubeconfig.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	kubeconfig.CurrentContext = "x"
	file, err := os.CreateTemp(c.Dir, "kubeconfig-*")
	if err != nil {
		t.Fatal(err)
	}
	_ = file.Close()
	if err := clientcmd.WriteToFile(*kubeconfig, file.Name()); err != nil {
		t.Fatal(err)
	}
	return file.Name()
}

// Kubectl runs the real kubectl with an access and returns what it printed.
func (c *ControlPlane) Kubectl(t testing.TB, config *rest.Config, args ...string) (output string, err error) {
	t.Helper()
	command := exec.Command(Binary(t, "kubectl"), append([]string{"--kubeconfig=" + c.Kubeconfig(t, config), "--cache-dir=" + filepath.Join(c.Dir, "cache")}, args...)...)
	combined, err := command.CombinedOutput()
	return string(combined), err
}

// MustKubectl runs kubectl as the administrator, through the aggregator.
func (c *ControlPlane) MustKubectl(t testing.TB, args ...string) string {
	t.Helper()
	output, err := c.Kubectl(t, c.Kube, args...)
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, output)
	}
	return output
}

// errEnded says that a process that a condition needs is gone.
var errEnded = errors.New("has ended")

func alive(process *Process) error {
	select {
	case <-process.Exited():
		return fmt.Errorf("%s %w: %s", process.Name, errEnded, tail(process.Log(), 5))
	default:
		return nil
	}
}
