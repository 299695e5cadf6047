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

package cri

import (
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestCapabilitiesOfAContainer(t *testing.T) {
	security := func(add, drop []string) *runtimeapi.LinuxContainerSecurityContext {
		return &runtimeapi.LinuxContainerSecurityContext{Capabilities: &runtimeapi.Capability{AddCapabilities: add, DropCapabilities: drop}}
	}
	for name, test := range map[string]struct {
		add, drop, have, lack []string
	}{
		"the usual ones":       {have: []string{"CHOWN", "NET_RAW"}, lack: []string{"NET_ADMIN", "SYS_ADMIN", "BPF"}},
		"one more":             {add: []string{"CAP_NET_ADMIN"}, have: []string{"NET_ADMIN", "CHOWN"}, lack: []string{"BPF"}},
		"all dropped but one":  {add: []string{"BPF"}, drop: []string{"ALL"}, have: []string{"BPF"}, lack: []string{"CHOWN"}},
		"all added but one":    {add: []string{"all"}, drop: []string{"SYS_ADMIN"}, have: []string{"BPF"}, lack: []string{"SYS_ADMIN"}},
		"unknown ones ignored": {add: []string{"NONSENSE"}, have: []string{"CHOWN"}},
	} {
		got := credentials(security(test.add, test.drop)).Capabilities
		for _, capability := range test.have {
			if !slices.Contains(got, capabilities[capability]) {
				t.Errorf("%s: %s is missing", name, capability)
			}
		}
		for _, capability := range test.lack {
			if slices.Contains(got, capabilities[capability]) {
				t.Errorf("%s: %s is there", name, capability)
			}
		}
	}
}

func TestEveryCapabilityHasItsNumber(t *testing.T) {
	seen := map[int]bool{}
	for _, number := range capabilities {
		seen[number] = true
	}
	if len(seen) != unix.CAP_LAST_CAP+1 {
		t.Errorf("%d capabilities are named, the kernel's headers have %d", len(seen), unix.CAP_LAST_CAP+1)
	}
}

func TestStopSignals(t *testing.T) {
	for signal, want := range map[runtimeapi.Signal]syscall.Signal{
		runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT: syscall.SIGTERM,
		runtimeapi.Signal_SIGNAL_SIGTERM:         syscall.SIGTERM,
		runtimeapi.Signal_SIGNAL_SIGUSR1:         syscall.SIGUSR1,
	} {
		if got := stopSignal(signal); got != want {
			t.Errorf("%s: got %s, want %s", signal, got, want)
		}
	}
}

func TestResolvConf(t *testing.T) {
	got := resolvConf(&runtimeapi.DNSConfig{
		Servers: []string{"10.101.0.10"}, Searches: []string{"a.svc.cluster.local", "cluster.local"}, Options: []string{"ndots:5"},
	})
	want := "nameserver 10.101.0.10\nsearch a.svc.cluster.local cluster.local\noptions ndots:5\n"
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
