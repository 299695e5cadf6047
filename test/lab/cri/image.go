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

package cri

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"sort"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"mesh.io/clustermesh/test/lab/image"
)

// imageID is made from the name: an image of the lab never changes.
func imageID(full string) string {
	sum := sha256.Sum256([]byte(full))
	return "sha256:" + hex.EncodeToString(sum[:])
}

func describe(full string) *runtimeapi.Image {
	repository, _, _ := image.Split(full)
	return &runtimeapi.Image{
		Id:          imageID(full),
		RepoTags:    []string{full},
		RepoDigests: []string{repository + "@" + imageID(full)},
		Size:        1,
		Spec:        &runtimeapi.ImageSpec{Image: full},
		Uid:         &runtimeapi.Int64Value{Value: 0},
	}
}

// ListImages lists the table.
func (s *Server) ListImages(context.Context, *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	names := image.All()
	sort.Strings(names)
	response := &runtimeapi.ListImagesResponse{}
	for _, name := range names {
		response.Images = append(response.Images, describe(name))
	}
	return response, nil
}

// ImageStatus finds an image by its name, or by the ID that a container was created with.
func (s *Server) ImageStatus(_ context.Context, request *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	if full, ok := s.imageByID(request.GetImage().GetImage()); ok {
		return &runtimeapi.ImageStatusResponse{Image: describe(full)}, nil
	}
	_, full, err := image.Find(request.GetImage().GetImage())
	if err != nil {
		// An image that is not there is an empty answer; kubelet then pulls it.
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	s.remember(full)
	return &runtimeapi.ImageStatusResponse{Image: describe(full)}, nil
}

// PullImage looks the image up.
func (s *Server) PullImage(_ context.Context, request *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	_, full, err := image.Find(request.GetImage().GetImage())
	if err != nil {
		return nil, status.Error(codes.NotFound, err.Error())
	}
	s.remember(full)
	return &runtimeapi.PullImageResponse{ImageRef: imageID(full)}, nil
}

// RemoveImage does nothing: the table stays.
func (s *Server) RemoveImage(context.Context, *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	return &runtimeapi.RemoveImageResponse{}, nil
}

// ImageFsInfo says that images take no room.
func (s *Server) ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	usage := []*runtimeapi.FilesystemUsage{{
		Timestamp:  time.Now().UnixNano(),
		FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: s.config.StateDir},
		UsedBytes:  &runtimeapi.UInt64Value{Value: 0},
		InodesUsed: &runtimeapi.UInt64Value{Value: 0},
	}}
	return &runtimeapi.ImageFsInfoResponse{ImageFilesystems: usage, ContainerFilesystems: usage}, nil
}

// remember keeps the name that an ID stands for.
func (s *Server) remember(full string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.images[imageID(full)] = full
}

func (s *Server) imageByID(id string) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	full, ok := s.images[id]
	return full, ok
}
