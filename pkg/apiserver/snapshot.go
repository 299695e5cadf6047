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
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/apiserver/pkg/storage/storagebackend"

	"mesh.io/clustermesh/pkg/etcd"
)

// shippedDataDir is the data directory in the manifests, so that saving a snapshot
// in a pod needs no flags.
const shippedDataDir = "/var/lib/mesh-apiserver"

// newSnapshotCommand returns the commands that save and restore the store.
func newSnapshotCommand(ctx context.Context) *cobra.Command {
	command := &cobra.Command{
		Use:   "snapshot",
		Short: "Save the store, and restore it",
		Long: "Saves the store to a file and restores it.\n\n" +
			"A store that was restored has lost what was written since. It gets a new epoch, so that other clusters and the nodes\n" +
			"know that, and remove nothing only because it is missing.",
		Args: cobra.NoArgs,
		// Without it, a mistyped command would succeed.
		RunE: func(command *cobra.Command, _ []string) error { return command.Help() },
	}
	command.AddCommand(newSaveCommand(ctx), newRestoreCommand(ctx), newRestoredCommand(ctx))
	// Without these it would have the help of the server, with all of its flags.
	plain := &cobra.Command{}
	command.SetUsageFunc(plain.UsageFunc())
	command.SetHelpFunc(plain.HelpFunc())
	return command
}

func newSaveCommand(ctx context.Context) *cobra.Command {
	var dataDir string
	var config storagebackend.TransportConfig
	command := &cobra.Command{
		Use:   "save FILE|-",
		Short: "Save a snapshot of the running store",
		Long: "Saves a snapshot of the store to a file, or to standard output if that is -, while the server runs: the embedded one,\n" +
			"from the host or the pod that it runs in, or the external one. The file appears only when it is whole.\n\n" +
			"What is saved to standard output may be used only if the command succeeds. Restoring it checks that it is whole.",
		Example: "  kubectl -n mesh-system exec mesh-apiserver-0 -- mesh-apiserver snapshot save - > backup.db",
		Args:    cobra.ExactArgs(1),
		RunE: func(command *cobra.Command, args []string) error {
			if dataDir == "" && len(config.ServerList) == 0 {
				dataDir = shippedDataDir
			}
			if err := errors.Join(validateStore(dataDir, config)...); err != nil {
				return err
			}
			client, err := connect(ctx, dataDir, config)
			if err != nil {
				return err
			}
			defer client.Close()
			var saved etcd.Saved
			if args[0] == "-" {
				saved, err = etcd.Save(ctx, client, command.OutOrStdout())
			} else {
				saved, err = etcd.SaveFile(ctx, client, args[0])
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(command.ErrOrStderr(), "Saved a snapshot of %d bytes, SHA-256 %s.\n", saved.Size, saved.SHA256)
			return nil
		},
	}
	command.Flags().StringVar(&dataDir, "data-dir", "", "The directory of the embedded etcd; "+shippedDataDir+" without --etcd-servers.")
	addEtcdFlags(command.Flags(), &config)
	return command
}

// connect returns a client of the first server that answers and holds the mesh's
// store. A snapshot is one server's, and this read shows that it is not behind.
func connect(ctx context.Context, dataDir string, config storagebackend.TransportConfig) (*clientv3.Client, error) {
	if dataDir != "" {
		endpoint, err := etcd.Endpoint(dataDir)
		if err != nil {
			return nil, err
		}
		config.ServerList = []string{endpoint}
	}
	var errs []error
	for _, server := range config.ServerList {
		one := config
		one.ServerList = []string{server}
		client, err := newStoreClient(one)
		if err != nil {
			return nil, err
		}
		if err = holdsStore(ctx, client); err == nil {
			return client, nil
		}
		errs = append(errs, fmt.Errorf("reading from etcd at %q: %w", server, err), client.Close())
	}
	return nil, errors.Join(errs...)
}

func holdsStore(ctx context.Context, client *clientv3.Client) error {
	ctx, cancel := context.WithTimeout(ctx, storeTry)
	defer cancel()
	found, err := client.Get(ctx, epochKey)
	if err == nil && len(found.Kvs) == 0 {
		return fmt.Errorf("no mesh-apiserver has used it: it has no %s", epochKey)
	}
	return err
}

func newRestoreCommand(ctx context.Context) *cobra.Command {
	var dataDir string
	command := &cobra.Command{
		Use:   "restore FILE|- --data-dir DIR",
		Short: "Restore an embedded store from a snapshot",
		Long: "Restores the store of an embedded etcd from a snapshot in a file, or in standard input if that is -. The server that uses\n" +
			"the directory must be stopped. The store that is there is kept beside the restored one. If the command is interrupted,\n" +
			"the server starts with the old store or the whole restored one, and the command can be run again.\n\n" +
			"An external etcd is restored with its own tools: see \"snapshot restored\".",
		Args: cobra.ExactArgs(1),
		RunE: func(command *cobra.Command, args []string) error {
			config := etcd.RestoreConfig{DataDir: dataDir, File: args[0], Identity: identityKeys}
			if args[0] == "-" {
				config.Reader = command.InOrStdin()
			}
			if dataDir == "" {
				return errors.New("--data-dir is needed")
			}
			restored, err := etcd.Restore(ctx, config)
			if err != nil {
				return err
			}
			fmt.Fprintf(command.ErrOrStderr(), "Restored the store in %q; resource versions go on from %d.\n", dataDir, restored.Revision)
			if restored.Previous != "" {
				fmt.Fprintf(command.ErrOrStderr(), "The store that was there is kept in %q. Remove it when nobody needs it any more.\n", restored.Previous)
			}
			return nil
		},
	}
	command.Flags().StringVar(&dataDir, "data-dir", "", "The directory of the embedded etcd.")
	return command
}

func newRestoredCommand(ctx context.Context) *cobra.Command {
	var config storagebackend.TransportConfig
	command := &cobra.Command{
		Use:   "restored --etcd-servers URL",
		Short: "Note that an external etcd was restored",
		Long: "Removes the epoch from an external etcd that was restored with etcd's own tools, so that the next start of mesh-apiserver\n" +
			"writes a new one. Run it after the restore, while all of the mesh-apiservers are stopped: one that runs goes on with the\n" +
			"old epoch until it is restarted.\n\n" +
			"Restore with etcdutl snapshot restore --bump-revision 1000000000 --mark-compacted, so that clients notice.",
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			if len(config.ServerList) == 0 {
				return errors.New("--etcd-servers is needed; an embedded etcd is restored by \"snapshot restore\"")
			}
			if err := errors.Join(validateStore("", config)...); err != nil {
				return err
			}
			client, err := newStoreClient(config)
			if err != nil {
				return err
			}
			defer client.Close()
			switch found, err := forgetEpoch(ctx, client); {
			case err != nil:
				return fmt.Errorf("removing the store epoch from etcd at %v: %w", config.ServerList, err)
			case !found:
				return fmt.Errorf("removing the store epoch from etcd at %v: it holds nothing of the mesh", config.ServerList)
			}
			fmt.Fprintln(command.ErrOrStderr(), "Removed the store epoch. The next start of mesh-apiserver writes a new one; restart those that run.")
			return nil
		},
	}
	addEtcdFlags(command.Flags(), &config)
	return command
}
