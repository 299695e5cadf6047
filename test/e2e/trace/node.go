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

package trace

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"mesh.io/clustermesh/test/lab/cgroup"
)

// look prints what there is on a node, a line each: files outside the trees that programs
// come from, pins, devices, addresses, routes, rules, mounts. Not looked at is what the
// kubelet and the lab themselves keep of pods for some time after they have gone; mounts and
// processes show whether they have. find ends with an error where a file goes away meanwhile;
// that is no matter.
const look = `
find /etc /opt /run /srv /tmp /var /sys/fs/bpf -mindepth 1 \
	\( -path /opt/lab -o -path "$STATE" -o -path /var/cache -o -path /var/lib/kubelet \
	-o -path /var/log/containers -o -path /var/log/pods \) -prune -o -path /var/lib/volumes -o -printf 'file %p (%y)\n' 2>/dev/null
ip -o link show | sed 's/^[0-9]*: /link /'
ip -o address show | sed 's/^[0-9]*: /address /; s/ valid_lft.*//'
ip route show table all | sed 's/^/route /'
ip rule show | sed 's/^/rule /'
cut -d' ' -f5,9- /proc/self/mountinfo | sed 's/^/mount /'
nft --stateless list ruleset | grep -v '^ *$' | sed 's/^/nft /'
exit 0
`

// hooks are the ones that a cgroup has.
var hooks = []ebpf.AttachType{
	ebpf.AttachCGroupInetIngress, ebpf.AttachCGroupInetEgress, ebpf.AttachCGroupInetSockCreate, ebpf.AttachCGroupSockOps,
	ebpf.AttachCGroupDevice, ebpf.AttachCGroupInet4Bind, ebpf.AttachCGroupInet6Bind, ebpf.AttachCGroupInet4Connect,
	ebpf.AttachCGroupInet6Connect, ebpf.AttachCGroupInet4PostBind, ebpf.AttachCGroupInet6PostBind,
	ebpf.AttachCGroupUDP4Sendmsg, ebpf.AttachCGroupUDP6Sendmsg, ebpf.AttachCGroupUDP4Recvmsg, ebpf.AttachCGroupUDP6Recvmsg,
	ebpf.AttachCgroupInet4GetPeername, ebpf.AttachCgroupInet6GetPeername, ebpf.AttachCgroupInet4GetSockname,
	ebpf.AttachCgroupInet6GetSockname, ebpf.AttachCGroupSysctl, ebpf.AttachCGroupGetsockopt, ebpf.AttachCGroupSetsockopt,
	ebpf.AttachCgroupInetSockRelease,
}

// takeNode adds what is on a node.
func (l Lab) takeNode(ctx context.Context, p Picture, node string) error {
	args := []string{"exec", "--bin-dir", filepath.Dir(l.Program), "--node", node}
	state := "/run/mesh-lab"
	if l.StateDir != "" {
		state = l.StateDir
		args = append(args, "--state-dir", state)
	}
	command := exec.CommandContext(ctx, l.Program, append(args, "--", "env", "STATE="+state, "sh", "-c", look)...)
	var problem strings.Builder
	command.Stderr = &problem
	out, err := command.Output()
	if err != nil {
		return fmt.Errorf("%w: %s", err, problem.String())
	}
	for line := range strings.Lines(string(out)) {
		if line = strings.TrimSpace(line); !ofHost(line) {
			p.count("node " + node + ": " + line)
		}
	}
	mount, err := cgroup.Mount()
	if err != nil {
		return err
	}
	root := filepath.Join(mount, filepath.Base(state), node)
	return filepath.WalkDir(root, func(dir string, entry fs.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil // a pod has ended
		}
		if err != nil || !entry.IsDir() {
			return err
		}
		return p.takeCgroup("node "+node+": ", root, dir)
	})
}

// ofHost says of a line whether it is a file that the machine has, too: a node's root is the
// machine's, with what the node writes over it. Some trees are a node's own.
func ofHost(line string) bool {
	name, isFile := strings.CutPrefix(line, "file ")
	if !isFile {
		return false
	}
	for _, own := range []string{"/run/", "/tmp/", "/var/lib/", "/sys/"} {
		if strings.HasPrefix(name, own) {
			return false
		}
	}
	_, err := os.Lstat(name[:strings.LastIndex(name, " (")])
	return err == nil
}

// count adds one more of a kind of line.
func (p Picture) count(name string) {
	n, _ := strconv.Atoi(p[name])
	p[name] = strconv.Itoa(n + 1)
}

// takeCgroup adds the eBPF programs that are attached to a cgroup, and the programs that
// run in it.
func (p Picture) takeCgroup(prefix, root, dir string) error {
	handle, err := os.Open(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer handle.Close()
	for _, attach := range hooks {
		programs, err := link.QueryPrograms(link.QueryOptions{Target: int(handle.Fd()), Attach: attach})
		if err != nil {
			continue // the kernel does not have this hook
		}
		for range programs.Programs {
			p.count(prefix + attach.String() + " program on cgroup " + strings.TrimPrefix(dir, root))
		}
	}
	for _, pid := range cgroup.Processes(dir) {
		// Of the command line only the program: its arguments may hold numbers of pods.
		line, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
		if err != nil {
			continue
		}
		words := strings.Split(string(line), "\x00")
		if name := filepath.Base(words[0]); !slices.Contains([]string{"", ".", "lab"}, name) {
			p.count(prefix + "process " + name)
		}
	}
	return nil
}
