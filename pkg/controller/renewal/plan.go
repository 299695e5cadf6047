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
	"fmt"
	"hash/fnv"
	"strings"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/peer"
)

// Plan is what there is to renew in the kubeconfig of a peer.
type Plan struct {
	// Users are those of the kubeconfig that have the token.
	Users []string
	// Token says what the one that expires first says of itself.
	Token peer.Token
	// Due is when it is to be renewed, and Late when it is worth a warning that it
	// has not been: after a third, and after two thirds of its life.
	Due, Late time.Time
}

// accountPrefix begins the user name of every ServiceAccount.
const accountPrefix = "system:serviceaccount:"

// NewPlan finds the tokens of the account that the peer has given to this cluster.
// Whatever else is in the kubeconfig is somebody's own and left alone; false says that
// there is nothing but that.
func NewPlan(kubeconfig []byte, self string) (Plan, bool) {
	config, err := clientcmd.Load(kubeconfig)
	if err != nil {
		return Plan{}, false
	}
	var plan Plan
	for name, user := range config.AuthInfos {
		token, err := peer.ReadToken(user.Token)
		if err != nil || !ours(token, self) {
			continue
		}
		plan.Users = append(plan.Users, name)
		if len(plan.Users) == 1 || token.Expires.Before(plan.Token.Expires) {
			plan.Token = token
		}
	}
	if len(plan.Users) == 0 {
		return Plan{}, false
	}
	life := plan.Token.Expires.Sub(plan.Token.IssuedAt)
	// Clusters that joined together do not renew together.
	spread := fnv.New32a()
	_, _ = spread.Write([]byte(plan.Token.ID + self))
	plan.Due = due(plan.Token).Add(life / 30 * time.Duration(spread.Sum32()%1000) / 1000)
	plan.Late = plan.Token.IssuedAt.Add(life / 3 * 2)
	return plan, true
}

func ours(token peer.Token, self string) bool {
	account, found := strings.CutPrefix(token.Subject, accountPrefix)
	_, name, _ := strings.Cut(account, ":")
	return found && name == v1alpha1.PeerPrefix+self && !token.IssuedAt.IsZero() && token.Expires.After(token.IssuedAt)
}

// Accept checks a token that the peer has answered with, before it takes the place of
// the one that works.
func (p Plan) Accept(answer string, now time.Time) error {
	fresh, err := peer.ReadToken(answer)
	switch {
	case err != nil:
		return err
	case fresh.Subject != p.Token.Subject:
		return fmt.Errorf("the peer answers with a token of %q, not of %q", fresh.Subject, p.Token.Subject)
	case !due(fresh).After(now):
		// It may well be shorter than the old one: its life is the peer's to choose. But
		// one that is to be renewed at once would have it asked without an end.
		return fmt.Errorf("the peer answers with a token that is good from %s to %s only; compare the two clusters' clocks",
			fresh.IssuedAt.UTC().Format(time.RFC3339), fresh.Expires.UTC().Format(time.RFC3339))
	}
	return nil
}

// due is when a third of a token's life is over.
func due(token peer.Token) time.Time {
	return token.IssuedAt.Add(token.Expires.Sub(token.IssuedAt) / 3)
}

// Put returns the kubeconfig with another token in the place of the old one.
func (p Plan) Put(kubeconfig []byte, token string) ([]byte, error) {
	config, err := clientcmd.Load(kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("reading the kubeconfig: %w", err)
	}
	for _, name := range p.Users {
		if config.AuthInfos[name] == nil {
			config.AuthInfos[name] = clientcmdapi.NewAuthInfo()
		}
		config.AuthInfos[name].Token = token
	}
	content, err := clientcmd.Write(*config)
	if err != nil {
		return nil, fmt.Errorf("writing the kubeconfig: %w", err)
	}
	return content, nil
}
