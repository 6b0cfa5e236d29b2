# firstpacket: `make` lists what there is.
#
# Everything is pure Go: nothing but Go is needed to build, demo and test. Only the race detector wants a C compiler,
# which is installed where that is possible.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS   += --no-print-directory

GO          ?= go
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
TESTFLAGS   ?=
PKG         ?= ./...
FUZZTIME    ?= 30s
FUZZ        ?= .
DURATION    ?= 10m
CACHE       := $(CURDIR)/.cache/bin

export CGO_ENABLED := 0
# A go.work of a folder above, or vendoring, would build something else than go.mod says.
export GOWORK := off
# Tests that run agents take the program that is built already.
export FIRSTPACKET_BINARY := $(CURDIR)/bin/firstpacket

##@ Everyday

.PHONY: help
help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: need-go ## Build bin/firstpacket, one static binary
	@$(GO) build -ldflags '-s -w -X main.version=$(VERSION)' -o bin/firstpacket ./cmd/firstpacket
	@echo "built bin/firstpacket $(VERSION)"

.PHONY: man
man: need-go ## Write man pages of all commands to bin/man
	@SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct 2>/dev/null || echo 0) $(GO) run -tags man ./cmd/firstpacket man bin/man
	@echo "wrote bin/man"

.PHONY: demo
demo: build ## Show a small shop behind firstpacket, on real packets (in network namespaces of its own)
	@bin/firstpacket lab

.PHONY: clean
clean: ## Remove what was built here (Go's own cache stays)
	rm -rf bin .cache

##@ Tests

.PHONY: test
test: test-servers build ## Run all tests, with real packets and a real API server; as root or not
	@echo "testing $(PKG)"
	@# Labs share the processors badly: their packages run one after the other, all else side by side.
	@packages=$$($(GO) list $(PKG)); \
	rest=$$(grep -v '/bench/' <<<"$$packages" || true); labs=$$(grep '/bench/' <<<"$$packages" || true); \
	status=0; \
	[ -z "$$rest" ] || $(GO) test -timeout 20m $(TESTFLAGS) $$rest || status=1; \
	[ -z "$$labs" ] || $(GO) test -p 1 -timeout 20m $(TESTFLAGS) $$labs || status=1; \
	exit $$status

.PHONY: test-deploy
test-deploy: build ## Run the tests of the chart, the image, the alert rules and the dashboard (a module of its own)
	@$(GO) test -C deploy/build -timeout 20m $(TESTFLAGS) ./...

.PHONY: test-page
test-page: need-chromium build ## Run the tests of the web page in Chromium, over a lab (a module of its own; pictures in bench/out)
	@$(GO) test -C bench/browser -count=1 -timeout 10m $(TESTFLAGS) ./...

.PHONY: test-race
test-race: need-gcc test-servers build ## Run the tests under the race detector
	@echo "testing $(PKG) under the race detector"
	@CGO_ENABLED=1 $(GO) test -race -timeout 30m $(TESTFLAGS) $(PKG)

.PHONY: test-vm
test-vm: need-go ## Run the tests with real packets on a Debian kernel in a virtual machine (docs/kernels.md)
	@$(GO) run ./bench/vm

.PHONY: soak
soak: need-go ## Churn a cluster for DURATION (10m): wrong verdicts, lost flows and leaks must be none
	@FIRSTPACKET_SOAK=$(DURATION) $(GO) test -count=1 -timeout 0 -v -run '^TestSoak$$' ./bench/soak

.PHONY: fuzz
fuzz: need-go ## Run the fuzz targets below FUZZ (all) for FUZZTIME (30s) each
	@found=$$(grep -rE --include='*_test.go' -o '^func Fuzz[A-Za-z0-9_]+' $(FUZZ) | sort || true); \
	while IFS=: read -r file func; do \
		[ -n "$$file" ] || { echo "no fuzz target found" >&2; exit 1; }; \
		name=$${func#func }; echo "fuzzing $$(dirname "$$file") $$name for $(FUZZTIME)"; \
		$(GO) test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) "$$(dirname "$$file")"; \
	done <<<"$$found"

.PHONY: bench
bench: build ## Measure everything beside its baselines; the report comes to bench/out (15 minutes, on a quiet machine)
	@bin/firstpacket bench --output bench/out

.PHONY: benchmark-once
benchmark-once: need-go ## Run every Go benchmark once, so that none rots
	@$(GO) test -run '^$$' -bench . -benchtime 1x $(PKG)

# Modules with code that the main one knows nothing of.
MODULES := deploy/build bench/browser

.PHONY: lint
lint: $(CACHE)/golangci-lint ## Check formatting, go.mod, the direction of imports and the chosen lint rules
	@$(CACHE)/golangci-lint run --allow-parallel-runners $(PKG)
	@for module in $(MODULES); do \
		(cd $$module && $(CACHE)/golangci-lint run --allow-parallel-runners --config $(CURDIR)/.golangci.yaml ./...); \
	done
	@$(GO) mod tidy -diff || { echo "go.mod is not tidy: run go mod tidy" >&2; exit 1; }
	@echo "lint: nothing to say"

.PHONY: lint-fix
lint-fix: $(CACHE)/golangci-lint ## Let the linters mend what they can, formatting included
	@$(CACHE)/golangci-lint run --allow-parallel-runners --fix $(PKG)

##@ Deployment

.PHONY: generate
generate: need-go ## Make the plain manifests and the chart's copies anew from what they are made of
	@$(GO) run -C deploy/build ./generate

IMAGE_PLATFORMS   ?= amd64 arm64
IMAGE_PROGRAMS    := $(IMAGE_PLATFORMS:%=.cache/image-programs/firstpacket-%)
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
export SOURCE_DATE_EPOCH

.PHONY: image
image: $(IMAGE_PROGRAMS) ## Build the container image as an OCI layout, .cache/image, and its bills of materials
	@$(GO) run -C deploy/build ./imagecmd -o $(CURDIR)/.cache/image -version $(VERSION) \
		-revision "$$(git rev-parse HEAD 2>/dev/null)" $(IMAGE_PROGRAMS:%=$(CURDIR)/%)

# Nothing of this machine gets into these: the same source gives the same image.
.PHONY: $(IMAGE_PROGRAMS)
$(IMAGE_PROGRAMS): .cache/image-programs/firstpacket-%: need-go
	@GOOS=linux GOARCH=$* $(GO) build -trimpath -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION)' \
		-o $@ ./cmd/firstpacket

##@ Tools, built from source once and kept in .cache/bin

KUBERNETES := $(shell awk '$$1 == "k8s.io/kubernetes" { print $$2 }' bench/apiserver/go.mod)
SERVERS    := etcd kube-apiserver kube-controller-manager kubectl
CLIENTS    := helm crane

.PHONY: test-servers
test-servers: $(SERVERS:%=$(CACHE)/%) $(CLIENTS:%=$(CACHE)/%) ## Build etcd, Kubernetes' servers, kubectl, helm and crane (5 to 10 minutes the first time)

$(CACHE)/etcd: SOURCE := go.etcd.io/etcd/server/v3
$(CACHE)/kube%: SOURCE = k8s.io/kubernetes/cmd/$(@F)
$(SERVERS:%=$(CACHE)/%): bench/apiserver/go.mod bench/apiserver/go.sum | need-go
	@echo "building $(@F) (minutes the first time)"
	@$(GO) build -C bench/apiserver -ldflags '-s -w -X k8s.io/component-base/version.gitVersion=$(KUBERNETES)' \
		-o $@ $(SOURCE)
	@touch $@

$(CACHE)/helm: SOURCE := helm.sh/helm/v4/cmd/helm
$(CACHE)/crane: SOURCE := github.com/google/go-containerregistry/cmd/crane
$(CLIENTS:%=$(CACHE)/%): deploy/build/go.mod deploy/build/go.sum | need-go
	@echo "building $(@F) (minutes the first time)"
	@$(GO) build -C deploy/build -ldflags '-s -w' -o $@ $(SOURCE)
	@touch $@

$(CACHE)/golangci-lint: .ci/tools/go.mod .ci/tools/go.sum | need-go
	@echo "building $(@F) (minutes the first time)"
	@$(GO) build -C .ci/tools -ldflags '-s -w' -o $@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint
	@touch $@

.PHONY: need-go
need-go:
	@command -v $(GO) >/dev/null || { echo "Go is needed (see go.mod for the version): https://go.dev/dl" >&2; exit 1; }

.PHONY: need-chromium
need-chromium:
	@if ! command -v chromium >/dev/null; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "installing chromium to test the web page"; \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
				apt-get install -qq -y --no-install-recommends chromium fonts-dejavu-core >/dev/null; \
		else \
			echo "the test of the web page needs chromium: apt-get install chromium" >&2; exit 1; \
		fi; \
	fi

.PHONY: need-gcc
need-gcc: need-go
	@if ! command -v gcc >/dev/null || [ ! -e /usr/include/stdlib.h ]; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "installing gcc for the race detector"; \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y gcc libc6-dev >/dev/null; \
		else \
			echo "the race detector needs gcc and the C library's headers: apt-get install gcc libc6-dev" >&2; exit 1; \
		fi; \
	fi
