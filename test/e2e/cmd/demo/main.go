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

// Command demo walks the tutorial on a running lab.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"mesh.io/clustermesh/test/e2e/tutorial"
)

func main() { os.Exit(run()) }

func run() int {
	config := tutorial.Config{Out: os.Stdout}
	flag.StringVar(&config.Root, "root", ".", "the checkout")
	flag.StringVar(&config.BinDir, "bin-dir", "", "where kubectl and lab are (an absolute path)")
	flag.StringVar(&config.Kubeconfig, "kubeconfig", "", "kubeconfig with the contexts cluster1 and cluster2")
	flag.Parse()

	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	if err := tutorial.Run(ctx, config); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		return 1
	}
	return 0
}
