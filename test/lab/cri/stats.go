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

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ContainerStats knows who, not how much: the lab's cgroups have no controllers.
func (s *Server) ContainerStats(_ context.Context, request *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	b, err := s.box(request.GetContainerId())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ContainerStatsResponse{Stats: stats(b)}, nil
}

// ListContainerStats is ContainerStats for all.
func (s *Server) ListContainerStats(_ context.Context, request *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	filter := request.GetFilter()
	response := &runtimeapi.ListContainerStatsResponse{}
	for _, b := range s.boxes(func(b *box) bool {
		return (filter.GetId() == "" || filter.GetId() == b.ID) &&
			(filter.GetPodSandboxId() == "" || filter.GetPodSandboxId() == b.Sandbox) &&
			matches(b.Config.GetLabels(), filter.GetLabelSelector())
	}) {
		response.Stats = append(response.Stats, stats(b))
	}
	return response, nil
}

func stats(b *box) *runtimeapi.ContainerStats {
	return &runtimeapi.ContainerStats{Attributes: &runtimeapi.ContainerAttributes{
		Id: b.ID, Metadata: b.Config.GetMetadata(), Labels: b.Config.GetLabels(), Annotations: b.Config.GetAnnotations(),
	}}
}

// ListPodSandboxStats has nothing to say.
func (s *Server) ListPodSandboxStats(context.Context, *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	return &runtimeapi.ListPodSandboxStatsResponse{}, nil
}

// ListMetricDescriptors has nothing to say.
func (s *Server) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	return &runtimeapi.ListMetricDescriptorsResponse{}, nil
}
