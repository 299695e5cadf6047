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

// Command lab-volumes provisions the PersistentVolumes of one cluster of the lab.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"mesh.io/clustermesh/test/lab/container"
	"mesh.io/clustermesh/test/lab/volume"
)

func main() { os.Exit(run()) }

func run() int {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "lab-volumes: a part of the lab; people use lab")
		return 2
	}
	var config volume.Config
	if err := container.ReadJSON(os.Args[1], &config); err != nil {
		fmt.Fprintln(os.Stderr, "lab-volumes:", err)
		return 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := volume.Run(ctx, config); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "lab-volumes:", err)
		return 1
	}
	return 0
}
