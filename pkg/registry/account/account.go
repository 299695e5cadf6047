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

// Package account knows the ServiceAccounts that stand for other clusters: which of
// them sends a request, and what token it gets.
package account

import (
	"context"
	"errors"
	"fmt"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/apiserver/pkg/authentication/user"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
	"mesh.io/clustermesh/pkg/apis/mesh/validation"
	"mesh.io/clustermesh/pkg/peer"
)

// Life is for how many seconds a token is good unless somebody asks for less or more.
const Life int64 = 30 * 24 * 60 * 60

// Accounts are those in the namespace of the mesh.
type Accounts struct {
	// Client reaches the cluster's own API server.
	Client    kubernetes.Interface
	Namespace string
}

// Caller is the account that sends a request, for one other cluster.
type Caller struct {
	// Name is the account's, Cluster that of the cluster that it is for.
	Name, Cluster string
	// UID is the account's.
	UID types.UID
	// TokenID is the ID of the token that was used.
	TokenID string
}

// Caller returns who sends the request, if that is an account of the mesh whose name
// begins so, by a token of its own.
func (a Accounts) Caller(ctx context.Context, prefix string) (Caller, error) {
	info, ok := genericapirequest.UserFrom(ctx)
	if !ok {
		return Caller{}, errors.New("it is not known who asks")
	}
	namespace, name, err := serviceaccount.SplitUsername(info.GetName())
	cluster, found := strings.CutPrefix(name, prefix)
	if err != nil || namespace != a.Namespace || !found || len(validation.ClusterName(cluster)) > 0 {
		return Caller{}, fmt.Errorf("only the ServiceAccount %s<cluster> in namespace %s may ask for this, for itself; user %q is none",
			prefix, a.Namespace, info.GetName())
	}
	caller := Caller{Name: name, Cluster: cluster, UID: types.UID(info.GetUID())}
	for _, id := range info.GetExtra()[user.CredentialIDKey] {
		if id, found := strings.CutPrefix(id, "JTI="); found {
			caller.TokenID = id
		}
	}
	// Who merely acts for the account must not come by a token that outlives that.
	if caller.UID == "" || caller.TokenID == "" {
		return Caller{}, fmt.Errorf("the ServiceAccount %s must ask for this at mesh-apiserver itself, with a token of its own", name)
	}
	return caller, nil
}

// ErrGone says that there is no such account, or another one by the same name.
var ErrGone = errors.New("the account has been deleted")

// Token makes a token for an account. A UID that is given must be the account's.
func (a Accounts) Token(ctx context.Context, name string, uid types.UID, seconds int64) (*authenticationv1.TokenRequestStatus, error) {
	made, err := a.Client.CoreV1().ServiceAccounts(a.Namespace).CreateToken(peer.Quiet(ctx), name, &authenticationv1.TokenRequest{
		ObjectMeta: metav1.ObjectMeta{UID: uid},
		Spec:       authenticationv1.TokenRequestSpec{ExpirationSeconds: ptr.To(seconds)},
	}, metav1.CreateOptions{})
	switch {
	case apierrors.IsNotFound(err), uid != "" && apierrors.IsConflict(err):
		return nil, ErrGone
	case apierrors.IsForbidden(err):
		return nil, fmt.Errorf("mesh-apiserver may not make tokens for ServiceAccount %s/%s: Role %s%s and its binding must let it create serviceaccounts/token of that name",
			a.Namespace, name, v1alpha1.PeerPrefix, strings.TrimPrefix(name, v1alpha1.PeerPrefix))
	case err != nil:
		return nil, apierrors.NewServiceUnavailable(fmt.Sprintf("asking the cluster for a token of ServiceAccount %s/%s: %v", a.Namespace, name, err))
	}
	// A cluster that does not compare the UID itself may have made it for another account.
	token, err := peer.ReadToken(made.Status.Token)
	if err != nil {
		return nil, err
	}
	if uid != "" && token.AccountUID != string(uid) {
		return nil, ErrGone
	}
	return &made.Status, nil
}
