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
	"errors"
	"fmt"
	"time"

	"github.com/spf13/pflag"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"k8s.io/apiserver/pkg/storage/storagebackend"
)

// addEtcdFlags adds the flags that say where an external etcd is.
func addEtcdFlags(fs *pflag.FlagSet, config *storagebackend.TransportConfig) {
	fs.StringSliceVar(&config.ServerList, "etcd-servers", nil, "The URLs of an external etcd.")
	fs.StringVar(&config.TrustedCAFile, "etcd-cafile", "", "The authority that the external etcd's certificates are checked with.")
	fs.StringVar(&config.CertFile, "etcd-certfile", "", "The certificate to show to the external etcd.")
	fs.StringVar(&config.KeyFile, "etcd-keyfile", "", "The key of --etcd-certfile.")
}

// validateStore returns everything that is wrong with where the store is said to be.
func validateStore(dataDir string, config storagebackend.TransportConfig) []error {
	var errs []error
	embedded, external := dataDir != "", len(config.ServerList) > 0
	switch {
	case !embedded && !external:
		errs = append(errs, errors.New("either --data-dir or --etcd-servers is needed"))
	case embedded && external:
		errs = append(errs, errors.New("--data-dir and --etcd-servers exclude each other"))
	case embedded && (config.TrustedCAFile != "" || config.CertFile != "" || config.KeyFile != ""):
		errs = append(errs, errors.New("--etcd-cafile, --etcd-certfile and --etcd-keyfile are for --etcd-servers"))
	}
	if (config.CertFile == "") != (config.KeyFile == "") {
		errs = append(errs, errors.New("--etcd-certfile and --etcd-keyfile need each other"))
	}
	return errs
}

// newStoreClient makes a client of etcd itself. The caller must close it.
func newStoreClient(config storagebackend.TransportConfig) (*clientv3.Client, error) {
	info := transport.TLSInfo{CertFile: config.CertFile, KeyFile: config.KeyFile, TrustedCAFile: config.TrustedCAFile}
	clientConfig := clientv3.Config{
		Endpoints: config.ServerList, DialTimeout: storeTry, Logger: zap.NewNop(),
		// A transfer from a machine that is gone ends.
		DialKeepAliveTime: 30 * time.Second, DialKeepAliveTimeout: 10 * time.Second,
	}
	if info.CertFile != "" || info.TrustedCAFile != "" {
		tlsConfig, err := info.ClientConfig()
		if err != nil {
			return nil, fmt.Errorf("reading the certificates for etcd: %w", err)
		}
		clientConfig.TLS = tlsConfig
	}
	client, err := clientv3.New(clientConfig)
	if err != nil {
		return nil, fmt.Errorf("connecting to etcd: %w", err)
	}
	return client, nil
}
