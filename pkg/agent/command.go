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

package agent

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"mesh.io/clustermesh/pkg/agent/bypass"
	"mesh.io/clustermesh/pkg/agent/datapath"
	"mesh.io/clustermesh/pkg/agent/desired"
	"mesh.io/clustermesh/pkg/agent/dump"
	"mesh.io/clustermesh/pkg/agent/snapshot"
	"mesh.io/clustermesh/pkg/layout"
)

// NewCommand returns the program: without a subcommand it runs the agent.
func NewCommand() *cobra.Command {
	options := NewOptions()
	command := &cobra.Command{
		Use:   "mesh-agent",
		Short: "Balances this node's connections to global Services over all clusters",
		Long: `mesh-agent runs on each node. It watches this cluster's Services and endpoints and
the endpoints of the other clusters, and programs the kernel so that a connection to
a global Service reaches a ready backend of any cluster. What it does not know or
cannot program is left to kube-proxy. Stopping it changes nothing in the kernel:
connections go on being balanced as they were. Beside another agent on the same node
it refuses to run, with exit code 75.`,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return options.Run(cmd.Context())
		},
	}
	options.AddFlags(command.Flags())
	logging := flag.NewFlagSet("", flag.ContinueOnError)
	klog.InitFlags(logging)
	command.PersistentFlags().AddGoFlag(logging.Lookup("v"))
	command.AddCommand(newDumpCommand(), newCleanupCommand())
	return command
}

func newDumpCommand() *cobra.Command {
	where := NewOptions().places
	output, service := "table", ""
	command := &cobra.Command{
		Use:   "dump",
		Short: "Print the table that the kernel holds; works without the agent too",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return printDump(cmd.OutOrStdout(), &where, output, service)
		},
	}
	where.addFlags(command.Flags())
	command.Flags().StringVarP(&output, "output", "o", output, "table, wide, with what connections to each backend met, or json.")
	command.Flags().StringVar(&service, "service", service, "Print this Service only, as namespace/name.")
	return command
}

// printDump prints the kernel's table, and what the last agent said it had left out.
func printDump(out io.Writer, where *places, output, service string) error {
	if !slices.Contains([]string{"table", "wide", "json"}, output) {
		return fmt.Errorf("--output %q is none of table, wide and json", output)
	}
	table, err := datapath.Read(where.pinDir())
	if err != nil {
		return err
	}
	table.Services = slices.DeleteFunc(table.Services, func(s datapath.Service) bool { return s.Frontend.IsCanary() })
	reports, err := readReports(where.StateDir)
	if err != nil {
		return err
	}
	if service != "" {
		table.Services = slices.DeleteFunc(table.Services, func(s datapath.Service) bool {
			return s.Port.Namespace+"/"+s.Port.Name != service
		})
		reports.Left = slices.DeleteFunc(reports.Left, func(l dump.Left) bool {
			return l.Service != service && !strings.HasPrefix(l.Service, service+":")
		})
	}
	if output == "json" {
		document := newDumpDocument(table, reports)
		if agent, err := askAgent(reports.Health); err != nil {
			document.AgentProblem = err.Error()
		} else {
			document.Agent = agent
		}
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		return encoder.Encode(document)
	}
	return writeDump(out, layout.Width(out), table, reports, output == "wide")
}

func writeDump(out io.Writer, width int, table *datapath.Snapshot, reports Reports, wide bool) error {
	if err := datapath.WriteTable(out, width, table, wide); err != nil {
		return err
	}
	for _, left := range reports.Left {
		layout.Hanging(out, width, 0, fmt.Sprintf("Left to kube-proxy: %s: %s", left.Service, left.Reason))
	}
	switch {
	case table.HeartbeatAge < 0:
		fmt.Fprintln(out, "No agent has been alive yet.")
	case table.HeartbeatAge > time.Minute:
		fmt.Fprintf(out, "The agent was last alive %s ago.\n", table.HeartbeatAge.Round(time.Second))
	}
	return nil
}

// askAgent asks the agent that runs on this node what it says about itself, at the
// address that it has left in its status file.
func askAgent(address string) (*dump.Agent, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil || port == "0" {
		return nil, errors.New("the agent serves no health on this node, or has not programmed anything yet")
	}
	if addr, err := netip.ParseAddr(host); host == "" || err == nil && addr.IsUnspecified() {
		host = "localhost"
	}
	client := http.Client{Timeout: 2 * time.Second}
	response, err := client.Get("http://" + net.JoinHostPort(host, port) + "/readyz?verbose")
	if err != nil {
		return nil, fmt.Errorf("asking the agent for its health: %w", err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("asking the agent for its health: %w", err)
	}
	agent := dump.ParseReadyz(string(body))
	return &agent, nil
}

func newDumpDocument(table *datapath.Snapshot, reports Reports) dump.Document {
	document := dump.Document{
		Services:        make([]dump.Service, 0, len(table.Services)),
		Events:          table.Counters,
		LeftToKubeProxy: append([]dump.Left{}, reports.Left...),
	}
	if table.HeartbeatAge >= 0 {
		age := table.HeartbeatAge.Seconds()
		document.HeartbeatAgeSeconds = &age
	}
	for _, s := range table.Services {
		service := dump.Service{
			ID:         s.ID,
			Address:    s.Frontend.Addr.String(),
			Port:       s.Frontend.Port,
			Protocol:   s.Frontend.Protocol.String(),
			Namespace:  s.Port.Namespace,
			Name:       s.Port.Name,
			PortName:   s.Port.Port,
			LocalReady: s.LocalReady,

			AffinitySeconds: s.AffinitySeconds,
			Backends:        make([]dump.Backend, 0, len(s.Backends)),
		}
		for _, b := range s.Backends {
			service.Backends = append(service.Backends, dump.Backend{
				ID:        b.ID,
				Address:   b.Addr.Addr().String(),
				Port:      b.Addr.Port(),
				Cluster:   table.Clusters[b.ClusterID],
				ClusterID: b.ClusterID,
				State:     b.State.String(),
				Slots:     b.Slots,
				Preferred: b.Slots > 0,
				Traffic:   newDumpTraffic(s.Frontend.Protocol, b.Traffic),
			})
		}
		document.Services = append(document.Services, service)
	}
	return document
}

func newDumpTraffic(protocol desired.Protocol, t *datapath.Traffic) *dump.Traffic {
	if t == nil {
		return nil
	}
	traffic := &dump.Traffic{Attempts: t.Attempts}
	if protocol == desired.TCP {
		traffic.TCP = &dump.TCPTraffic{
			Established: t.Established,
			Refused:     t.Refused,
			TimedOut:    t.TimedOut,
			Aborted:     t.Aborted,
			Active:      t.Active,
			RTTSeconds:  dump.RoundTrips{Sum: t.RTT.Seconds(), Count: t.Measured},
		}
	}
	return traffic
}

func newCleanupCommand() *cobra.Command {
	where := NewOptions().places
	var more []string
	command := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove everything of the agent from this node: programs, maps, pins, nftables and state",
		Long: `cleanup removes everything of the agent from this node. New connections are served
by kube-proxy from then on; open ones stay. Stop the agent first.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return cleanup(cmd.OutOrStdout(), &where, more)
		},
	}
	where.addFlags(command.Flags())
	command.Flags().StringSliceVar(&more, "remove", nil, "Folders to remove as well, with all that is in them: those of other programs of the mesh.")
	return command
}

// lockFile is held by the data path of an agent that runs.
const lockFile = "datapath.lock"

func cleanup(out io.Writer, where *places, more []string) error {
	lock, err := os.OpenFile(filepath.Join(where.StateDir, lockFile), os.O_RDWR, 0)
	if err == nil {
		defer lock.Close()
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
			return errors.New("an agent runs on this node: stop it first")
		}
	}
	var errs []error
	if err := datapath.Cleanup(where.pinDir()); errors.Is(err, datapath.ErrLocked) {
		return errors.New("an agent with another --state-dir runs on this node: stop it first")
	} else if err != nil {
		errs = append(errs, err)
	}
	if err := bypass.Remove(); err != nil {
		errs = append(errs, err)
	}
	for _, name := range []string{snapshot.FileName, statusFile, lockFile} {
		if err := os.Remove(filepath.Join(where.StateDir, name)); err != nil && !os.IsNotExist(err) {
			errs = append(errs, fmt.Errorf("removing state: %w", err))
		}
	}
	for _, folder := range more {
		if err := os.RemoveAll(folder); err != nil {
			errs = append(errs, fmt.Errorf("removing what was asked for: %w", err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	// It stays if it is mounted here, or holds what is not ours.
	_ = os.Remove(where.StateDir)
	fmt.Fprintln(out, "Removed the programs, maps, pins and state of mesh-agent from this node.")
	return nil
}
