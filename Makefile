# Every task of the project. `make help` lists them; CI and the README call the same ones.
.DEFAULT_GOAL := help
.PHONY: help setup build packages images demo run test check bench fuzz mutants fmt print-envoy clean-free

MINUTES ?= 2
CARGO ?= cargo

help: ## List the tasks
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install every tool that the tasks below need, under ~/.cache/stepward
	@tools/setup rust envoy wasm step scan grpc roots postgres packages deny lint fuzz mutants

build: ## Leave dist/stepward and dist/stepward_filter.wasm
	@tools/setup rust wasm
	@tools/build

packages: build ## Leave a Debian package in dist/
	@tools/setup packages
	@tools/packages

images: build ## Build the images stepward and stepward-envoy of dist/, by Docker
	STEPWARD_BINARIES=prebuilt docker compose --file deploy/docker/compose.yaml build

demo: ## Set up, build, start Envoy and the sidecar, send signed webhooks, print the verdicts
	@tools/setup rust envoy wasm
	@STEPWARD_PROFILE=demo tools/build
	@tools/demo

run: ## The demo, kept running in the foreground until Ctrl-C (PORT=9443)
	@tools/setup rust envoy wasm
	@STEPWARD_PROFILE=demo tools/build
	@tools/demo --keep

test: ## Run every test: unit, fuzz corpora, and end to end with a real Envoy and step-ca, from images and packages too
	@tools/setup rust envoy wasm step scan grpc roots postgres packages
	@STEPWARD_PROFILE=demo tools/build
	@tools/build-wasm trap
	$(CARGO) test --workspace --no-fail-fast

check: ## Formatting, clippy, dependencies, rustdoc, the module's size and imports, deploy files
	@tools/setup rust wasm postgres deny lint mutants
	@tools/check

bench: ## Measure Stepward beside Envoy's own filters; prints a table (see bench/)
	@tools/setup rust envoy wasm
	@tools/build
	$(CARGO) run --release -p bench

fuzz: ## Run each fuzz target for MINUTES (2) minutes
	@tools/setup rust fuzz
	@tools/fuzz "$(MINUTES)"

mutants: ## Turn each rule round, and see that a test notices (FILES="engine/src/gate.rs ..."; all of them take hours)
	@tools/setup rust mutants
	@tools/mutants $(FILES)

fmt: ## Format the code
	$(CARGO) fmt --all

print-envoy: ## Print the path of the Envoy binary, installing it first if need be
	@tools/setup envoy
	@tools/setup print-envoy

clean-free: ## Free the disk space of builds; dist/ and the tools' cache stay
	rm -rf target fuzz/target
