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

// Package etcd runs an etcd server inside the process that uses it. The server
// listens on unix sockets in its own data directory only, so nobody but the owner
// of that directory reaches it, and it needs neither ports nor certificates.
package etcd

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

const (
	// startTimeout bounds the wait for a server that has data to replay.
	startTimeout = 2 * time.Minute
	// maxSocketPath is what sockaddr_un holds, without the final zero byte.
	maxSocketPath = 107
	// clientSocket is where clients reach the server, in its data directory.
	clientSocket = "client.sock"
)

// Server is a running etcd server with one member. It owns its data directory.
type Server struct {
	etcd     *embed.Etcd
	lock     *os.File
	urls     []string
	logLevel zap.AtomicLevel
}

// Start runs a server on the data directory, which is made if it does not exist,
// and returns once the server answers. Stop must be called to release it.
func Start(ctx context.Context, dataDir string) (*Server, error) {
	logger := klog.FromContext(ctx)
	dataDir, err := filepath.Abs(dataDir)
	if err != nil {
		return nil, fmt.Errorf("finding data directory: %w", err)
	}
	if err := os.MkdirAll(dataDir, 0o700); err != nil {
		return nil, fmt.Errorf("making data directory: %w", err)
	}
	lock, err := lockDirectory(dataDir)
	if err != nil {
		return nil, err
	}
	// While starting, etcd warns of what is meant to be so here.
	logLevel := zap.NewAtomicLevelAt(zap.ErrorLevel)
	config, err := serverConfig(dataDir, logLevel)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}

	begin := time.Now()
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := makeStore(config); err != nil {
		return nil, errors.Join(fmt.Errorf("starting etcd on data directory %q: %w", dataDir, err), lock.Close())
	}
	server, err := startEmbedded(config)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("starting etcd on data directory %q: %w", dataDir, err), lock.Close())
	}
	s := &Server{etcd: server, lock: lock, urls: []string{config.ListenClientUrls[0].String()}, logLevel: logLevel}
	select {
	case <-server.Server.ReadyNotify():
	case err := <-server.Err():
		s.Stop()
		return nil, fmt.Errorf("starting etcd on data directory %q: %w", dataDir, err)
	case <-ctx.Done():
		s.Stop()
		return nil, fmt.Errorf("waiting for etcd on data directory %q: %w", dataDir, ctx.Err())
	}
	logLevel.SetLevel(zap.WarnLevel)
	logger.Info("Started embedded etcd", "dataDir", dataDir, "duration", time.Since(begin).Round(time.Millisecond))
	return s, nil
}

// Endpoints are the addresses for clients of the server.
func (s *Server) Endpoints() []string { return s.urls }

// Err reports an error that the server cannot go on after.
func (s *Server) Err() <-chan error { return s.etcd.Err() }

// Stop ends the server after what it is doing and releases the data directory. Its
// clients have to be gone by then, or their requests fail.
func (s *Server) Stop() {
	// etcd reports the end of its listeners as errors.
	s.logLevel.SetLevel(zap.DPanicLevel)
	s.etcd.Close()
	// Closing gives up the lock. The file stays: removing it would race with the next owner.
	_ = s.lock.Close()
}

// lockDirectory makes sure that no other process uses the directory. etcd itself
// would wait for the other process without an end.
func lockDirectory(dataDir string) (*os.File, error) {
	file, err := os.OpenFile(filepath.Join(dataDir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("writing to data directory: %w", err)
	}
	err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, errors.Join(fmt.Errorf("data directory %q is in use by another process", dataDir), file.Close())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("locking data directory %q: %w", dataDir, err), file.Close())
	}
	return file, nil
}

func serverConfig(dataDir string, logLevel zap.AtomicLevel) (*embed.Config, error) {
	client, err := socketURL(filepath.Join(dataDir, clientSocket))
	if err != nil {
		return nil, err
	}
	peer, err := socketURL(filepath.Join(dataDir, "peer.sock"))
	if err != nil {
		return nil, err
	}
	logger, err := newLogger(logLevel)
	if err != nil {
		return nil, fmt.Errorf("making etcd's logger: %w", err)
	}

	config := embed.NewConfig()
	config.Name = "mesh-apiserver"
	config.Dir = filepath.Join(dataDir, "etcd")
	config.ListenClientUrls, config.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	// etcd takes where it listens for peers from the host of the URL, and without one makes
	// a socket that has no file: any program of the pod could reach it, and the server
	// would not end where its working directory cannot be written.
	config.ListenPeerUrls = []url.URL{{Scheme: peer.Scheme, Host: peer.Path}}
	config.AdvertisePeerUrls = []url.URL{peer}
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	// Clients speak gRPC; the JSON gateway would only cost memory.
	config.EnableGRPCGateway = false
	config.ZapLoggerBuilder = embed.NewZapLoggerBuilder(logger)
	return config, nil
}

func socketURL(path string) (url.URL, error) {
	if len(path) > maxSocketPath {
		return url.URL{}, fmt.Errorf("data directory %q: its path is too long for a socket in it: %d bytes, at most %d",
			filepath.Dir(path), len(path), maxSocketPath)
	}
	return url.URL{Scheme: "unix", Path: path}, nil
}

// newLogger logs what an operator acts on. What etcd calls fatal panics instead of
// ending the process, so that startEmbedded can say which directory is broken.
func newLogger(level zap.AtomicLevel) (*zap.Logger, error) {
	config := zap.NewProductionConfig()
	config.Level = level
	config.Encoding = "console"
	config.EncoderConfig.EncodeTime = zapcore.ISO8601TimeEncoder
	config.DisableStacktrace = true
	return config.Build(zap.WithFatalHook(zapcore.WriteThenPanic))
}

// startEmbedded turns the panics with which etcd answers unreadable data into errors.
func startEmbedded(config *embed.Config) (server *embed.Etcd, err error) {
	defer func() {
		if reason := recover(); reason != nil {
			server, err = nil, unreadable(reason)
		}
	}()
	// etcd opens its database in a goroutine of its own, whose panic nobody can catch.
	if err := openDatabase(filepath.Join(config.Dir, "member", "snap", "db")); err != nil {
		return nil, unreadable(err)
	}
	return embed.StartEtcd(config)
}

func unreadable(reason any) error {
	return fmt.Errorf("its data cannot be read (restore a backup, or remove it to begin anew): %v", reason)
}

// openDatabase checks that the database, if there is one, can be opened.
func openDatabase(path string) error {
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return fmt.Errorf("opening %q: %w", path, err)
	}
	return db.Close()
}
