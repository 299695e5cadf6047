# clustermesh. `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help

OUTPUT := _output
BIN := $(OUTPUT)/bin
PROGRAMS := mesh-apiserver mesh-controller mesh-agent meshctl
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -X mesh.io/clustermesh/pkg/version.version=$(VERSION)
CLUSTERS ?= 2
NODES ?= 2

# One setting for all, so that programs, tests and tools share one build cache.
export CGO_ENABLED = 0

.PHONY: help
help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build our programs and the lab into _output/bin.
	@mkdir -p $(BIN)
	go build -ldflags '$(LDFLAGS)' -o $(BIN)/ $(addprefix ./cmd/,$(PROGRAMS)) ./test/lab/cmd/...
	@ln -sf meshctl $(BIN)/kubectl-mesh && ln -sf meshctl $(BIN)/kubectl_complete-mesh

.PHONY: packages
packages: # Install the Debian packages that are missing.
	@hack/install-packages.sh

.PHONY: tools
tools: packages # Build Kubernetes, etcd and CoreDNS at the versions that hack/tools pins.
	@hack/build-tools.sh

.PHONY: demo
demo: tools build ## Walk the tutorial on two bare clusters (KEEP=1 leaves them up).
	@hack/demo.sh

.PHONY: lab-up
lab-up: tools build ## Start the lab with the mesh in it (CLUSTERS=2 NODES=2).
	@hack/lab-up.sh --clusters $(CLUSTERS) --nodes $(NODES)

.PHONY: lab-down
lab-down: ## Remove the lab and every trace of it.
	@mkdir -p $(BIN) && go build -o $(BIN)/ ./test/lab/cmd/lab
	@$(BIN)/lab down

.PHONY: test
test: tools build ## Run all tests: unit, integration, data path and the tutorial (root).
	@hack/test.sh

.PHONY: soak
soak: ## Soak the data path: half a million updates beside a million connects, and long model runs (root).
	MESH_REQUIRE_ROOT=1 MESH_KILL_ALL=1 MESH_SOAK_UPDATES=500000 MESH_SOAK_CONNECTS=1000000 MESH_MODEL_SEEDS=20 MESH_MODEL_STEPS=300 \
		go test -count 1 -v -timeout 60m -run '^(TestSoak|TestModel|TestKilledAtEveryStep(OfAnUpgrade)?)$$' ./pkg/agent/datapath

.PHONY: nightly
nightly: packages soak test-kernels ## What takes long: soak, older kernels, and the update order broken on purpose, which must be noticed (root).
	hack/break-update-order.sh

.PHONY: test-kernels
test-kernels: ## Run the data path's tests on the kernels 5.10, 6.1 and 6.12, in virtual machines.
	@hack/install-packages.sh qemu-system-x86 cpio xz-utils
	hack/test-kernel.sh

.PHONY: generate
generate: packages manifests ## Regenerate code, clients, protobuf, OpenAPI, BPF objects, manifests and the command reference.
	hack/update-codegen.sh
	hack/update-bpf.sh
	hack/update-docs.sh

.PHONY: manifests
manifests: ## Render artifacts/manifests from the chart.
	hack/update-manifests.sh

.PHONY: images
images: ## Build the images as OCI archives in _output/images.
	VERSION=$(VERSION) hack/build-images.sh

.PHONY: verify
verify: packages lint ## Prove that generated files, modules and headers are current, and lint.
	hack/verify-generated.sh
	hack/verify-chart.sh
	hack/verify-modules.sh
	hack/verify-headers.sh

.PHONY: lint
lint: ## Run the linters.
	@hack/build-tools.sh lint
	$(BIN)/golangci-lint run ./...

.PHONY: bench
bench: tools build ## Measure, and write _output/bench.json.
	@hack/bench.sh
