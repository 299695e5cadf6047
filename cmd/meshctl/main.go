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

// Command meshctl installs, connects and shows meshes of Kubernetes clusters. As
// kubectl-mesh it is a plugin: "kubectl mesh".
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"mesh.io/clustermesh/pkg/cli"
)

func main() {
	os.Exit(interruptible(func(ctx context.Context) int {
		return cli.Run(ctx, os.Args, cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr})
	}))
}

// interruptible runs something until it ends. The first Ctrl-C ends its context, upon
// which it may undo what it has begun; the second ends the process at once.
func interruptible(run func(context.Context) int) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	return run(ctx)
}
