# `make` lists the targets. Everything that is built goes to bin/, everything
# that is fetched to .cache/.

MODULES  := ./proto/... ./bpf/... ./shared/... ./tapio/... ./polku/... ./ahti/... ./portti/... ./scraper/... ./e2e/...
# What is built, by where its source is.
COMMANDS := ./tapio/cmd/tapio ./portti/cmd/portti ./scraper/cmd/scheduler-scraper ./polku/cmd/polku ./ahti/cmd/ahti
# Of the binaries, the images and the chart (appVersion).
VERSION ?= 0.1.0
STAMP := -X github.com/yairfalse/tapio/shared/version.number=$(VERSION)
# What loads programs into a kernel is also tested on other kernels.
ON_KERNELS := ./tapio/internal/agent ./tapio/internal/feed ./bpf ./bpf/cgroup
# Metrics of real schedulers lie beside the project, or do not.
WITHOUT_DATA := $(if $(wildcard ../shared/data/kube-scheduler-metrics),,-allow-skip '^github.com/yairfalse/tapio/scraper/.*TestRealSchedulers')
PACKAGES := clang-16 llvm-16 libbpf-dev shellcheck cpio qemu-system-x86 debian-archive-keyring xz-utils zstd postgresql

export PATH := $(CURDIR)/bin/tools:$(PATH)
SUDO   := $(if $(filter-out 0,$(shell id -u)),sudo)
# Test binaries that load programs run as root, the build does not.
AS_ROOT := $(if $(SUDO),-exec "sudo -E")
TOOLS  := bin/tools/golangci-lint
SHELL  := /bin/bash -o pipefail

.DEFAULT_GOAL := help
.PHONY: help setup generate build images run demo e2e test deploy-check lint test-kernels ledger changes bench fuzz clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(TOOLS) ## install what generate, lint and test-kernels need (apt, Go tools)
	$(SUDO) apt-get update -qq
	$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(PACKAGES)

$(TOOLS): tools/go.mod tools/go.sum
	GOWORK=off CGO_ENABLED=0 go build -C tools -p 2 -trimpath -o ../bin/tools/ tool
	@touch $(TOOLS)

bin/tools/testrun: $(wildcard tools/testrun/*.go)
	GOWORK=off CGO_ENABLED=0 go build -C tools/testrun -trimpath -o ../../bin/tools/testrun .

bin/tools/otelcol: $(wildcard tools/otelcol/*)
	GOWORK=off CGO_ENABLED=0 go build -C tools/otelcol -p 2 -trimpath -ldflags '-s -w' -o ../../bin/tools/otelcol .

generate: $(TOOLS) ## make the code that is generated from protobuf, BPF and the event registry
	cd proto && buf generate
	cd bpf && go generate ./...
	cd shared && go generate ./...

build: ## build the binaries and print their sizes
	CGO_ENABLED=0 go build -p 2 -buildvcs=auto -trimpath -ldflags '-s -w $(STAMP)' -o bin/ $(COMMANDS)
	@stat -c '%n: %s bytes' $(addprefix bin/,$(notdir $(COMMANDS)))

# REGISTRY goes before their names, GO_IMAGE is what they are built in.
images: TAG ?= $(VERSION)
images: ## build an image of each binary (REGISTRY=..., TAG=0.1.0, GO_IMAGE=...)
	@set -e; for binary in $(notdir $(COMMANDS)); do \
		docker build -f deploy/Dockerfile -t $(addsuffix /,$(REGISTRY))$$binary:$(TAG) \
			--build-arg BINARY=$$binary --build-arg VERSION=$(VERSION) --build-arg REVISION=$$(git rev-parse HEAD) \
			$(if $(GO_IMAGE),--build-arg GO_IMAGE=$(GO_IMAGE)) $(if $(GOPROXY),--build-arg GOPROXY='$(GOPROXY)') .; \
	done

run: build ## run the agent on this machine: anomalies, one a line (FLAGS="--output json")
	$(SUDO) bin/tapio $(FLAGS)

demo: build ## start the whole chain on this machine, break a server, and see it explained
	go build -trimpath -o bin/demo ./e2e/demo
	$(SUDO) bin/demo

# docs/e2e.md tells what it does. As root, because the tool that needs no registry
# does.
e2e: build ## prove the whole chain on a kind cluster (SCENARIO=name, E2E_KEEP=1, E2E_NODE_IMAGE=...)
	go build -trimpath -o bin/e2e ./e2e/cluster
	$(if $(SUDO),$(SUDO) -E) bin/e2e

# A real API server for the tests of what watches one, and of what is applied to one:
# a folder with etcd and kube-apiserver.
export KUBEBUILDER_ASSETS ?= $(CURDIR)/.cache/kube
$(CURDIR)/.cache/kube/kube-apiserver:
	tools/kube-assets.sh $(@D)
# Where there is no way to get them, as the script then says.
WITHOUT_SERVER = $(shell test -x $(KUBEBUILDER_ASSETS)/kube-apiserver || \
	echo "-allow-skip '^github.com/yairfalse/tapio/(shared/kube/apiservertest|tapio/internal/pods|portti/internal/serve|e2e/changes|tools/deploycheck)\\.'")

test: bin/tools/testrun bin/tools/otelcol $(KUBEBUILDER_ASSETS)/kube-apiserver ## run all tests on this machine's kernel
	go test -p 2 -race -short -count=1 $(AS_ROOT) -json $(MODULES) 2>&1 | \
		testrun -allow-skip '^github.com/yairfalse/tapio/bpf/kernels/' $(WITHOUT_DATA) $(WITHOUT_SERVER)
	GOWORK=off go test -C tools/testrun -json ./... | testrun

deploy-check: build bin/tools/testrun $(KUBEBUILDER_ASSETS)/kube-apiserver ## check that Kustomize and Helm describe the same, which may no more than it needs
	GOWORK=off go test -C tools/deploycheck -count=1 -json ./... | testrun $(WITHOUT_SERVER)

lint: $(TOOLS) ## check style, imports, and that generated code is current
	golangci-lint run $(MODULES)
	cd tools/testrun && GOWORK=off golangci-lint run ./...
	cd tools/otelcol && GOWORK=off golangci-lint run ./...
	cd tools/deploycheck && GOWORK=off golangci-lint run ./...
	cd proto && buf lint && buf format -d --exit-code
	tools/check-generated.sh
	shellcheck .ci/run bpf/kernels/fetch bpf/kernels/test tools/*.sh

test-kernels: bin/tools/testrun ## run the kernel tests in virtual machines, from 5.10 to the newest
	bpf/kernels/fetch
	CGO_ENABLED=0 go build -o bin/kernel-init ./bpf/kernels/init
	CGO_ENABLED=0 go build -o bin/kernel-exec ./bpf/kernels/exec
	bpf/kernels/test $(ON_KERNELS)
	go test -count=1 -json ./bpf/kernels/... | testrun

# A shorter one with the same story is part of test. LEDGER_NATS=cluster keeps
# the log in three NATS servers, LEDGER_STORE=postgres the store in PostgreSQL.
ledger: export EVENTS ?= 1000000
ledger: export SEED ?= 1
ledger: export KILLS ?= 60
ledger: ## count EVENTS events by id through the chain while KILLS kills, full disks and hangs from SEED befall it
	go test -run '^TestLedger$$' -count=1 -v -timeout 4h $(AS_ROOT) ./e2e/ledger

# A shorter one with the same story is part of test.
changes: export CHANGES ?= 200000
changes: export SEED ?= 1
changes: $(KUBEBUILDER_ASSETS)/kube-apiserver ## write CHANGES changes to a real API server and count them by id in AHTI, while everything between is killed
	go test -run '^TestChanges$$' -count=1 -v -timeout 4h ./e2e/changes

bench: build bin/tools/otelcol ## measure: the cost of a program run, of a record, of a look-up; AHTI; the gateway beside a collector
	go test -run '^$$' -bench . -benchmem -benchtime 3s $(AS_ROOT) ./bpf/tcp ./tapio/internal/feed ./tapio/internal/owner ./shared/event ./shared/queue ./shared/polku ./shared/causality ./polku/internal/transform
	go test -run '^$$' -bench Ingest -benchtime 300000x ./ahti/internal/server
	go test -run '^$$' -bench Million -benchtime 20x -timeout 30m ./ahti/internal/server
	@mkdir -p .cache
	go build -trimpath -o bin/bench ./e2e/bench
	bin/bench -dir .cache

fuzz: ## try every decoder and parser with odd input for FUZZTIME (10s) each
	@set -e; for dir in $$(grep -rl --include='*_test.go' '^func Fuzz' proto bpf shared tapio polku ahti portti scraper | xargs -n1 dirname | sort -u); do \
		for target in $$(grep -ho '^func Fuzz[A-Za-z0-9]*' $$dir/*_test.go | cut -c6-); do \
			echo "$$dir $$target"; \
			go test -run '^$$' -fuzz "^$$target$$" -fuzztime $(or $(FUZZTIME),10s) -fuzzminimizetime 20x -parallel 2 ./$$dir; \
		done; \
	done

clean: ## remove what was built and fetched
	rm -rf bin .cache
