# spillway. `make demo` shows the main job, `make test` proves it; both do
# their own set-up. `make help` lists the rest.

GO      ?= go
T       ?= 20s
ROUNDS  ?= 3
SECS    ?= 3
export CGO_ENABLED ?= 1

# Tests of the real kernel run in network namespaces of their own: as root, or
# in a user namespace where the caller is not root.
AS_ROOT = $(shell [ "$$(id -u)" = 0 ] || echo -exec "unshare --user --map-root-user --net --mount")
# Packages that have tests of the real kernel.
NETNS   = $(shell grep -rl --include='*_test.go' '^//go:build netns' . | xargs -r -n1 dirname | sort -u)

.PHONY: all build demo test bench fuzz lint unit whole netns cross bench-once tools clean help

all: build

help:
	@echo 'make demo        the main job on one machine, narrated (needs Go only)'
	@echo 'make test        every test: unit with -race, lab, real kernel, judges, fuzz seeds, lint'
	@echo 'make bench       the speed table (OUT=file.json ROUNDS=n SECS=n NEBULA=path)'
	@echo 'make fuzz T=30s  every fuzz target for T'
	@echo 'make lint        format, vet, staticcheck, tidy modules'
	@echo 'make unit | whole | netns | cross | bench-once     parts of make test'

build:
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/spillway ./cmd/spillway

demo: build
	./bin/spillway demo $(DEMO)

test: tools lint cross unit whole netns demo bench-once
	@echo 'all tests passed'

# What the outside judges need: installed once, on Debian, as root.
tools:
	@./scripts/install-judges

lint:
	@test -z "$$(gofmt -l .)" || { echo 'not formatted:'; gofmt -l .; exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags netns ./...
	cd tools && $(GO) build -o ../bin/staticcheck honnef.co/go/tools/cmd/staticcheck
	./bin/staticcheck -tags netns ./...
	$(GO) mod tidy -diff

unit:
	$(GO) test -race -timeout 15m ./...

# Without the race detector: allocation gates, and simulations that fill whole
# port ranges, which it would slow down twentyfold.
whole:
	$(GO) test -timeout 15m ./...

netns: build
	$(GO) test -tags netns -p 1 -count=1 -timeout 15m $(AS_ROOT) $(NETNS)

# The library and what it imports must build for everybody who embeds it.
cross:
	for t in linux/amd64 linux/arm64 darwin/arm64 windows/amd64; do \
	  CGO_ENABLED=0 GOOS=$${t%/*} GOARCH=$${t#*/} $(GO) build ./engine/... ./tunnel/... ./nat/... ./flowtable/... || exit 1; \
	done
	CGO_ENABLED=0 GOOS=linux GOARCH=arm64 $(GO) build ./...

bench-once:
	$(GO) test -run '^$$' -bench . -benchtime 1x ./... >/dev/null

bench: build
	$(GO) run ./internal/bench/cmd/bench -rounds $(ROUNDS) -secs $(SECS) $(if $(OUT),-out $(OUT)) $(if $(NEBULA),-nebula $(NEBULA)) $(BENCH)

fuzz:
	@for p in $$(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u); do \
	  for f in $$(grep -ho '^func Fuzz[A-Za-z0-9_]*' $$p/*_test.go | sed 's/func //'); do \
	    echo "$$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(T) $$p || exit 1; \
	  done; \
	done

clean:
	rm -rf bin
