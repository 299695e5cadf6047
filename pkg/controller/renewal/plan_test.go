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

package renewal

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

var start = time.Unix(1_800_000_000, 0)

func token(subject string, from, to time.Time) string {
	content, _ := json.Marshal(map[string]any{"sub": subject, "iat": from.Unix(), "exp": to.Unix(), "jti": "x"})
	return "e30." + base64.RawURLEncoding.EncodeToString(content) + ".c2ln"
}

const own = "system:serviceaccount:mesh-system:mesh-peer-cluster1"

func kubeconfig(t *testing.T, tokens map[string]string) []byte {
	t.Helper()
	config := clientcmdapi.NewConfig()
	config.Clusters["a"] = &clientcmdapi.Cluster{Server: "https://192.0.2.1", CertificateAuthorityData: []byte("ca")}
	for name, token := range tokens {
		config.AuthInfos[name] = &clientcmdapi.AuthInfo{Token: token}
		config.Contexts[name] = &clientcmdapi.Context{Cluster: "a", AuthInfo: name}
	}
	content, err := clientcmd.Write(*config)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func TestPlan(t *testing.T) {
	hours := func(n int) time.Time { return start.Add(time.Duration(n) * time.Hour) }
	for name, test := range map[string]struct {
		tokens map[string]string
		users  int
		life   int
	}{
		"ours":                              {map[string]string{"a": token(own, start, hours(30))}, 1, 30},
		"the one that expires first counts": {map[string]string{"a": token(own, start, hours(60)), "b": token(own, start, hours(30))}, 2, 30},
		"somebody else's":                   {map[string]string{"a": token("system:serviceaccount:mesh-system:mesh-peer", start, hours(30))}, 0, 0},
		"another cluster's":                 {map[string]string{"a": token("system:serviceaccount:mesh-system:mesh-peer-cluster2", start, hours(30))}, 0, 0},
		"no account's":                      {map[string]string{"a": token("mesh-peer-cluster1", start, hours(30))}, 0, 0},
		"without a beginning":               {map[string]string{"a": token(own, time.Unix(0, 0), hours(30))}, 0, 0},
		"that ends before it begins":        {map[string]string{"a": token(own, start, hours(-1))}, 0, 0},
		"not one that says anything":        {map[string]string{"a": "opaque", "b": "a.b.c"}, 0, 0},
		"no token":                          {map[string]string{"a": ""}, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			plan, ok := NewPlan(kubeconfig(t, test.tokens), "cluster1")
			if ok != (test.users > 0) || len(plan.Users) != test.users {
				t.Fatalf("NewPlan() = %+v, %v", plan, ok)
			}
			if !ok {
				return
			}
			third := start.Add(time.Duration(test.life) * time.Hour / 3)
			if plan.Due.Before(third) || plan.Due.After(third.Add(time.Duration(test.life)*time.Hour/30)) {
				t.Errorf("due at %s, a third is over at %s", plan.Due, third)
			}
			if want := start.Add(time.Duration(test.life) * time.Hour * 2 / 3); !plan.Late.Equal(want) {
				t.Errorf("late at %s, want %s", plan.Late, want)
			}
		})
	}
	if _, ok := NewPlan([]byte("}{"), "cluster1"); ok {
		t.Error("something is renewed in what is no kubeconfig")
	}
}

func TestAcceptAndPut(t *testing.T) {
	now := start.Add(10 * time.Hour)
	before := kubeconfig(t, map[string]string{"a": token(own, start, start.Add(30*time.Hour)), "b": "somebody's"})
	plan, ok := NewPlan(before, "cluster1")
	if !ok {
		t.Fatal("nothing to renew")
	}
	fresh := token(own, now, now.Add(time.Hour))
	for name, test := range map[string]struct{ token, want string }{
		"another one, though shorter": {fresh, ""},
		"nothing":                     {"", "not that of a ServiceAccount"},
		"another account's":           {token("system:serviceaccount:x:y", now, now.Add(time.Hour)), "not of"},
		"one that is old":             {token(own, start, now.Add(time.Hour)), "clocks"},
	} {
		if err := plan.Accept(test.token, now); test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
	after, err := plan.Put(before, fresh)
	if err != nil {
		t.Fatal(err)
	}
	want, _ := clientcmd.Load(before)
	want.AuthInfos["a"].Token = fresh
	content, _ := clientcmd.Write(*want)
	if string(after) != string(content) {
		t.Errorf("more has changed than the token:\n%s", after)
	}
}
