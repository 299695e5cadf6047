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

package cli

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	chartv2 "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"mesh.io/clustermesh/artifacts/chart"
	"mesh.io/clustermesh/pkg/cli/preflight"
	"mesh.io/clustermesh/pkg/cli/release"
	"mesh.io/clustermesh/pkg/version"
)

const (
	// managedBy says, of an object, that meshctl made it.
	managedByLabel = "app.kubernetes.io/managed-by"
	managedByValue = "meshctl"
)

// installOptions are the flags of install and upgrade.
type installOptions struct {
	*options
	identity     preflight.Identity
	settings     []string
	files        []string
	resetValues  bool
	meshContexts []string
	skip         []string
	dryRun       bool
	wait         bool
	timeout      time.Duration
}

func (i *installOptions) addFlags(flags *pflag.FlagSet) {
	flags.StringArrayVar(&i.settings, "set", nil, "A value of the chart, as in persistence.size=8Gi. Can be given more than once.")
	flags.StringArrayVar(&i.files, "values", nil, "A file with values of the chart. Can be given more than once; later ones win.")
	flags.StringSliceVar(&i.meshContexts, "mesh-contexts", nil, "Contexts of clusters of the mesh, to ask whether the name and the ID are taken there.")
	flags.StringSliceVar(&i.skip, "skip-check", nil, "A check whose findings don't stop it, by name. Can be given more than once.")
	flags.BoolVar(&i.dryRun, "dry-run", false, "Check, and say what would be done, and do nothing.")
	flags.BoolVar(&i.wait, "wait", true, "Wait until the mesh works.")
	flags.DurationVar(&i.timeout, "timeout", 5*time.Minute, "How long to wait.")
}

func newInstall(o *options) *cobra.Command {
	i := &installOptions{options: o}
	command := &cobra.Command{
		Use:     "install",
		GroupID: groupSetup,
		Short:   "Install the mesh in a cluster",
		Long: `Installs the mesh in a cluster: checks first, says what it will do, does it, and waits
until the mesh works. A second install with the same values does nothing. What was stopped
in the middle is completed by the same command, or removed by "meshctl uninstall".

The mesh is installed as the Helm release "clustermesh", which helm can manage, too.`,
		Example: `  meshctl install --context cluster1 --cluster-name cluster1 --cluster-id 1
  meshctl install --context cluster2 --cluster-name cluster2 --cluster-id 2 --mesh-contexts cluster1
  meshctl install --context cluster1 --cluster-name cluster1 --cluster-id 1 --set persistence.type=hostPath --dry-run`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			for _, wrong := range []string{preflight.ValidName(i.identity.Name), preflight.ValidID(i.identity.ID)} {
				if wrong != "" {
					return usage("%s", wrong)
				}
			}
			return i.install(command.Context())
		},
	}
	command.Flags().StringVar(&i.identity.Name, "cluster-name", "", "The cluster's name, unique in the mesh: at most 32 lower-case letters, digits and dashes.")
	command.Flags().Int32Var(&i.identity.ID, "cluster-id", 0, "The cluster's ID, unique in the mesh: 1 to 65535.")
	i.addFlags(command.Flags())
	return command
}

func newUpgrade(o *options) *cobra.Command {
	i := &installOptions{options: o}
	command := &cobra.Command{
		Use:     "upgrade",
		GroupID: groupSetup,
		Short:   "Upgrade the mesh in a cluster to the version of meshctl",
		Long: `Upgrades the mesh in a cluster to the version of meshctl, and changes its values. It keeps
the values that were given before, and the cluster's name, ID and data. Open connections
stay; the nodes go on with what is programmed while their agents are replaced.`,
		Example: `  meshctl upgrade --context cluster1
  meshctl upgrade --context cluster1 --set controller.replicas=3
  meshctl upgrade --context cluster1 --dry-run`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error { return i.upgrade(command.Context()) },
	}
	i.addFlags(command.Flags())
	command.Flags().BoolVar(&i.resetValues, "reset-values", false, "Forget the values that were given before; the cluster keeps its name and ID.")
	return command
}

// begun is what an install or upgrade has found before it begins.
type begun struct {
	target *target
	store  *release.Store
	last   *release.Release
	chart  *chartv2.Chart
	// objects are those of the chart with the values that are wanted.
	objects []*unstructured.Unstructured
	// standing says which of the objects are there.
	standing standing
}

func (i *installOptions) begin() (*begun, error) {
	b := &begun{}
	var err error
	if b.target, err = i.target(); err != nil {
		return nil, err
	}
	if b.store, err = release.Open(b.target.REST, b.target.Config, b.target.Namespace); err != nil {
		return nil, err
	}
	if b.chart, err = release.Chart(version.String()); err != nil {
		return nil, err
	}
	return b, nil
}

// look reads the release that is there.
func (b *begun) look() (err error) {
	if b.last, err = b.store.Last(); err != nil && !apierrors.IsForbidden(err) {
		return fmt.Errorf("%q: %w", b.target.Context, err)
	}
	// To whom it is forbidden, the check of permissions says so, and more.
	return nil
}

// checked runs the checks, prints what they found, and fails if anything stands against it.
func (i *installOptions) checked(ctx context.Context, b *begun, p *progress, step release.Step, values map[string]any) error {
	var others []*target
	for _, name := range i.meshContexts {
		other, err := i.targetOf(name)
		if err != nil {
			return err
		}
		others = append(others, other)
	}
	var findings []preflight.Finding
	err := p.step("Checking "+b.target.Context, func(func(string, ...any)) error {
		facts, err := b.installFacts(ctx, i.identity, loader.MergeMaps(b.chart.Values, values), step, others)
		if err != nil {
			return err
		}
		findings = preflight.Run(facts)
		return preflight.Excuse(findings, i.skip)
	})
	sayFindings(p, findings)
	if err != nil {
		return err
	}
	if preflight.Failed(findings) {
		return errors.New("the mesh cannot be installed: see the checks that failed above; nothing was changed")
	}
	return nil
}

// sayFindings prints what the checks found that a person should know.
func sayFindings(p *progress, findings []preflight.Finding) {
	for _, f := range findings {
		switch f.Level {
		case preflight.Problem:
			p.say("  ✘ %s: %s.", f.Check, f.Message)
		case preflight.Note:
			p.say("  ! %s: %s.", f.Check, f.Message)
		default:
			continue
		}
		if f.Do != "" {
			p.say("    → %s", f.Do)
		}
	}
}

// withIdentity sets who the cluster is in the values.
func withIdentity(values map[string]any, identity preflight.Identity) (map[string]any, error) {
	said := identityOf(values)
	if said.Name != "" && said.Name != identity.Name || said.ID != 0 && said.ID != identity.ID {
		return nil, usage("the values say that the cluster is %s with the ID %d, and it is to be %s with the ID %d", said.Name, said.ID, identity.Name, identity.ID)
	}
	return loader.MergeMaps(values, map[string]any{"cluster": map[string]any{"name": identity.Name, "id": float64(identity.ID)}}), nil
}

// identityOf is who the values say that the cluster is.
func identityOf(values map[string]any) preflight.Identity {
	name, _ := release.At(values, "cluster", "name").(string)
	id, _ := release.At(values, "cluster", "id").(float64)
	return preflight.Identity{Name: name, ID: int32(max(min(id, math.MaxInt32), math.MinInt32))}
}

func (i *installOptions) install(ctx context.Context) error {
	b, err := i.begin()
	if err != nil {
		return err
	}
	p := newProgress(i.Err)
	values, err := release.Values(nil, i.files, i.settings)
	if err != nil {
		return codeError{err, ExitUsage}
	}
	if values, err = withIdentity(values, i.identity); err != nil {
		return err
	}
	if err := b.fill(values); err != nil {
		return err
	}
	if err := b.look(); err != nil {
		return err
	}
	context := b.target.Context
	undo := b.target.line("uninstall")
	step, err := b.settled(ctx, p, values)
	if err != nil {
		return err
	}
	if err := i.checked(ctx, b, p, step, values); err != nil {
		return untouched(ctx, err)
	}
	var missing []string
	switch {
	case step == release.StepNothing && len(b.standing.missing) > 0:
		p.say("The mesh is installed in %s already, and some of its objects are missing.", context)
		step, missing = release.StepUpgrade, b.standing.missing
	case step == release.StepNothing:
		p.say("The mesh is installed in %s already, as it is wanted: there is nothing to do.", context)
		return i.finish(ctx, b, p, false, undo)
	case step == release.StepUpgrade && b.last.Info.Status == "deployed":
		return fmt.Errorf("the mesh is installed in %s already, with other values or another version: use \"%s\" with what is to change; nothing was changed", context, b.target.line("upgrade"))
	}
	if err := b.render(values); err != nil {
		return err
	}
	announceInstall(p, context, b.target.Namespace, step, missing, b.chart.Metadata.AppVersion, undo)
	if i.dryRun {
		p.say("This was a dry run: nothing was changed.")
		return nil
	}
	if err := ctx.Err(); err != nil {
		return untouched(ctx, err)
	}
	err = p.step("Making the mesh's objects in "+context, func(note func(string, ...any)) error {
		if err := b.target.ensureNamespace(ctx); err != nil {
			return err
		}
		return b.apply(ctx, step, values, "installed by meshctl "+version.String())
	})
	if err != nil {
		return undoable(ctx, err, undo)
	}
	return i.finish(ctx, b, p, true, undo)
}

// announceInstall says what an install will do. missing are the objects that somebody has
// removed from one that is done.
func announceInstall(p *progress, context, namespace string, step release.Step, missing []string, version, undo string) {
	p.say("")
	p.say("In %s this will:", context)
	switch {
	case step == release.StepInstall:
		p.say("  - make namespace %s and, as the Helm release %s in it, the programs %s;", namespace, chart.Release, version)
	case len(missing) > 0:
		p.say("  - make what is missing: %s;", preflight.Listed(missing))
	default:
		p.say("  - complete the install in namespace %s that was stopped in the middle;", namespace)
	}
	p.say("  - register the API mesh.io, and let the peers reach it by Service mesh-apiserver-peer;")
	p.say("  - run an agent on each node, which programs the kernel. No Service is changed.")
	p.say("To undo it: %s", undo)
	p.say("")
}

func (i *installOptions) upgrade(ctx context.Context) error {
	b, err := i.begin()
	if err != nil {
		return err
	}
	switch b.last, err = b.store.Last(); {
	case apierrors.IsForbidden(err):
		return forbidden("read the Helm release (list secrets in " + b.target.Namespace + ")")
	case err != nil:
		return fmt.Errorf("%q: %w", b.target.Context, err)
	}
	context := b.target.Context
	if b.last == nil {
		return fmt.Errorf("there is no mesh in namespace %s of %s that meshctl or Helm has installed: use \"meshctl install\"", b.target.Namespace, context)
	}
	p := newProgress(i.Err)
	before := identityOf(b.last.Config)
	base := b.last.Config
	if i.resetValues {
		base = map[string]any{"cluster": map[string]any{"name": before.Name, "id": float64(before.ID)}}
	}
	values, err := release.Values(base, i.files, i.settings)
	if err != nil {
		return codeError{err, ExitUsage}
	}
	if i.identity = identityOf(values); i.identity != before {
		return usage("the cluster is %s with the ID %d, and an upgrade does not change that: the other clusters know it by them", before.Name, before.ID)
	}
	if err := b.fill(values); err != nil {
		return err
	}
	step, err := b.settled(ctx, p, values)
	if err != nil {
		return err
	}
	if step == release.StepNothing {
		step = release.StepUpgrade // which puts right what somebody has changed
	}
	if err := i.checked(ctx, b, p, step, values); err != nil {
		return untouched(ctx, err)
	}
	if err := b.render(values); err != nil {
		return err
	}
	undo := rollback(context, b.target.Namespace)
	from := b.last.Chart.Metadata.AppVersion
	announceUpgrade(p, context, from, b.chart.Metadata.AppVersion, undo, release.Changes(b.last.Config, values))
	if i.dryRun {
		p.say("This was a dry run: nothing was changed.")
		return nil
	}
	if err := ctx.Err(); err != nil {
		return untouched(ctx, err)
	}
	err = p.step("Changing the mesh's objects in "+context, func(func(string, ...any)) error {
		return b.apply(ctx, step, values, "upgraded by meshctl "+version.String())
	})
	if err != nil {
		return undoable(ctx, err, undo)
	}
	return i.finish(ctx, b, p, true, undo)
}

// rollback is the command line that undoes an upgrade.
func rollback(context, namespace string) string {
	return fmt.Sprintf("helm --kube-context %s -n %s rollback %s", context, namespace, chart.Release)
}

// announceUpgrade says what an upgrade will do.
func announceUpgrade(p *progress, context, from, to, undo string, changes []string) {
	p.say("")
	switch {
	case from != to:
		p.say("In %s this will bring the programs from %s to %s, one after the other.", context, from, to)
	case len(changes) == 0:
		p.say("In %s version %s and the values stay: objects that are missing or were changed are made again.", context, to)
	default:
		p.say("In %s version %s stays, and this will:", context, to)
	}
	for _, line := range changes {
		p.say("  %s", line)
	}
	p.say("To undo it: %s", undo)
	p.say("")
}

// untouched says, of a command that was stopped before it has changed anything, just that.
func untouched(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errors.New("stopped: nothing was changed")
	}
	return err
}

// undoable says how to go on, and how to go back.
func undoable(ctx context.Context, err error, undo string) error {
	if ctx.Err() != nil {
		return fmt.Errorf("stopped: what was begun goes on in the cluster. To complete it, run the same command again; to undo it: %s", undo)
	}
	return fmt.Errorf("%w\nRun the same command again once the cause is gone; to undo it: %s", err, undo)
}

// settled says what there is to do, once nobody else is at work on the release.
func (b *begun) settled(ctx context.Context, p *progress, values map[string]any) (release.Step, error) {
	step := release.Next(time.Now(), b.last, b.chart, values)
	if step == release.StepWait {
		err := p.step("Waiting for another install or upgrade, begun "+time.Since(b.last.Info.LastDeployed).Round(time.Second).String()+" ago", func(func(string, ...any)) error {
			for step == release.StepWait {
				select {
				case <-ctx.Done():
					return ctx.Err()
				case <-time.After(lookEvery):
				}
				var err error
				if b.last, err = b.store.Last(); err != nil {
					return err
				}
				step = release.Next(time.Now(), b.last, b.chart, values)
			}
			return nil
		})
		if err != nil {
			return "", err
		}
	}
	if step == release.StepLeave {
		return "", fmt.Errorf("an uninstall was stopped in the middle: complete it with \"%s\"", b.target.line("uninstall"))
	}
	return step, nil
}

// fill proves the values by themselves, before any cluster is asked anything.
func (b *begun) fill(values map[string]any) (err error) {
	if b.objects, err = release.Render(values, b.target.Namespace); err != nil {
		return codeError{fmt.Errorf("%w; nothing was changed", err), ExitUsage}
	}
	return nil
}

// render proves the values, and the templates with them, against what is in the cluster.
func (b *begun) render(values map[string]any) error {
	if _, err := chart.Render(values, b.target.Namespace, b.target.REST); err != nil {
		return codeError{fmt.Errorf("%w; nothing was changed", err), ExitUsage}
	}
	return nil
}

// apply writes the objects. It is short, and not stopped in the middle by Ctrl-C.
func (b *begun) apply(ctx context.Context, step release.Step, values map[string]any, description string) error {
	whole := context.WithoutCancel(ctx)
	var err error
	switch step {
	case release.StepInstall:
		err = b.store.Install(whole, b.chart, values, description)
	case release.StepRecover:
		if err = b.store.Abandon(b.last); err == nil {
			err = b.store.Upgrade(whole, b.chart, values, description)
		}
	default:
		err = b.store.Upgrade(whole, b.chart, values, description)
	}
	if err != nil {
		return fmt.Errorf("writing the objects of the chart: %w", err)
	}
	return ctx.Err()
}

// ensureNamespace makes the mesh's namespace. One that somebody else made is left as it
// is, and is not removed by an uninstall.
func (t *target) ensureNamespace(ctx context.Context) error {
	namespaces := t.Kube.CoreV1().Namespaces()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: t.Namespace, Labels: chart.NamespaceLabels()}}
	ns.Labels[managedByLabel] = managedByValue
	_, err := namespaces.Create(ctx, ns, metav1.CreateOptions{})
	switch {
	case err == nil:
		return nil
	case !apierrors.IsAlreadyExists(err):
		return fmt.Errorf("making namespace %s: %w", t.Namespace, err)
	}
	found, err := namespaces.Get(ctx, t.Namespace, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("reading namespace %s: %w", t.Namespace, err)
	}
	const enforce = "pod-security.kubernetes.io/enforce"
	if found.Labels[enforce] != "" || found.Labels[managedByLabel] != managedByValue {
		// What somebody else said about it stands; the checks have looked at it.
		return nil
	}
	patch := fmt.Sprintf(`{"metadata":{"labels":{%q:%q}}}`, enforce, chart.NamespaceLabels()[enforce])
	if _, err := namespaces.Patch(ctx, t.Namespace, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("labelling namespace %s: %w", t.Namespace, err)
	}
	return nil
}

// finish waits until the mesh works, and says what comes next.
func (i *installOptions) finish(ctx context.Context, b *begun, p *progress, changed bool, undo string) error {
	context := b.target.Context
	if i.dryRun {
		return nil
	}
	if i.wait {
		if err := i.awaitInstalled(ctx, b.target, p, i.timeout); err != nil {
			return undoable(ctx, err, undo)
		}
	}
	if !changed {
		return nil
	}
	p.say("")
	if b.last != nil && b.last.Info.Status == "deployed" {
		p.say("Done: the mesh in %s is as it is wanted.", context)
		return nil
	}
	p.say("Installed: %s (ID %d) in %s.", i.identity.Name, i.identity.ID, context)
	p.say("Next: %s", strings.Join([]string{
		"meshctl connect --context " + context + " --destination-context OTHER",
		"meshctl status --context " + context + " --wait",
	}, "\n      "))
	return nil
}
