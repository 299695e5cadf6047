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
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"
)

const (
	rollingService = "rolling"
	rollingPort    = 9000
	// rollingStep is how many backends of a cluster are replaced at once.
	rollingStep = 5
)

// Serve opens and closes servers in this network, as it is told on in: "+address:port" and
// "-address:port". A server answers one byte of each connection. One that is closed takes no
// more connections, and finishes those that it has. Each order is answered by a line.
func Serve(in io.Reader, out io.Writer) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	listeners := map[string]net.Listener{}
	for lines := bufio.NewScanner(in); lines.Scan(); {
		what, address := lines.Text()[:1], lines.Text()[1:]
		if what == "-" {
			err = listeners[address].Close()
		} else {
			err = open(lo, address, listeners)
		}
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintln(out, "ok"); err != nil {
			return err
		}
	}
	return nil
}

func open(lo netlink.Link, address string, listeners map[string]net.Listener) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	ip := &net.IPNet{IP: at.Addr().AsSlice(), Mask: net.CIDRMask(32, 32)}
	if err := netlink.AddrReplace(lo, &netlink.Addr{IPNet: ip}); err != nil {
		return fmt.Errorf("adding the address %s: %w", at.Addr(), err)
	}
	listener, err := net.Listen("tcp4", address)
	if err != nil {
		return err
	}
	listeners[address] = listener
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				var b [1]byte
				for {
					if _, err := conn.Read(b[:]); err != nil {
						return
					}
					if _, err := conn.Write(b[:]); err != nil {
						return
					}
				}
			}()
		}
	}()
	return nil
}

// Dialed is what a process saw of its connections.
type Dialed struct {
	Answered int            `json:"answered"`
	Lost     int            `json:"lost"`
	Errors   map[string]int `json:"errors,omitempty"`
}

// Dial connects, asks, waits for the answer and closes, over and over until stop.
func Dial(to netip.AddrPort, stop <-chan struct{}) Dialed {
	d := Dialed{Errors: map[string]int{}}
	for {
		select {
		case <-stop:
			return d
		default:
		}
		if err := question(to); err != nil {
			d.Lost++
			d.Errors[err.Error()]++
			continue
		}
		d.Answered++
	}
}

// question is one connection with a question of one byte and its answer.
func question(to netip.AddrPort) error {
	fd, err := openSocket()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := patience(fd); err != nil {
		return err
	}
	if err := connectPatiently(fd, to); err != nil {
		return os.NewSyscallError("connect", err)
	}
	return ask(fd)
}

// connectPatiently connects, for at most three seconds. A signal does not end it.
func connectPatiently(fd int, to netip.AddrPort) error {
	const most = 3
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: most}); err != nil {
		return err
	}
	err := unix.Connect(fd, sockaddr(to))
	for errors.Is(err, unix.EINTR) {
		var n int
		if n, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, most*1000); err == nil && n == 0 {
			return unix.ETIMEDOUT
		} else if err == nil {
			result, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
			if err == nil && result != 0 {
				err = unix.Errno(result)
			}
			return err
		}
	}
	return err
}

// servers is a Serve somewhere.
type servers struct {
	command *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Reader
}

func (r *runner) serversAt(pid string) (*servers, error) {
	s := &servers{command: inNetwork(r.ctx, filepath.Join("/proc", pid, "ns", "net"), r.bin("bench"), "serve")}
	var err error
	if s.in, err = s.command.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := s.command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	s.out = bufio.NewReader(out)
	return s, s.command.Start()
}

func (s *servers) order(what string, addresses []netip.AddrPort) error {
	for _, address := range addresses {
		if _, err := fmt.Fprintf(s.in, "%s%s\n", what, address); err != nil {
			return err
		}
		if _, err := s.out.ReadString('\n'); err != nil {
			return fmt.Errorf("the servers have ended: %w", err)
		}
	}
	return nil
}

func (s *servers) stop() {
	_ = s.in.Close()
	_ = s.command.Wait()
}

// side is the half of the rolling service that is in one cluster.
type side struct {
	client  kubernetes.Interface
	servers *servers
	// now and next are the addresses of the backends, and of those that replace them.
	now, next []netip.AddrPort
}

// write makes the slice hold what is ready and what terminates.
func (s *side) write(r *runner, ready, terminating []netip.AddrPort) error {
	slices := s.client.DiscoveryV1().EndpointSlices(Namespace)
	slice, err := slices.Get(r.ctx, rollingService, metav1.GetOptions{})
	if err != nil {
		return err
	}
	slice.Endpoints = nil
	for _, address := range ready {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{address.Addr().String()}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)},
		})
	}
	for _, address := range terminating {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses:  []string{address.Addr().String()},
			Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(false), Serving: ptr.To(true), Terminating: ptr.To(true)},
		})
	}
	_, err = slices.Update(r.ctx, slice, metav1.UpdateOptions{})
	return err
}

func (r *runner) newSide(cluster string, number int) (*side, error) {
	config, err := r.restConfig(cluster)
	if err != nil {
		return nil, err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	s := &side{client: client}
	for i := range r.Backends / 2 {
		address := func(last int) netip.AddrPort {
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(number), 3, byte(last + i)}), rollingPort)
		}
		s.now, s.next = append(s.now, address(100)), append(s.next, address(170))
	}
	_, err = client.CoreV1().Services(Namespace).Create(r.ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: rollingService, Namespace: Namespace, Annotations: map[string]string{"mesh.io/global": "true", exportManual: "true"}},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP}}},
	}, metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	_, err = client.DiscoveryV1().EndpointSlices(Namespace).Create(r.ctx, &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Name: rollingService, Namespace: Namespace,
			Labels: map[string]string{discoveryv1.LabelServiceName: rollingService, discoveryv1.LabelManagedBy: "bench.mesh.io"},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To(""), Protocol: ptr.To(corev1.ProtocolTCP), Port: ptr.To(int32(rollingPort))}},
	}, metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	pids, err := r.pids()
	if err != nil {
		return nil, err
	}
	if s.servers, err = r.serversAt(pids[cluster+"-node3 (namespaces)"]); err != nil {
		return nil, err
	}
	if err := s.servers.order("+", s.now); err != nil {
		return nil, err
	}
	return s, s.write(r, s.now, nil)
}

// roll replaces all backends of a side, some at a time, as a Deployment and its Pods do it:
// the new one is ready, the old one terminates, goes on accepting for a while, and is gone.
func (s *side) roll(r *runner) error {
	at := func(from []netip.AddrPort, i, j int) []netip.AddrPort {
		return from[min(i, len(from)):min(j, len(from))]
	}
	for i := 0; i < len(s.now); i += rollingStep {
		old, fresh := at(s.now, i, i+rollingStep), at(s.next, i, i+rollingStep)
		if err := s.servers.order("+", fresh); err != nil {
			return err
		}
		if r.Drain < 0 {
			if err := s.servers.order("-", old); err != nil {
				return err
			}
			time.Sleep(-r.Drain)
		}
		ready := append(append([]netip.AddrPort{}, s.next[:min(i+rollingStep, len(s.next))]...), at(s.now, i+rollingStep, len(s.now))...)
		if err := s.write(r, ready, old); err != nil {
			return err
		}
		if r.Drain >= 0 {
			time.Sleep(r.Drain)
			if err := s.servers.order("-", old); err != nil {
				return err
			}
		}
	}
	s.now, s.next = s.next, s.now
	return s.write(r, s.now, nil)
}

// dialers connect all the time, some through us and some through kube-proxy.
type dialers struct {
	commands []*exec.Cmd
	inputs   []io.WriteCloser
	outputs  []io.Reader
}

func (r *runner) startDialers(pod place, cgroups []string, to netip.AddrPort) (*dialers, error) {
	d := &dialers{}
	for _, cgroup := range cgroups {
		command := inNetwork(r.ctx, pod.netns(), r.bin("bench"), "dial", "--to", to.String())
		in, err := command.StdinPipe()
		if err != nil {
			return nil, err
		}
		out, err := command.StdoutPipe()
		if err != nil {
			return nil, err
		}
		if err := begin(command, cgroup); err != nil {
			return nil, err
		}
		d.commands, d.inputs, d.outputs = append(d.commands, command), append(d.inputs, in), append(d.outputs, out)
	}
	return d, nil
}

// stop ends them and returns what each has seen.
func (d *dialers) stop() (all []Dialed, err error) {
	for i, command := range d.commands {
		_ = d.inputs[i].Close()
		var seen Dialed
		err = errors.Join(err, json.NewDecoder(d.outputs[i]).Decode(&seen), command.Wait())
		all = append(all, seen)
	}
	return all, err
}

// lost counts connects that fail while backends are replaced, the agent is killed, and the
// agent is upgraded to other programs.
func (r *runner) lost() ([]Result, error) {
	sides := make([]*side, 2)
	for i, cluster := range []string{"cluster1", "cluster2"} {
		var err error
		if sides[i], err = r.newSide(cluster, i+1); err != nil {
			return nil, err
		}
		defer sides[i].servers.stop()
	}
	const node = "cluster1-node1"
	if err := r.apply("cluster1", fmt.Sprintf(proxyClient, node)); err != nil {
		return nil, err
	}
	if _, err := r.kubectl("cluster1", "wait", "--for=condition=Ready", "pod/"+node, "--timeout", "60s"); err != nil {
		return nil, err
	}
	pod, err := r.podPlace("cluster1", node)
	if err != nil {
		return nil, err
	}
	vip, err := r.vip("cluster1", rollingService)
	if err != nil {
		return nil, err
	}
	address, err := netip.ParseAddr(vip)
	if err != nil {
		return nil, err
	}
	to := netip.AddrPortFrom(address, 80)
	r.targets = Targets{VIPs: []netip.AddrPort{to}}
	if err := r.programmed(node, r.Backends/2*2); err != nil {
		return nil, err
	}
	if err := r.answered(node); err != nil {
		return nil, err
	}
	plain, err := r.plainCgroup("dialer")
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(plain, 0o755); err != nil {
		return nil, err
	}

	roll := func() error {
		errs := make([]error, len(sides))
		var rolling sync.WaitGroup
		for i, side := range sides {
			rolling.Go(func() { errs[i] = side.roll(r) })
		}
		rolling.Wait()
		return errors.Join(errs...)
	}
	var results []Result
	count := func(name, what string, cgroups []string, during func() error) error {
		r.say("counting what is lost in " + what)
		dialers, err := r.startDialers(pod, cgroups, to)
		if err != nil {
			return err
		}
		time.Sleep(time.Second)
		err = during()
		time.Sleep(time.Second)
		seen, stopped := dialers.stop()
		if err := errors.Join(err, stopped); err != nil {
			return err
		}
		sums := map[string]*Dialed{pod.cgroup: {}, plain: {}}
		for i, cgroup := range cgroups {
			sum := sums[cgroup]
			sum.Answered, sum.Lost = sum.Answered+seen[i].Answered, sum.Lost+seen[i].Lost
			if seen[i].Lost > 0 {
				r.say(fmt.Sprintf("lost: %v", seen[i].Errors))
			}
		}
		ours, other := sums[pod.cgroup], sums[plain]
		result := Result{
			Name: "lost_connects, " + name, Value: float64(ours.Lost), Unit: "connects", Target: "0",
			Note: fmt.Sprintf("of %d connects, each with a question and its answer", ours.Answered+ours.Lost),
		}
		if other.Answered+other.Lost > 0 {
			result.Peers = map[string]float64{"kube-proxy nftables": float64(other.Lost)}
			result.Note += fmt.Sprintf("; of kube-proxy's %d, to the half of the backends that is in its cluster", other.Answered+other.Lost)
		}
		results = append(results, result)
		return nil
	}
	mesh, both := []string{pod.cgroup, pod.cgroup}, []string{pod.cgroup, pod.cgroup, plain, plain}
	err = count("rolling update", fmt.Sprintf("rolling updates of %d backends in two clusters, forth and back", r.Backends/2*2), both, func() error {
		return errors.Join(roll(), roll())
	})
	if err != nil {
		return results, err
	}
	err = count("agent restart", "restarts of the agent: killed, and stopped", mesh, func() error {
		if err := r.restarted(node, func() error { _, err := r.lab("kill", node+":mesh-agent"); return err }); err != nil {
			return err
		}
		return r.restarted(node, func() error {
			_, err := r.kubectl("cluster1", "-n", "mesh-system", "delete", "pod", "--field-selector", "spec.nodeName="+node, "-l", agentLabel)
			return err
		})
	})
	if err != nil {
		return results, err
	}
	before, err := r.onNode(node, r.bin("bench"), "tags")
	if err != nil {
		return results, err
	}
	err = count("agent upgrade", "an upgrade of the agents to other programs, and an update after it", mesh, func() error {
		if err := r.replaceAgent("mesh-agent-next"); err != nil {
			return err
		}
		for _, command := range [][]string{{"rollout", "restart", "ds/mesh-agent"}, {"rollout", "status", "ds/mesh-agent", "--timeout", "120s"}} {
			if _, err := r.kubectl("cluster1", append([]string{"-n", "mesh-system"}, command...)...); err != nil {
				return err
			}
		}
		return roll()
	})
	if err != nil {
		return results, err
	}
	after, err := r.onNode(node, r.bin("bench"), "tags")
	if err != nil {
		return results, err
	}
	for _, tag := range strings.Fields(before) {
		if strings.Contains(after, tag) {
			return results, fmt.Errorf("the upgrade left program %s in place: %s, before: %s", tag, after, before)
		}
	}
	results[len(results)-1].Note += "; every program was replaced by another"
	return results, nil
}

// replaceAgent makes another program of the build the agent of the lab.
func (r *runner) replaceAgent(program string) error {
	path := filepath.Join(r.programs(), "mesh-agent")
	if err := os.Link(r.bin(program), path+".new"); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
