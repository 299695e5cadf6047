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

package apiserver

import (
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func parse(t *testing.T, args ...string) *Options {
	t.Helper()
	options := NewOptions()
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	sets := options.Flags()
	for _, set := range sets.FlagSets {
		flags.AddFlagSet(set)
	}
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	options.Complete()
	return options
}

func TestValidate(t *testing.T) {
	tests := []struct {
		name string
		args string
		want []string
	}{
		{"embedded", "--data-dir=/d", nil},
		{"external", "--etcd-servers=https://a:2379,https://b:2379 --etcd-cafile=ca --etcd-certfile=c --etcd-keyfile=k", nil},
		{"no store", "", []string{"either --data-dir or --etcd-servers is needed"}},
		{"two stores", "--data-dir=/d --etcd-servers=http://a", []string{"exclude each other"}},
		{"certificates for the embedded one", "--data-dir=/d --etcd-cafile=ca", []string{"are for --etcd-servers"}},
		{"half a pair", "--etcd-servers=http://a --etcd-certfile=c", []string{"--etcd-certfile and --etcd-keyfile need each other"}},
		{"half of another pair", "--data-dir=/d --tls-cert-file=c", []string{"--tls-cert-file and --tls-private-key-file need each other"}},
		{"a port that does not exist", "--data-dir=/d --secure-port=70000", []string{"--secure-port 70000"}},
		{"names", "--data-dir=/d --service-name=A --service-namespace=b.c", []string{`--service-name "A"`, `--service-namespace "b.c"`}},
		{"reload of nothing", "--data-dir=/d --encryption-provider-config-automatic-reload", []string{"--encryption-provider-config-automatic-reload must be set with"}},
		{"time runs forward", "--data-dir=/d --shutdown-delay-duration=-1s", []string{"must not be negative"}},
		{"everything at once", "--secure-port=0 --service-name=A", []string{"--secure-port 0", "either --data-dir", `--service-name "A"`}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			err := parse(t, strings.Fields(test.args)...).Validate()
			if len(test.want) == 0 && err != nil {
				t.Fatal(err)
			}
			for _, want := range test.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("error is %v, want it to contain %q", err, want)
				}
			}
		})
	}
}

func TestCertificateNames(t *testing.T) {
	names, addresses := parse(t, "--bind-address=192.0.2.1", "--service-name=api", "--service-namespace=ns", "--tls-san=mesh.example.com,198.51.100.7").certificateNames()
	for _, want := range []string{"api", "api.ns", "api.ns.svc", "api.ns.svc.cluster.local", "localhost", "mesh.example.com"} {
		if !slices.Contains(names, want) {
			t.Errorf("no %s in %v", want, names)
		}
	}
	for _, want := range []string{"127.0.0.1", "::1", "192.0.2.1", "198.51.100.7"} {
		if !slices.ContainsFunc(addresses, net.ParseIP(want).Equal) {
			t.Errorf("no %s in %v", want, addresses)
		}
	}
	if _, addresses := parse(t).certificateNames(); slices.ContainsFunc(addresses, net.IPv4zero.Equal) {
		t.Errorf("the address of all addresses is in %v", addresses)
	}
}

// TestFlags keeps the flags few: each is a promise.
func TestFlags(t *testing.T) {
	sets := NewOptions().Flags()
	count := 0
	for _, set := range sets.FlagSets {
		set.VisitAll(func(flag *pflag.Flag) {
			count++
			if !strings.HasSuffix(flag.Usage, ".") {
				t.Errorf("--%s: its description is no sentence: %q", flag.Name, flag.Usage)
			}
		})
	}
	if count > 25 {
		t.Errorf("there are %d flags", count)
	}
}
