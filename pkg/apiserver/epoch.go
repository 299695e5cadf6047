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
	"context"
	"crypto/rand"
	"fmt"
	"path"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/klog/v2"

	"mesh.io/clustermesh/pkg/apis/mesh/v1alpha1"
)

const (
	// storeTimeout bounds the wait for the store when the server starts.
	storeTimeout = time.Minute
	// storeTry bounds one attempt in that time.
	storeTry = 5 * time.Second
)

// epochKey is beside the objects, so that a copy of the store has the same epoch.
var epochKey = path.Join(storagePrefix, v1alpha1.GroupName, "store-epoch")

// storeEpoch returns the value that tells this store from any other. The first
// server that opens the store writes it.
func storeEpoch(ctx context.Context, config storagebackend.TransportConfig) (string, error) {
	logger := klog.FromContext(ctx)
	info := transport.TLSInfo{CertFile: config.CertFile, KeyFile: config.KeyFile, TrustedCAFile: config.TrustedCAFile}
	clientConfig := clientv3.Config{Endpoints: config.ServerList, DialTimeout: storeTry, Logger: zap.NewNop()}
	if info.CertFile != "" || info.TrustedCAFile != "" {
		tlsConfig, err := info.ClientConfig()
		if err != nil {
			return "", fmt.Errorf("reading the certificates for etcd: %w", err)
		}
		clientConfig.TLS = tlsConfig
	}
	client, err := clientv3.New(clientConfig)
	if err != nil {
		return "", fmt.Errorf("connecting to etcd: %w", err)
	}
	defer client.Close()

	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	for {
		epoch, err := readOrWriteEpoch(ctx, client)
		if err == nil {
			return epoch, nil
		}
		if ctx.Err() != nil {
			return "", fmt.Errorf("reading the epoch of the store from etcd at %v: %w", config.ServerList, err)
		}
		logger.Info("Waiting for etcd", "servers", config.ServerList, "err", err.Error())
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

func readOrWriteEpoch(ctx context.Context, client *clientv3.Client) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTry)
	defer cancel()
	fresh := rand.Text()
	answer, err := client.Txn(ctx).
		If(clientv3.Compare(clientv3.CreateRevision(epochKey), "=", 0)).
		Then(clientv3.OpPut(epochKey, fresh)).
		Else(clientv3.OpGet(epochKey)).
		Commit()
	if err != nil {
		return "", err
	}
	if answer.Succeeded {
		return fresh, nil
	}
	return string(answer.Responses[0].GetResponseRange().Kvs[0].Value), nil
}
