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

package remote

import (
	"context"
	"io"
	"net/http"
	"time"

	"k8s.io/client-go/rest"
)

// Clock asks kube-apiserver for the time, and so whether it answers at all. ahead is how
// far its clock is ahead of this machine's, to within within; both are zero if it does
// not say.
func Clock(ctx context.Context, config *rest.Config) (ahead, within time.Duration, err error) {
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return 0, 0, err
	}
	base, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return 0, 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	// The second time the connection stands, and the answer takes little.
	for range 2 {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, base.JoinPath("/version").String(), nil)
		if err != nil {
			return 0, 0, err
		}
		began := time.Now()
		response, err := client.Do(request)
		if err != nil {
			return 0, 0, err
		}
		took := time.Since(began)
		_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, 1<<20))
		response.Body.Close()
		if date, err := http.ParseTime(response.Header.Get("Date")); err == nil {
			// The header has whole seconds, cut off.
			ahead, within = date.Add(500*time.Millisecond).Sub(began.Add(took/2)), took/2+500*time.Millisecond
		}
	}
	return ahead, within, nil
}
