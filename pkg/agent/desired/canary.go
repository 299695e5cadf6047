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

package desired

import "net/netip"

// canaryFrontend is an address that no Service can have and no packet ever bears: the
// IPv4 dummy address (RFC 7600).
var canaryFrontend = Frontend{Addr: netip.AddrFrom4([4]byte{192, 0, 0, 8}), Port: 9, Protocol: UDP}

// Canary returns the service by which an agent proves, by connections of its own, that
// connections are balanced. Its only backend is the client's own host.
func Canary() Service {
	return Service{
		Frontend: canaryFrontend,
		Port:     ServicePort{Name: "canary"},
		Backends: []Backend{{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 9), Slots: 1}},
	}
}

// IsCanary says whether the frontend is the canary's, which is not for people.
func (f Frontend) IsCanary() bool { return f == canaryFrontend }
