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

package peer

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/rest"
)

// metadata are addresses at which clouds tell a machine who it is, beside those that
// are link-local.
var metadata = []netip.Addr{
	netip.MustParseAddr("fd00:ec2::254"), netip.MustParseAddr("fd20:ce::254"), netip.MustParseAddr("fd00:42::42"),
	netip.MustParseAddr("100.100.100.200"), netip.MustParseAddr("168.63.129.16"), netip.MustParseAddr("192.0.0.192"),
}

// nat64 is the prefix of IPv6 addresses that lead to the IPv4 address in them.
var nat64 = netip.MustParsePrefix("64:ff9b::/96")

// local says why an address means another machine to everybody who uses it, or nothing.
func local(address netip.Addr) string {
	if address.Zone() != "" {
		return "is of one link only"
	}
	address = address.Unmap()
	if nat64.Contains(address) {
		bytes := address.As16()
		address = netip.AddrFrom4([4]byte(bytes[12:]))
	}
	switch {
	case address.IsLoopback():
		return "is a loopback address"
	case address.IsUnspecified(), address.Is4() && address.As4()[0] == 0:
		return "is the address of no machine"
	case address.IsLinkLocalUnicast():
		return "is a link-local address"
	case address.IsMulticast(), address == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "is a multicast address"
	case slices.Contains(metadata, address):
		return "is that of a cloud's metadata service"
	}
	return ""
}

// CheckAddress checks an address, HOST or HOST:PORT, that somebody else has given: that it
// is one, and that it does not mean another machine to everybody who uses it, as
// loopback and link-local addresses do. What a name leads to shows when it is used.
func CheckAddress(address string) error {
	host := address
	if addr, err := netip.ParseAddr(strings.Trim(address, "[]")); err == nil {
		host = addr.String()
	} else if h, port, err := net.SplitHostPort(address); err == nil {
		if number, err := strconv.ParseUint(port, 10, 16); err != nil || number == 0 {
			return fmt.Errorf("%.100q has no port from 1 to 65535", address)
		}
		host = h
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		if why := local(addr); why != "" {
			return fmt.Errorf("%s %s", addr, why)
		}
		return nil
	}
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	if len(validation.IsDNS1123Subdomain(name)) > 0 {
		return fmt.Errorf("%.100q is neither an IP address nor the name of a host", host)
	}
	last := name[strings.LastIndex(name, ".")+1:]
	if _, err := strconv.ParseUint(last, 0, 64); err == nil || strings.Trim(last, "0123456789") == "" {
		return fmt.Errorf("%.100q is an IP address in an unusual form", host)
	}
	switch {
	case last == "localhost", last == "localdomain", name == "metadata", name == "metadata.google.internal":
		return fmt.Errorf("%.100q means another machine to everybody who uses it", host)
	}
	return nil
}

// errLocal is the reason for not connecting.
type errLocal struct{ address, why string }

func (e *errLocal) Error() string {
	return fmt.Sprintf("%s %s, to which nobody is led who was not told to by an administrator of this cluster", e.address, e.why)
}

// Dialer connects to peers. One that is guarded refuses to connect to addresses that mean
// another machine to everybody who uses them, whatever name has led there.
func Dialer(guarded bool) *net.Dialer {
	d := &net.Dialer{Timeout: 5 * time.Second, KeepAlive: 10 * time.Second}
	if guarded {
		d.Control = refuseLocal
	}
	return d
}

// Guard gives a guarded dialer to endpoints that somebody else has given.
func Guard(endpoints []Endpoint) {
	for _, endpoint := range endpoints {
		endpoint.Config.Dial = Dialer(true).DialContext
	}
}

func refuseLocal(_, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("connecting to %q: %w", address, err)
	}
	if why := local(at.Addr()); why != "" {
		return &errLocal{at.Addr().String(), why}
	}
	return nil
}

// checkURL checks the address of an API server that somebody else has given.
func checkURL(server string) error {
	u, err := url.Parse(server)
	switch {
	case err != nil, u.Scheme != "https", u.Host == "":
		return errors.New("server must be an https address")
	case u.User != nil:
		return errors.New("server must name no user")
	case strings.Trim(u.Path, "/") != "", u.RawQuery != "", u.Fragment != "", u.Opaque != "":
		return errors.New("server must be https://HOST:PORT and no more")
	}
	return nil
}

// maxAnswer is room for everything that a peer is asked for and that is no watch.
const maxAnswer = 1 << 20

// Bounded is a way to a peer that is used for single answers, which are not read
// further than any of them is long.
func Bounded(config *rest.Config) *rest.Config {
	config = rest.CopyConfig(config)
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return &bounded{next} })
	return config
}

type bounded struct{ http.RoundTripper }

func (b *bounded) RoundTrip(request *http.Request) (*http.Response, error) {
	response, err := b.RoundTripper.RoundTrip(request)
	if err == nil {
		response.Body = &boundedBody{response.Body, maxAnswer}
	}
	return response, err
}

// WrappedRoundTripper is what is below, for those who look for a connection.
func (b *bounded) WrappedRoundTripper() http.RoundTripper { return b.RoundTripper }

type boundedBody struct {
	io.ReadCloser
	left int
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("the peer answers with more than %d bytes", maxAnswer)
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// straight goes nowhere else than to the address that it was told: a peer that sends
// its callers on could have them ask, and tell it of, what only they can reach.
type straight struct{ http.RoundTripper }

// Straight makes a way to a peer that follows no redirects.
func Straight(config *rest.Config) {
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return &straight{next} })
}

func (s *straight) RoundTrip(request *http.Request) (*http.Response, error) {
	response, err := s.RoundTripper.RoundTrip(request)
	if err == nil && response.StatusCode >= 300 && response.StatusCode < 400 {
		_ = response.Body.Close()
		return nil, fmt.Errorf("the peer answers with %s, which is not followed", response.Status)
	}
	return response, err
}

// WrappedRoundTripper is what is below, for those who look for a connection.
func (s *straight) WrappedRoundTripper() http.RoundTripper { return s.RoundTripper }
