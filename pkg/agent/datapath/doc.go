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

// Package datapath keeps the kernel's load-balancing table: it loads the programs
// of bpf/, attaches them to cgroups, and makes the maps hold a desired.Table.
//
// What it promises, to every connect() and every datagram of a socket that is not
// connected, and at every instant:
//
//   - A lookup finds one backend that the service had before or has after a change,
//     never anything else, and never fails because of a change. Each change becomes
//     visible by single 8-byte stores; bpf/README.md has the order.
//   - Once Apply has returned, no later lookup finds a backend that it removed.
//   - Backends, slot ranges and service indices are used again only after every
//     lookup that could have seen them has ended.
//   - Maps and links are pinned. The table serves on with no agent; the next agent
//     takes it over as it is, with its IDs, and changes only what differs. Where it
//     wants maps of another form or size, the content moves to new ones.
//   - What does not fit is left to kube-proxy and named in the report.
//
// One process writes, held to that by a lock file; Read works beside it and without.
package datapath
