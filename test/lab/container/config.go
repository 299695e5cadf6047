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

package container

import (
	"path/filepath"
	"time"

	"mesh.io/clustermesh/test/lab/proc"
)

// Config describes a container to its shim and its first process.
type Config struct {
	ID string `json:"id"`
	// Sandbox is the process that holds the pod's namespaces.
	Sandbox int `json:"sandbox"`
	// HostNetwork: network and host name are the node's.
	HostNetwork bool `json:"hostNetwork,omitempty"`
	HostIPC     bool `json:"hostIPC,omitempty"`
	HostPID     bool `json:"hostPID,omitempty"`
	// JoinPID is a process whose process namespace the container shares.
	JoinPID int `json:"joinPID,omitempty"`
	// Cgroup is the container's cgroup as the node sees it.
	Cgroup string `json:"cgroup"`

	Args []string `json:"args"`
	Env  []string `json:"env"`
	Cwd  string   `json:"cwd,omitempty"`
	// Stop is the number of the signal that asks the program to end.
	Stop int `json:"stop"`

	Mounts       []Mount `json:"mounts"`
	Privileged   bool    `json:"privileged,omitempty"`
	ReadOnlyRoot bool    `json:"readOnlyRoot,omitempty"`

	Credentials Credentials `json:"credentials"`
	LogPath     string      `json:"logPath,omitempty"`

	// Stdin: the input comes from who is attached; with StdinOnce until the first has no more.
	Stdin     bool `json:"stdin,omitempty"`
	StdinOnce bool `json:"stdinOnce,omitempty"`
	// TTY: input and output are a terminal.
	TTY bool `json:"tty,omitempty"`
}

// Credentials are the rights of a program.
type Credentials struct {
	UID    uint32   `json:"uid"`
	GID    uint32   `json:"gid"`
	Groups []uint32 `json:"groups,omitempty"`
	// Capabilities are the numbers of those that the program and its children can
	// have at all; meaningful only when not All.
	Capabilities    []int `json:"capabilities,omitempty"`
	All             bool  `json:"all,omitempty"`
	NoNewPrivileges bool  `json:"noNewPrivileges,omitempty"`
}

// Mount is a directory or file of the node that the container sees.
type Mount struct {
	Source   string `json:"source"`
	Target   string `json:"target"`
	ReadOnly bool   `json:"readOnly,omitempty"`
	// Propagation says which later mounts cross over.
	Propagation Propagation `json:"propagation,omitempty"`
}

// Propagation is the direction in which later mounts cross over.
type Propagation string

// Directions.
const (
	Private         Propagation = ""
	HostToContainer Propagation = "HostToContainer"
	Bidirectional   Propagation = "Bidirectional"
)

// Running names the processes of a started container.
type Running struct {
	Shim proc.ID   `json:"shim"`
	Main proc.ID   `json:"main"`
	At   time.Time `json:"at"`
}

// Exit tells how a container ended.
type Exit struct {
	Code int       `json:"code"`
	At   time.Time `json:"at"`
	// Error is why it could not be started at all.
	Error string `json:"error,omitempty"`
}

// Files of a container's directory.
func ConfigFile(dir string) string  { return filepath.Join(dir, "config.json") }
func RunningFile(dir string) string { return filepath.Join(dir, "running.json") }
func ExitFile(dir string) string    { return filepath.Join(dir, "exit.json") }
