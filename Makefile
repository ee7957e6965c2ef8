# proa's commands. `make help` lists them; each installs what it needs into .venv, once.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Which Python builds .venv: yours (PYTHON=...), or the first of these that is 3.11 or 3.12.
PYTHON ?=
CANDIDATES := $(or $(PYTHON),python3.12 python3.11 python3)
# Where torch comes from, e.g. an index of CPU or CUDA builds. Empty: where everything comes from.
TORCH_INDEX ?=
# Passed on to the demo or to pytest: make demo ARGS=--quick; make test ARGS="-k codes"
ARGS ?=

# Processes that share the tests; those that judge latencies (mark `alone`) come afterwards.
JOBS ?= 3

# Where images belong; their tag (default: the version); Triton's own image, to build the GPU
# worker too.
REGISTRY ?=
TAG ?=
TRITON_IMAGE ?=

# Tests and demo start some hundred Python processes: each would compile proa anew.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
LOCK := $(shell cat pyproject.toml constraints.txt | sha256sum | cut -c1-16)
RUNTIME := $(VENV)/.installed-runtime-$(LOCK)
DEV := $(VENV)/.installed-dev-$(LOCK)
CHECKOV_LOCK := tests/helm/checkov.txt
CHECKOV := $(VENV)/checkov/.installed-$(shell sha256sum $(CHECKOV_LOCK) | cut -c1-16)
TORCH_PIN := $(shell sed -n '/^torch==/p' constraints.txt)
GENERATED := proa/api/v1
SUITABLE := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))

.PHONY: help demo test test-images test-long e2e check proto docs install images push results-demo results-pairs results-overhead results-telemetry results-console results-abft results-campaign results-store clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z][a-z0-9-]*:.*## / { printf "make %-16s %s\n", $$1, $$2 }' Makefile

demo: $(RUNTIME) ## install, train, serve, break things, and report into out/demo (ARGS=--quick: one minute)
	$(BIN)/proa demo serving $(ARGS)

test: $(DEV) $(CHECKOV) ## run the tests (under 10 minutes on two cores)
ifeq ($(ARGS),)
	$(BIN)/python -m pytest -m "not long and not cluster and not images and not alone" -n $(JOBS) \
	  --dist loadfile --no-loadscope-reorder
	$(BIN)/python -m pytest -m "alone and not long and not cluster" -n $(JOBS) --dist loadfile tests/e2e
else
	$(BIN)/python -m pytest -m "not long and not cluster and not images" $(ARGS)
endif

test-images: $(DEV) ## replay the build of an image without Docker, and run what is in it
	$(BIN)/python -m pytest -m "images and not long" $(ARGS) tests/services

test-long: $(DEV) $(CHECKOV) ## run the minutes-long campaigns too
	$(BIN)/python -m pytest -m "not cluster" --timeout=3600 $(ARGS)

e2e: $(DEV) ## test a release on your cluster: KUBECONFIG, images (docs/e2e.md)
	$(BIN)/python -m pytest -m cluster --timeout=3600 tests/cluster $(ARGS)

check: $(DEV) ## formatting, lint, types, import layers, generated code: what CI runs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; \
	$(call generate,$$fresh); \
	diff -r --exclude=__init__.py --exclude=__pycache__ "$$fresh/$(GENERATED)" services/$(GENERATED) \
	  || { echo "services/$(GENERATED) is not what protos/ generates: run make proto"; exit 1; }

proto: $(DEV) ## generate services/proa/api/v1 from protos/
	$(call generate,services)

docs: $(DEV) ## rewrite what is made from the code: docs/operations.md, the chart's schema and README
	$(BIN)/python tests/style/write_tables.py
	$(BIN)/python helm/generate.py

install: $(DEV) $(CHECKOV) ## install everything for development into .venv

images: ## build the container images (REGISTRY=..., TORCH_INDEX=..., TRITON_IMAGE=...)
	$(call bake,--load)

push: ## build the images and push them: make push REGISTRY=registry.example/team
	@[ -n "$(REGISTRY)" ] || \
	  { echo "name your registry: make push REGISTRY=registry.example/team"; exit 2; }
	$(call bake,--push)

results-demo: $(RUNTIME) ## measure the demo; numbers and picture into docs/results and README.md
	$(BIN)/proa demo serving
	mkdir -p docs/results
	cp out/demo/report.json docs/results/demo.json
	cp out/demo/report.svg docs/results/demo.svg
	cp out/demo/metrics.json docs/results/digits.json
	$(BIN)/python benchmarks/readme_block.py

results-pairs: $(RUNTIME) ## measure pairs of none and auto after make demo, into docs/results (15 minutes)
	$(BIN)/python benchmarks/demo_pairs.py out/demo --out docs/results/demo-pairs.json

results-overhead: $(RUNTIME) ## measure what the frontend adds to a request, into docs/results
	mkdir -p docs/results
	$(BIN)/python benchmarks/overhead.py out/demo/digits.yaml | tee docs/results/overhead.json

results-telemetry: $(RUNTIME) ## measure what traces cost, into docs/results
	$(BIN)/python benchmarks/telemetry.py out/demo/digits.yaml | tee docs/results/telemetry.json

results-console: $(DEV) ## take the pictures of the console anew, into docs/results (6 minutes)
	$(BIN)/python benchmarks/console_screenshot.py out/demo/digits.yaml docs/results

results-abft: $(RUNTIME) ## measure what checked products cost, and answers under bit flips, into docs/results
	$(BIN)/python benchmarks/abft_serving.py --out docs/results/abft-serving.json
	$(BIN)/python benchmarks/abft.py

results-campaign: $(RUNTIME) ## the full fault campaign, and one in a real model, into docs/results (20 minutes)
	rm -rf out/abft
	$(BIN)/proa abft campaign --size full --markdown docs/results/abft-campaign.md \
	  --brief docs/results/abft-campaign.json
	$(BIN)/python benchmarks/abft_digits.py
	$(BIN)/python benchmarks/abft.py --merge-only

results-store: $(RUNTIME) ## measure the embedding-parity store, into docs/results (12 minutes)
	$(BIN)/python benchmarks/store.py $(ARGS)

clean: ## delete what builds, tests and demos left; .venv stays
	rm -rf out build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find services kernels chaos tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# $(1): the folder that gets proa/api/v1/*_pb2*.py
generate = $(BIN)/python -m grpc_tools.protoc --proto_path=protos \
	--python_out=$(1) --pyi_out=$(1) --grpc_python_out=$(1) protos/$(GENERATED)/*.proto

# $(1): what becomes of the images. Settings that are empty are left to the bake file's defaults.
bake = $(foreach v,REGISTRY TAG TORCH_INDEX TRITON_IMAGE,$(if $($v),$v='$($v)')) \
	docker buildx bake --file docker/docker-bake.hcl $(1) $(if $(TRITON_IMAGE),all,default)

# The stamps carry a hash of what they installed, so nothing is installed twice.
$(RUNTIME):
	$(call install,worker$(comma)store$(comma)train$(comma)bench)
	touch $@

$(DEV):
	$(call install,dev)
	touch $@ $(RUNTIME)

# checkov wants older packages than ours: it lives in a virtual environment of its own.
$(CHECKOV): | $(DEV)
	rm -rf $(VENV)/checkov
	$(BIN)/python -m venv $(VENV)/checkov
	$(VENV)/checkov/bin/python -m pip --disable-pip-version-check install --requirement $(CHECKOV_LOCK)
	touch $@

comma := ,

# $(1): the extras. No build isolation: the build backend, too, is the pinned one.
define install
	@[ "$$(uname -sm)" = "Linux x86_64" ] || \
	  { echo "proa's workers run on Linux x86-64 only: Triton has no wheel for $$(uname -sm)"; exit 1; }
	@$(BIN)/python -c '$(SUITABLE)' 2>/dev/null && $(PIP) --version >/dev/null 2>&1 || $(make-venv)
	rm -f $(VENV)/.installed-*
	$(PIP) install --constraint constraints.txt hatchling editables
	$(if $(TORCH_INDEX),$(PIP) install --no-deps --index-url $(TORCH_INDEX) $(TORCH_PIN))
	$(PIP) install --constraint constraints.txt --no-build-isolation --editable '.[$(1)]'
endef

# A command of this name may exist and still not run (pyenv's shims), hence the trial.
make-venv = { for python in $(CANDIDATES); do \
	  if "$$python" -c '$(SUITABLE)' 2>/dev/null; then \
	    echo "creating $(VENV) with $$("$$python" --version)"; \
	    "$$python" -m venv --clear $(VENV) && exit 0; \
	    echo "$$python cannot make virtual environments: install its venv package"; exit 1; \
	  fi; \
	done; \
	echo "proa needs Python 3.11 or 3.12; tried: $(CANDIDATES)." \
	  "Name one: make PYTHON=/path/to/python3.11 ..."; exit 1; }
