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
	"strconv"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
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

var (
	// epochKey is beside the objects, so that a copy of the store has the same epoch. A
	// restore therefore removes it.
	epochKey = path.Join(storagePrefix, v1alpha1.GroupName, "store-epoch")
	// epochClusterKey holds the ID of the etcd cluster that the epoch was written in: an
	// etcd that was restored as another cluster shows by it that its epoch is old. It is
	// a key of its own, so that a server of the release before reads the epoch as ever.
	epochClusterKey = path.Join(storagePrefix, v1alpha1.GroupName, "store-epoch-cluster")
	// identityKeys tell the store from every other. The first is in every store.
	identityKeys = []string{epochKey, epochClusterKey}
)

// storeEpoch returns the value that tells this store from any other. The first
// server that opens the store writes it.
func storeEpoch(ctx context.Context, config storagebackend.TransportConfig) (string, error) {
	logger := klog.FromContext(ctx)
	client, err := newStoreClient(config)
	if err != nil {
		return "", err
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

// readOrWriteEpoch reads the epoch. It writes one where there is none, or only that
// of another etcd cluster. Of servers that do so at once all return the same.
func readOrWriteEpoch(ctx context.Context, client *clientv3.Client) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTry)
	defer cancel()
	for {
		read, err := client.Txn(ctx).Then(clientv3.OpGet(epochKey), clientv3.OpGet(epochClusterKey)).Commit()
		if err != nil {
			return "", err
		}
		current := strconv.FormatUint(read.Header.ClusterId, 16)
		epoch, epochRevision := value(read, 0)
		cluster, clusterRevision := value(read, 1)
		if epoch != "" && cluster == current {
			return epoch, nil
		}
		writes := []clientv3.Op{clientv3.OpPut(epochClusterKey, current)}
		// The release before wrote the epoch alone. That of a store which went on is kept.
		if epoch == "" || cluster != "" {
			if epoch != "" {
				klog.FromContext(ctx).Info("Writing a new store epoch: etcd was restored as another cluster", "epochOf", cluster, "cluster", current)
			}
			epoch = rand.Text()
			writes = append(writes, clientv3.OpPut(epochKey, epoch))
		}
		written, err := client.Txn(ctx).If(
			clientv3.Compare(clientv3.ModRevision(epochKey), "=", epochRevision),
			clientv3.Compare(clientv3.ModRevision(epochClusterKey), "=", clusterRevision),
		).Then(writes...).Commit()
		if err != nil {
			return "", err
		}
		if written.Succeeded {
			return epoch, nil
		}
	}
}

// value is that of one of the keys that were read, and its revision; 0 without one.
func value(read *clientv3.TxnResponse, i int) (value string, revision int64) {
	if found := read.Responses[i].GetResponseRange().Kvs; len(found) > 0 {
		return string(found[0].Value), found[0].ModRevision
	}
	return "", 0
}

// forgetEpoch removes the epoch, so that the next start of a server writes another.
// It returns false if the client's etcd holds no store of the mesh.
func forgetEpoch(ctx context.Context, client *clientv3.Client) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTry)
	defer cancel()
	prefix := path.Join(storagePrefix, v1alpha1.GroupName) + "/"
	found, err := client.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithLimit(1), clientv3.WithKeysOnly())
	if err != nil || len(found.Kvs) == 0 {
		return false, err
	}
	var deletes []clientv3.Op
	for _, key := range identityKeys {
		deletes = append(deletes, clientv3.OpDelete(key))
	}
	_, err = client.Txn(ctx).Then(deletes...).Commit()
	return err == nil, err
}
