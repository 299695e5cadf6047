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

// Command lab-cri is the container runtime of one node of the lab. It runs inside
// the node's namespaces.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"mesh.io/clustermesh/test/lab/container"
	"mesh.io/clustermesh/test/lab/cri"
)

func main() { os.Exit(run()) }

func run() int {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "lab-cri: a part of the lab; people use lab")
		return 2
	}
	if err := serve(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "lab-cri:", err)
		return 1
	}
	return 0
}

func serve(configFile string) error {
	var config cri.Config
	if err := container.ReadJSON(configFile, &config); err != nil {
		return err
	}
	server, err := cri.New(config)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	return server.Run(ctx)
}
