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
	"slices"
	"testing"

	"github.com/cilium/ebpf/asm"
)

// The oldest kernel is 5.10. Programs may use what it has, and nothing that needs the
// running kernel's types.
func TestProgramsKeepToKernel510(t *testing.T) {
	helpers := []asm.BuiltinFunc{
		asm.FnMapLookupElem,
		asm.FnMapUpdateElem,
		asm.FnMapDeleteElem,
		asm.FnSpinLock,
		asm.FnSpinUnlock,
		asm.FnGetSocketCookie,
		asm.FnGetNetnsCookie,
		asm.FnGetPrandomU32,
		asm.FnKtimeGetNs,
		asm.FnSkStorageGet,    // for these programs since 5.10
		asm.FnSkStorageDelete, // likewise
		asm.FnGetCurrentAncestorCgroupId,
		asm.FnSockOpsCbFlagsSet,
		asm.FnSkbLoadBytes,
		asm.FnSkLookupUdp,
		asm.FnSkRelease,
	}
	cfg := Config{Sizes: DefaultSizes, StaleAfter: DefaultStaleAfter}
	all, err := specs(&cfg)
	if err != nil {
		t.Fatal(err)
	}
	asking, err := loadNoted() // it stands in where newer kernels have an iterator
	if err != nil {
		t.Fatal(err)
	}
	for _, spec := range append(all, asking) {
		for name, program := range spec.Programs {
			for _, ins := range program.Instructions {
				if ins.IsKfuncCall() {
					t.Errorf("%s calls a kernel function: %v", name, ins)
				}
				if ins.IsBuiltinCall() && !slices.Contains(helpers, asm.BuiltinFunc(ins.Constant)) {
					t.Errorf("%s calls %v", name, asm.BuiltinFunc(ins.Constant))
				}
				if class := ins.OpCode.Class(); class == asm.Jump32Class {
					t.Errorf("%s needs -mcpu=v3: %v", name, ins)
				}
			}
		}
	}
}

func TestVerifierIsNotStrained(t *testing.T) {
	n := newNode(t)
	for name, program := range n.open(t).programs {
		info, err := program.Info()
		if err != nil {
			t.Fatal(err)
		}
		if verified, ok := info.VerifiedInstructions(); ok {
			t.Logf("%s: %d instructions verified", name, verified)
			if verified > 100_000 { // a tenth of what kernels allow
				t.Errorf("%s: the verifier looks at %d instructions", name, verified)
			}
		}
	}
}

func TestMemoryIsWhatTheKernelTakes(t *testing.T) {
	n := newNode(t)
	n.Sizes = DefaultSizes
	d := n.open(t)
	kernel := uint64(0)
	for _, name := range []string{connectMapVip, connectMapService, connectMapBackends, connectMapTraffic, connectMapSlots, connectMapSentMore, connectMapAffinity} {
		info, err := d.set.byName[name].Info()
		if err != nil {
			t.Fatal(err)
		}
		memory, ok := info.Memlock()
		if !ok {
			t.Skip("the kernel does not say how much memory a map takes")
		}
		kernel += memory
	}
	if entries := d.set.byName[connectMapSentMore].MaxEntries(); entries != sentMore {
		t.Errorf("there is room for %d of the sockets with many peers, want %d", entries, sentMore)
	}

	if entries := d.set.byName[connectMapAffinity].MaxEntries(); entries != clients {
		t.Errorf("there is room for %d clients, want %d", entries, clients)
	}
	if ours := n.Sizes.Memory(); ours < kernel*9/10 || ours > kernel*11/10 {
		t.Errorf("computed %d bytes, the kernel takes %d", ours, kernel)
	}
}
