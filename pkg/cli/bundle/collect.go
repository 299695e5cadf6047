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

package bundle

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"mesh.io/clustermesh/pkg/cli/remote"
	"mesh.io/clustermesh/pkg/version"
)

// Options bound what is collected.
type Options struct {
	Path string
	// LogBytes and LogLines are the most of one container's log.
	LogBytes, LogLines int64
	// MaxAgents is how many agents are asked for their tables.
	MaxAgents int
}

const (
	parallel = 6
	// askFor bounds one question to a pod.
	askFor = 20 * time.Second
	// maxObjects is the most objects of one kind.
	maxObjects = 2000
	page       = 500

	nameLabel = "app.kubernetes.io/name"
)

// kind is a resource whose objects are collected.
type kind struct {
	schema.GroupVersionResource
	// Namespace: "" for all of them; selector chooses among them.
	namespace, selector string
	file                string
}

func kinds(namespace string) []kind {
	const ours = "app.kubernetes.io/part-of=clustermesh"
	mesh := func(resource string) kind {
		return kind{schema.GroupVersionResource{Group: "mesh.io", Version: "v1alpha1", Resource: resource}, "", "", "mesh.io/" + resource + ".json"}
	}
	of := func(group, version, resource, namespace, selector string) kind {
		return kind{schema.GroupVersionResource{Group: group, Version: version, Resource: resource}, namespace, selector, "kubernetes/" + resource + ".json"}
	}
	const rbac = "rbac.authorization.k8s.io"
	return []kind{
		mesh("meshclusters"), mesh("meshmembers"), mesh("globalservices"), mesh("servicepolicies"),
		mesh("exportedservices"), mesh("exportedendpointslices"), mesh("importedservices"), mesh("importedendpointslices"),
		of("", "v1", "nodes", "", ""), of("", "v1", "pods", namespace, ""), of("", "v1", "services", namespace, ""), of("", "v1", "configmaps", namespace, ""),
		of("", "v1", "serviceaccounts", namespace, ""), of("", "v1", "events", namespace, ""), of("", "v1", "persistentvolumeclaims", namespace, ""),
		of("apps", "v1", "statefulsets", namespace, ""), of("apps", "v1", "deployments", namespace, ""), of("apps", "v1", "daemonsets", namespace, ""),
		of("apps", "v1", "replicasets", namespace, ""), of("apps", "v1", "controllerrevisions", namespace, ""),
		of("discovery.k8s.io", "v1", "endpointslices", namespace, ""), of("coordination.k8s.io", "v1", "leases", namespace, ""),
		of("policy", "v1", "poddisruptionbudgets", namespace, ""), of("networking.k8s.io", "v1", "networkpolicies", namespace, ""),
		of(rbac, "v1", "roles", namespace, ""), of(rbac, "v1", "rolebindings", namespace, ""),
		of(rbac, "v1", "clusterroles", "", ours), of(rbac, "v1", "clusterrolebindings", "", ours),
		of("apiregistration.k8s.io", "v1", "apiservices", "", ours), of("scheduling.k8s.io", "v1", "priorityclasses", "", ours),
	}
}

// collector is one bundle under way.
type collector struct {
	Options
	*remote.Cluster
	archive *archive
	pods    []corev1.Pod
}

// Collect writes the bundle of a cluster. What cannot be had is in the manifest; the
// error is of a file that could not be written.
func Collect(ctx context.Context, c *remote.Cluster, o Options, note func(format string, args ...any)) (manifest *Manifest, err error) {
	file, err := create(o.Path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if closed := file.Close(); err == nil && closed != nil {
			err = closed
		}
		// A half one would be taken for a whole one.
		if err != nil {
			manifest, err = nil, errors.Join(fmt.Errorf("writing %s: %w", o.Path, err), os.Remove(o.Path))
		}
	}()
	now := time.Now()
	redactor := &Redactor{}
	if c.REST.BearerToken != "" {
		redactor.add([]byte(c.REST.BearerToken))
	}
	a := newArchive(file, "clustermesh-"+now.UTC().Format("20060102-150405"), redactor, now)
	a.manifest = Manifest{Made: now.UTC(), Meshctl: version.String(), Context: c.Context, Missing: []Missing{}}
	k := &collector{Options: o, Cluster: c, archive: a}

	note("secrets, so that none is in the bundle")
	k.secrets(ctx)
	note("objects")
	k.versions(ctx)
	k.objects(ctx)
	note("logs")
	k.listPods(ctx)
	k.logs(ctx)
	note("what the programs say of themselves")
	k.servers(ctx)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err := a.close(); err != nil {
		return nil, err
	}
	return &a.manifest, nil
}

// secrets learns what must not be in the bundle, and outlines the Secrets.
func (k *collector) secrets(ctx context.Context) {
	list, err := k.Kube.CoreV1().Secrets(k.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		k.archive.missing("the Secrets' names and sizes", err)
		return
	}
	outlines := make([]outline, 0, len(list.Items))
	for i := range list.Items {
		k.archive.redactor.Learn(&list.Items[i])
		outlines = append(outlines, outlineOf(&list.Items[i]))
	}
	k.archive.json("kubernetes/secrets-outline.json", outlines)
}

func (k *collector) versions(context.Context) {
	info, err := k.Kube.Discovery().ServerVersion()
	if err != nil {
		k.archive.missing("the version of Kubernetes", err)
		return
	}
	k.archive.json("versions.json", map[string]any{"meshctl": version.String(), "kubernetes": info})
}

// each runs tasks, a few at once.
func each(tasks []func()) {
	var group sync.WaitGroup
	slots := make(chan struct{}, parallel)
	for _, task := range tasks {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			task()
		})
	}
	group.Wait()
}

func (k *collector) objects(ctx context.Context) {
	client, err := dynamic.NewForConfig(k.REST)
	if err != nil {
		k.archive.missing("all objects", err)
		return
	}
	var tasks []func()
	for _, kind := range kinds(k.Namespace) {
		tasks = append(tasks, func() {
			items, cut, err := list(ctx, client, kind)
			switch {
			case apierrors.IsNotFound(err):
				k.archive.missing(kind.file, errors.New("the cluster does not serve this API"))
			case err != nil:
				k.archive.missing(kind.file, err)
			default:
				k.archive.json(kind.file, items)
				if cut {
					k.archive.missing(kind.file, fmt.Errorf("only the first %d objects were taken", len(items)))
				}
			}
		})
	}
	each(tasks)
}

func list(ctx context.Context, client dynamic.Interface, kind kind) (items []map[string]any, cut bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	options := metav1.ListOptions{Limit: page, LabelSelector: kind.selector}
	items = []map[string]any{}
	for {
		var got *unstructured.UnstructuredList
		if kind.namespace != "" {
			got, err = client.Resource(kind.GroupVersionResource).Namespace(kind.namespace).List(ctx, options)
		} else {
			got, err = client.Resource(kind.GroupVersionResource).List(ctx, options)
		}
		if err != nil {
			return nil, false, err
		}
		for i := range got.Items {
			object := &got.Items[i]
			object.SetManagedFields(nil)
			// What was applied stands in the object itself.
			annotations := object.GetAnnotations()
			delete(annotations, corev1.LastAppliedConfigAnnotation)
			object.SetAnnotations(annotations)
			items = append(items, object.Object)
		}
		options.Continue = got.GetContinue()
		if options.Continue == "" {
			return items, false, nil
		}
		if len(items) >= maxObjects {
			return items, true, nil
		}
	}
}

func (k *collector) listPods(ctx context.Context) {
	pods, err := k.Kube.CoreV1().Pods(k.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		k.archive.missing("the logs of the mesh's pods", err)
		return
	}
	k.pods = pods.Items
	slices.SortFunc(k.pods, func(a, b corev1.Pod) int { return bytes.Compare([]byte(a.Name), []byte(b.Name)) })
}

func (k *collector) logs(ctx context.Context) {
	var tasks []func()
	for i := range k.pods {
		pod := &k.pods[i]
		restarted := map[string]bool{}
		for _, status := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
			restarted[status.Name] = status.RestartCount > 0
		}
		for _, container := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
			for _, previous := range []bool{false, true} {
				if previous && !restarted[container.Name] {
					continue
				}
				tasks = append(tasks, func() { k.log(ctx, pod.Name, container.Name, previous) })
			}
		}
	}
	each(tasks)
}

func (k *collector) log(ctx context.Context, pod, container string, previous bool) {
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	file := fmt.Sprintf("logs/%s/%s.log", pod, container)
	if previous {
		file = fmt.Sprintf("logs/%s/%s.previous.log", pod, container)
	}
	stream, err := k.Kube.CoreV1().Pods(k.Namespace).GetLogs(pod, &corev1.PodLogOptions{
		Container: container, Previous: previous, Timestamps: true, TailLines: &k.LogLines,
	}).Stream(ctx)
	if err != nil {
		k.archive.missing(file, err)
		return
	}
	defer stream.Close()
	content, cut, err := tail(stream, int(k.LogBytes))
	if err != nil {
		k.archive.missing(file, fmt.Errorf("it was not read to the end: %w", err))
	}
	k.archive.add(file, content, cut)
}

// tail keeps the end of a stream, from the beginning of a line.
func tail(r io.Reader, most int) (content []byte, cut bool, err error) {
	buffer := make([]byte, 64<<10)
	for {
		n, err := r.Read(buffer)
		content = append(content, buffer[:n]...)
		if len(content) > 2*most {
			content, cut = append([]byte(nil), content[len(content)-most:]...), true
		}
		if err != nil {
			if len(content) > most {
				content, cut = content[len(content)-most:], true
			}
			if cut {
				if end := bytes.IndexByte(content, '\n'); end >= 0 {
					content = content[end+1:]
				}
			}
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return content, cut, err
		}
	}
}

// question is something that a program is asked over HTTP.
type question struct {
	program string
	port    int
	path    string
	file    string
	tls     bool
	// certificate: it asks who one is.
	certificate bool
}

var questions = []question{
	{program: "mesh-agent", port: 9476, path: "/readyz?verbose", file: "readyz.txt"},
	{program: "mesh-agent", port: 9476, path: "/metrics", file: "metrics.txt"},
	{program: "mesh-controller", port: 8080, path: "/readyz", file: "readyz.txt"},
	{program: "mesh-controller", port: 8080, path: "/metrics", file: "metrics.txt"},
	{program: "mesh-apiserver", port: 6443, path: "/readyz?verbose", file: "readyz.txt", tls: true},
	{program: "mesh-apiserver", port: 6443, path: "/metrics", file: "metrics.txt", tls: true, certificate: true},
}

// servers asks the programs about themselves.
func (k *collector) servers(ctx context.Context) {
	trust, trustErr := k.trust(ctx)
	var tasks []func()
	agents := 0
	for i := range k.pods {
		pod := &k.pods[i]
		program := pod.Labels[nameLabel]
		if pod.Status.Phase != corev1.PodRunning {
			continue
		}
		folder := "programs/" + pod.Name + "/"
		if program == "mesh-agent" {
			if agents++; agents > k.MaxAgents {
				continue
			}
			tasks = append(tasks, func() {
				ctx, cancel := context.WithTimeout(ctx, askFor)
				defer cancel()
				content, err := k.Exec(ctx, k.Namespace, pod.Name, "mesh-agent", "mesh-agent", "dump", "-o", "json")
				if err != nil {
					k.archive.missing(folder+"dump.json", err)
					return
				}
				k.archive.add(folder+"dump.json", content, len(content) > maxFile)
			})
		}
		for _, q := range questions {
			if q.program == program {
				tasks = append(tasks, func() { k.ask(ctx, pod.Name, folder+q.file, q, trust, trustErr) })
			}
		}
	}
	each(tasks)
	if agents > k.MaxAgents {
		k.archive.missing("the tables of more agents", fmt.Errorf("%d of %d agents were asked (--max-agents)", k.MaxAgents, agents))
	}
}

func (k *collector) ask(ctx context.Context, pod, file string, q question, trust *tls.Config, trustErr error) {
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	var with *tls.Config
	if q.tls {
		if trustErr != nil {
			k.archive.missing(file, trustErr)
			return
		}
		with = trust
	}
	answer, err := k.Get(ctx, k.Namespace, pod, q.port, q.path, with, q.certificate)
	switch {
	case err != nil:
		k.archive.missing(file, err)
	case q.certificate && (answer.Status == 401 || answer.Status == 403):
		k.archive.missing(file, errors.New("the server gives it to whom it knows by a client certificate; a token is not sent to a pod"))
	default:
		k.archive.add(file, append(fmt.Appendf(nil, "# HTTP status %d\n", answer.Status), answer.Body...), false)
	}
}

// trust is how mesh-apiserver is known.
func (k *collector) trust(ctx context.Context) (*tls.Config, error) {
	ca, err := k.Kube.CoreV1().ConfigMaps(k.Namespace).Get(ctx, "mesh-ca", metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("reading the authority of the mesh API: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(ca.Data["ca.crt"])) {
		return nil, errors.New("ConfigMap mesh-ca has no certificate")
	}
	return &tls.Config{RootCAs: pool, ServerName: "mesh-apiserver." + k.Namespace + ".svc", MinVersion: tls.VersionTLS12}, nil
}
