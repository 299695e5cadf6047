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
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"k8s.io/klog/v2"
)

// Token is what the token of a ServiceAccount says about itself.
type Token struct {
	// Subject is the account's user name.
	Subject string
	// ID is the token's own.
	ID string
	// AccountUID is that of the account.
	AccountUID string
	// IssuedAt and Expires bound its life.
	IssuedAt, Expires time.Time
}

// maxToken bounds a token. Those of ServiceAccounts have about one kilobyte.
const maxToken = 16 << 10

// ReadToken reads what a token says. It does not ask whether that is true: only the
// cluster that has made it can tell.
func ReadToken(token string) (Token, error) {
	if len(token) > maxToken {
		return Token{}, fmt.Errorf("reading a token: it has %d bytes, and those of ServiceAccounts at most %d", len(token), maxToken)
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return Token{}, errors.New("reading a token: it is not that of a ServiceAccount")
	}
	content, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return Token{}, fmt.Errorf("reading a token: %w", err)
	}
	var claims struct {
		Subject  string  `json:"sub"`
		ID       string  `json:"jti"`
		IssuedAt float64 `json:"iat"`
		Expires  float64 `json:"exp"`
		Cluster  struct {
			Account struct {
				UID string `json:"uid"`
			} `json:"serviceaccount"`
		} `json:"kubernetes.io"`
	}
	if err := json.Unmarshal(content, &claims); err != nil {
		// What is wrong with it may quote it.
		return Token{}, errors.New("reading a token: its claims are not JSON")
	}
	return Token{
		Subject: claims.Subject, ID: claims.ID, AccountUID: claims.Cluster.Account.UID,
		IssuedAt: moment(claims.IssuedAt), Expires: moment(claims.Expires),
	}, nil
}

// Quiet is for requests that carry credentials: a client that is to log much (-v=8 and more)
// logs what it sends and gets, too.
func Quiet(ctx context.Context) context.Context { return klog.NewContext(ctx, klog.Logger{}) }

// moment is a time as tokens have it; the zero time where there is none.
func moment(seconds float64) time.Time {
	if !(seconds > 0 && seconds < 1<<40) {
		return time.Time{}
	}
	return time.Unix(int64(seconds), 0)
}
