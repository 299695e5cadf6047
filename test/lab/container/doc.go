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

// Package container turns a node or a container into mounts, namespaces and
// processes. Everything here runs in the small program lab-shim, inside the
// process that becomes the thing, and knows nothing of Kubernetes.
//
// Three kinds of process:
//
//   - The holder of a node makes the node's file system, an overlay over the host's,
//     and then sleeps: its namespaces are the node.
//   - A shim is the parent of one container. It outlives the CRI server, writes the
//     container's log, and leaves behind a file with the exit code.
//   - A container's first process arranges its own file system and limits, and then
//     becomes the container's program.
package container
