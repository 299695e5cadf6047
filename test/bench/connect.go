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

package bench

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Connects is what a process saw of its own connect() calls, in microseconds.
type Connects struct {
	VIPp50    float64 `json:"vipP50"`
	DirectP50 float64 `json:"directP50"`
	// OverheadP50 is the median of the pairs' differences.
	OverheadP50 float64 `json:"overheadP50"`
	Pairs       int     `json:"pairs"`
}

// MeasureConnects times TCP connect() to a virtual address and straight to a pod, in
// turn, so that whatever else the machine does touches both alike. It runs in the
// client's pod.
func MeasureConnects(vip, direct netip.AddrPort, pairs int) (Connects, error) {
	const warmup = 200
	var viaVIP, viaDirect, overhead []float64
	for i := range pairs + warmup {
		// The order within a pair alternates, so that neither is always the warm one.
		first, second := vip, direct
		if i%2 == 1 {
			first, second = direct, vip
		}
		a, err := timeConnect(first)
		if err != nil {
			return Connects{}, err
		}
		b, err := timeConnect(second)
		if err != nil {
			return Connects{}, err
		}
		if i%2 == 1 {
			a, b = b, a
		}
		if i < warmup {
			continue
		}
		viaVIP = append(viaVIP, a)
		viaDirect = append(viaDirect, b)
		overhead = append(overhead, a-b)
	}
	return Connects{
		VIPp50:      Percentile(viaVIP, 50),
		DirectP50:   Percentile(viaDirect, 50),
		OverheadP50: Percentile(overhead, 50),
		Pairs:       pairs,
	}, nil
}

func timeConnect(to netip.AddrPort) (microseconds float64, err error) {
	fd, err := openSocket()
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	address := &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	began := time.Now()
	if err := unix.Connect(fd, address); err != nil {
		return 0, fmt.Errorf("connecting to %s: %w", to, err)
	}
	return float64(time.Since(began).Nanoseconds()) / 1e3, nil
}

// openSocket makes a TCP socket whose closing resets the connection, so that no port is left
// waiting.
func openSocket() (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		_ = unix.Close(fd)
		return 0, os.NewSyscallError("setsockopt", err)
	}
	return fd, nil
}

// Percentile returns the p-th percentile of some values, which it sorts.
func Percentile(values []float64, p float64) float64 {
	if len(values) == 0 {
		return 0
	}
	slices.Sort(values)
	index := int(p / 100 * float64(len(values)))
	return values[min(index, len(values)-1)]
}
