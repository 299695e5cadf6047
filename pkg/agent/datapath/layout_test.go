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

package datapath

import (
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"mesh.io/clustermesh/pkg/agent/desired"
)

func TestLayoutsHaveTheSizesOfC(t *testing.T) {
	for name, sizes := range map[string][2]uintptr{
		"vip_key":            {unsafe.Sizeof(vipKey{}), 20},
		"service_entry":      {unsafe.Sizeof(serviceEntry{}), 32},
		"backend_entry":      {unsafe.Sizeof(backendEntry{}), 32},
		"traffic_entry":      {unsafe.Sizeof(trafficEntry{}), 64},
		"sock_entry":         {unsafe.Sizeof(connectSockEntry{}), 48},
		"affinity_key":       {unsafe.Sizeof(connectAffinityKey{}), 16},
		"affinity_entry":     {unsafe.Sizeof(connectAffinityEntry{}), 16},
		"sent_entry":         {unsafe.Sizeof(connectSentEntry{}), 392},
		"sent_more_key":      {unsafe.Sizeof(connectSentMoreKey{}), 32},
		"sent_more_entry":    {unsafe.Sizeof(connectSentMoreEntry{}), 32},
		"meta_entry":         {unsafe.Sizeof(metaEntry{}), 16},
		"service_name_entry": {unsafe.Sizeof(serviceName{}), 192},
		"cluster_name_entry": {unsafe.Sizeof(clusterName{}), 64},
	} {
		if sizes[0] != sizes[1] {
			t.Errorf("%s has %d bytes in Go, want %d", name, sizes[0], sizes[1])
		}
	}
	// A descriptor can be stored at once only where it does not cross a word.
	if offset := unsafe.Offsetof(serviceEntry{}.Descriptor); offset%8 != 0 {
		t.Errorf("the descriptor is at %d", offset)
	}
	if len(counterNames) != int(connectCounterCOUNTER_COUNT) {
		t.Errorf("%d counters have names, want %d", len(counterNames), connectCounterCOUNTER_COUNT)
	}
}

func TestBitFieldsAreThoseOfC(t *testing.T) {
	header, err := os.ReadFile("../../../bpf/lib/maps.h")
	if err != nil {
		t.Fatal(err)
	}
	inC := map[string]uint64{}
	for _, m := range regexp.MustCompile(`(?m)^#define (\w+) (\w+)$`).FindAllStringSubmatch(string(header), -1) {
		if inC[m[1]], err = strconv.ParseUint(m[2], 0, 64); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]uint64{
		"DESCRIPTOR_BASE_BITS":   descriptorBaseBits,
		"DESCRIPTOR_LENGTH_BITS": descriptorLengthBits,
		"SERVICE_HANDBACK":       serviceHandback,
		"SLOT_BACKEND_BITS":      slotBackendBits,
		"SLOT_SERVICE_BITS":      slotServiceBits,
		"SLOT_GENERATION_BITS":   slotGenerationBits,
		"OPTOUT_LEVELS":          optoutLevels,
	} {
		if got, ok := inC[name]; !ok || got != want {
			t.Errorf("%s is %d in C (found: %t), %d in Go", name, got, ok, want)
		}
	}
}

func TestWordsKeepTheirFields(t *testing.T) {
	for _, f := range [][3]uint32{{}, {1, 2, 3}, {1<<28 - 1, 1<<24 - 1, 1<<12 - 1}, {1<<28 - 1, 0, 0}, {0, 1<<24 - 1, 0}} {
		d := newDescriptor(f[0], f[1], uint16(f[2]))
		if d.base() != f[0] || d.length() != f[1] || d.flags() != uint16(f[2]) {
			t.Errorf("descriptor of %v holds %d, %d, %d", f, d.base(), d.length(), d.flags())
		}
	}
	for _, f := range [][3]uint32{{}, {1, 2, 3}, {1<<24 - 1, 1<<20 - 1, 1<<20 - 1}, {0, 1<<20 - 1, 0}} {
		s := newSlot(f[0], f[1], f[2])
		if s.backend() != f[0] || s.service() != f[1] || s.generation() != f[2] {
			t.Errorf("slot of %v holds %d, %d, %d", f, s.backend(), s.service(), s.generation())
		}
	}
	for _, s := range []string{"10.96.0.1:80/TCP", "[fd00:96::1]:65535/UDP", "255.255.255.255:1/UDP"} {
		f := vip(s)
		if got := keyFrontend(frontendKey(f)); got != f {
			t.Errorf("the key of %s is that of %s", f, got)
		}
	}
	port := desired.ServicePort{Namespace: strings.Repeat("n", 63), Name: "userlist", Port: ""}
	name := newServiceName(port)
	if got := servicePort(&name); got != port {
		t.Errorf("the name of %s is kept as %s", port, got)
	}
}

func TestCheckRefuses(t *testing.T) {
	good := serviceAt("10.96.0.1:80/TCP", backendAt("10.1.0.1:80"), backendAt("10.1.0.2:80"))
	if err := check(&good); err != nil {
		t.Errorf("a good service is refused: %v", err)
	}
	tests := map[string]struct {
		change func(*desired.Service)
		want   string
	}{
		"no address":          {func(s *desired.Service) { s.Frontend.Addr = netip.Addr{} }, "frontend address"},
		"a mapped address":    {func(s *desired.Service) { s.Frontend.Addr = netip.MustParseAddr("::ffff:10.0.0.1") }, "frontend address"},
		"an address of zero":  {func(s *desired.Service) { s.Frontend.Addr = netip.IPv4Unspecified() }, "frontend address"},
		"port 0":              {func(s *desired.Service) { s.Frontend.Port = 0 }, "port is 0"},
		"another protocol":    {func(s *desired.Service) { s.Frontend.Protocol = 132 }, "Protocol(132)"},
		"a backend of port 0": {func(s *desired.Service) { s.Backends[0].Addr = netip.MustParseAddrPort("10.1.0.1:0") }, "no port"},
		"a backend of the other family": {
			func(s *desired.Service) { s.Backends[1].Addr = netip.MustParseAddrPort("[fd00::1]:80") }, "address family",
		},
		"a link-local zone":   {func(s *desired.Service) { s.Backends[0].Addr = netip.MustParseAddrPort("[fe80::1%eth0]:80") }, "backend address"},
		"no backend address":  {func(s *desired.Service) { s.Backends[0].Addr = netip.AddrPort{} }, "backend address"},
		"a backend twice":     {func(s *desired.Service) { s.Backends[1] = s.Backends[0] }, "listed twice"},
		"backends unsorted":   {func(s *desired.Service) { s.Backends[0].ClusterID = 2 }, "out of order"},
		"more slots than fit": {func(s *desired.Service) { s.Backends[0].Slots = 1<<24 - 1 }, "16777216 slots"},
		"slots that overflow": {func(s *desired.Service) { s.Backends[0].Slots = 1<<32 - 1 }, "4294967296 slots"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			svc := good
			svc.Backends = append([]desired.Backend(nil), good.Backends...)
			test.change(&svc)
			if err := check(&svc); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestConfigNamesAllThatIsWrong(t *testing.T) {
	_, err := Config{
		PinDir:     "pins",
		StaleAfter: -1,
		Sizes:      Sizes{Frontends: 1 << 20, Backends: 1 << 24, Slots: 1 << 28},
	}.withDefaults()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{`"pins"`, "state folder", "negative", "frontends", "backends", "slots"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	good := Config{PinDir: "/sys/fs/bpf/x", StateDir: "/run/x", Cgroups: []string{"/sys/fs/cgroup"}}
	got, err := good.withDefaults()
	if err != nil || got.Sizes != DefaultSizes || got.StaleAfter != DefaultStaleAfter {
		t.Errorf("defaults are %+v, %v", got, err)
	}
}
