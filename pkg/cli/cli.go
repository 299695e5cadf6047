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

// Package cli is meshctl: one file for each command, and what they share.
//
// A command reads flags, asks the clusters, decides by a pure function and prints. It
// writes results to Out and everything else (progress, warnings) to Err, so that output
// can be piped. It never prints a secret.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"mesh.io/clustermesh/pkg/version"
)

// Streams are where a command reads and writes.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// Exit codes. They are part of the interface: scripts read them.
const (
	ExitOK      = 0
	ExitFailure = 1 // something could not be done
	ExitUsage   = 2 // the command line is wrong
	ExitUnmet   = 3 // it was done, and what was asked about is not so: unhealthy, a failed test
	ExitTimeout = 4 // what was waited for did not come in time
	ExitStopped = 130
)

// codeError is an error with an exit code of its own.
type codeError struct {
	error
	code int
}

func (e codeError) Unwrap() error { return e.error }

// unmet is the error of a command that worked, and whose answer is no.
func unmet(format string, args ...any) error {
	return codeError{fmt.Errorf(format, args...), ExitUnmet}
}

// usage is the error of a command line that is wrong.
func usage(format string, args ...any) error {
	return codeError{fmt.Errorf(format, args...), ExitUsage}
}

// Run runs meshctl with the arguments of the process, and returns its exit code.
func Run(ctx context.Context, args []string, streams Streams) int {
	command := NewCommand(streams)
	command.SetArgs(args[1:])
	program := filepath.Base(args[0])
	if strings.HasPrefix(program, "kubectl_complete-") {
		// So kubectl asks a plugin for completions.
		command.SetArgs(append([]string{cobra.ShellCompRequestCmd}, args[1:]...))
	}
	if strings.HasPrefix(program, "kubectl") {
		// What help and completion show is what people type.
		command.Annotations = map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl mesh"}
	}
	err := unknown(command, args[1:])
	if err == nil {
		err = command.ExecuteContext(ctx)
	}
	if err == nil {
		return ExitOK
	}
	fmt.Fprintln(streams.Err, "Error:", err)
	var coded codeError
	switch {
	case ctx.Err() != nil:
		return ExitStopped
	case errors.As(err, &coded):
		return coded.code
	case errors.Is(err, context.DeadlineExceeded):
		return ExitTimeout
	}
	return ExitFailure
}

// unknown is the error of a command line that names a command that is not there. Cobra
// shows the help of a group then, as if that had been asked for.
func unknown(root *cobra.Command, args []string) error {
	if len(args) > 0 && strings.HasPrefix(args[0], cobra.ShellCompRequestCmd) {
		return nil // a shell asks how to go on
	}
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd(args...)
	group, rest, err := root.Find(args)
	if err == nil && group.Runnable() {
		return nil
	}
	if group.ParseFlags(rest) != nil {
		if err != nil {
			return usage("%w", err)
		}
		return nil // the flags are what is wrong
	}
	if rest = group.Flags().Args(); len(rest) == 0 {
		return nil
	}
	group.SuggestionsMinimumDistance = 2
	text := ""
	if like := group.SuggestionsFor(rest[0]); len(like) > 0 {
		text = fmt.Sprintf("; did you mean %s?", strings.Join(like, ", "))
	}
	return usage("%s has no command %q%s (see %s --help)", group.CommandPath(), rest[0], text, group.CommandPath())
}

// NewCommand returns meshctl with all of its commands.
func NewCommand(streams Streams) *cobra.Command {
	o := &options{Streams: streams}
	root := &cobra.Command{
		Use:   "meshctl",
		Short: "Make the Services of many Kubernetes clusters one",
		Long: `meshctl installs clustermesh in Kubernetes clusters, connects them, and shows what
the mesh does.

Exit codes: 0 done; 1 it could not be done; 2 the command line is wrong; 3 it was done,
and the answer is no (unhealthy, a test failed); 4 it did not come in time; 130 stopped
by Ctrl-C.`,
		Example: `  meshctl install --context cluster1 --cluster-name cluster1 --cluster-id 1
  meshctl install --context cluster2 --cluster-name cluster2 --cluster-id 2
  meshctl connect --context cluster1 --destination-context cluster2
  meshctl status --contexts cluster1,cluster2 --wait
  kubectl mesh service list -A`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       version.String(),
	}
	root.SetIn(streams.In)
	root.SetOut(streams.Out)
	root.SetErr(streams.Err)
	root.SetFlagErrorFunc(func(command *cobra.Command, err error) error {
		return usage("%w (see %s --help)", err, command.CommandPath())
	})
	o.addFlags(root.PersistentFlags())
	root.AddGroup(groups...)
	for _, add := range []func(*options) *cobra.Command{
		newInstall, newUpgrade, newUninstall, newStatus, newBundle, newConnect, newConnectivity, newDisconnect, newInvite, newJoin,
		newService, newTroubleshoot, newVersion,
	} {
		root.AddCommand(add(o))
	}
	addCompletion(root)
	complete(root, o)
	return root
}

// The groups that help lists the commands in.
const (
	groupSetup   = "setup"
	groupLook    = "look"
	groupService = "service"
)

var groups = []*cobra.Group{
	{ID: groupSetup, Title: "Set up and connect:"},
	{ID: groupService, Title: "Global services:"},
	{ID: groupLook, Title: "Look and check:"},
}
