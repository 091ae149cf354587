# vers: git for running machines. README.md has the tour; `make demo` is the quick look.

GO      ?= go
PREFIX  ?= /usr/local
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
COMMIT  := $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)
# The container engine is a module of its own, since it brings a hundred others. These tags leave out what needs cgo.
BUILDER      := bin/vers-builder
BUILDER_TAGS := containers_image_openpgp exclude_graphdriver_btrfs exclude_graphdriver_devicemapper netgo osusergo

.PHONY: help build builder vet-builder deps demo test bench lint install up down clean

help:
	@echo 'make build     bin/vers, bin/versd, bin/vers-agent, bin/vers-builder'
	@echo 'make deps      install the Debian packages that vers, its demo and its tests use (root)'
	@echo 'make demo      a VM that is changed, committed, restored and branched (root; a minute the first time)'
	@echo 'make test      everything that CI checks (ACCEL=kvm: on KVM instead of what is proven to work)'
	@echo 'make test-images  bake, check and fork all supported images (half an hour where nothing accelerates VMs)'
	@echo 'make bench     measure; QUICK=1 for three minutes, ONLY=copy,tree. Writes bench/results'
	@echo 'make lint      gofmt, go vet, golangci-lint'
	@echo 'make install   programs to $(PREFIX)/bin, the systemd unit and the configuration to their places'
	@echo 'make up        a development server with its data in .dev; prints the exports for a shell: eval "$$(make up)"'
	@echo 'make down      end it, and its VMs'

build: builder
	@CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/vers ./cmd/versd ./cmd/vers-agent

# -mod=mod: a module that the main one needs newer, the builder gets newer too.
builder:
	@CGO_ENABLED=0 $(GO) -C builder build -mod=mod -trimpath -tags '$(BUILDER_TAGS)' -ldflags '$(LDFLAGS)' -o $(abspath $(BUILDER)) .

vet-builder:
	@CGO_ENABLED=0 $(GO) -C builder vet -mod=mod -tags '$(BUILDER_TAGS)' ./...

deps:
	@scripts/deps

demo: deps build
	@scripts/demo

test:
	@scripts/test

test-images: deps
	@VERS_TEST_IMAGES='$(or $(IMAGES),all)' $(GO) test -count=1 -v -timeout 3h -run '^TestSupportedImages$$' ./test

bench: deps build
	@CGO_ENABLED=0 $(GO) build -trimpath -o bin/bench ./bench
	@bin/bench $(if $(QUICK),-quick) $(if $(ONLY),-only '$(ONLY)')

lint:
	@scripts/lint

install: build
	install -D -t $(DESTDIR)$(PREFIX)/bin bin/vers bin/versd bin/vers-agent bin/vers-builder
	install -d $(DESTDIR)/etc/vers $(DESTDIR)/etc/systemd/system
	sed 's|/usr/local/bin|$(PREFIX)/bin|' dist/versd.service >$(DESTDIR)/etc/systemd/system/versd.service
	test -e $(DESTDIR)/etc/vers/versd.toml || install -m 0644 dist/versd.toml $(DESTDIR)/etc/vers/versd.toml
	@echo 'Start it: systemctl daemon-reload && systemctl enable --now versd'

up: build
	@scripts/dev up

down:
	@scripts/dev down

clean:
	rm -rf bin
