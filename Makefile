# `make` lists the targets. Everything is set up on first use in .venv and .cache.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
OUT ?= out/demo
# pip's many lines as one that moves on.
COUNT := awk '/^Collecting/ {printf "\r\033[K    %d packages, now %s", ++n, $$2; fflush()} END {if (n) print ""}'

.PHONY: help setup fetch demo up test lint format bench bench-balance bench-router bench-workers bench-overload bench-discovery bench-limits bench-policy drill soak protos constraints clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## install everything into .venv (runs by itself when needed)

$(READY): pyproject.toml deploy/constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Python 3.11 or later is needed, this is {v[0]}.{v[1]}: make PYTHON=python3.11")'
	@echo "==> Python packages into .venv (a minute or two the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@set -o pipefail; $(BIN)/python -m pip install --disable-pip-version-check --no-input \
	    --constraint deploy/constraints.txt --editable '.[dev]' 2> >(grep -v '^WARNING: ' >&2) | $(COUNT)
	@touch $@

demo: $(READY) ## run two flows on real photos and show where the pictures are
	@$(BIN)/python examples/demo.py --out $(OUT)

up: $(READY) ## serve the whole mesh until Ctrl-C; DISCOVERY=consul starts and uses an agent
	@$(BIN)/aiflow up $(if $(DISCOVERY),--discovery $(DISCOVERY))

test: fetch ## run every test
	$(BIN)/pytest

fetch: $(READY) ## fetch Triton, the models' weights and photos into .cache
	@$(BIN)/aiflow triton --install-only
	@$(BIN)/aiflow weights --group pictures --group test-pictures >/dev/null

lint: $(READY) ## check style, types, imports and generated code
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	deploy/check_protos.sh

format: $(READY) ## rewrite the code in the project's style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: fetch ## measure; prints ratios, writes .cache/bench/*.json
	$(BIN)/python benchmarks/batching.py
	$(BIN)/python benchmarks/walk.py

bench-balance: fetch ## measure what batch_aware saves on three Tritons
	$(BIN)/python benchmarks/batch_aware.py

bench-router: $(READY) ## measure a call's cost beside Envoy and nginx (fetches them where it can)
	$(BIN)/python benchmarks/router.py

bench-discovery: $(READY) ## measure how soon Consul's news reaches callers, over 50 rounds
	$(BIN)/python benchmarks/discovery.py

bench-policy: $(READY) ## measure how long a change of 1,000 routes holds the calls up
	$(BIN)/python benchmarks/policy.py

bench-limits: $(READY) ## measure what limits cost, how exact and fair they are, and if the ledger adds up
	$(BIN)/python benchmarks/limits.py

bench-overload: $(READY) ## measure what a limit saves of an overloaded backend
	$(BIN)/python benchmarks/overload.py

drill: $(READY) ## ten minutes of operations under traffic, in which no call may fail
	$(BIN)/python benchmarks/drill.py

soak: $(READY) ## ten minutes of mixed load: memory and descriptors must stay as they are
	$(BIN)/python benchmarks/soak.py

bench-workers: $(READY) ## measure one and two workers, and reloads under traffic
	$(BIN)/python benchmarks/workers.py

protos: $(READY) ## regenerate the code beside each .proto
	deploy/protos.sh

constraints: $(READY) ## write down the installed versions, after they were tested together
	@{ echo "# The versions that were tested together; made with: make constraints"; \
	   $(BIN)/pip freeze --exclude-editable; } > deploy/constraints.txt

clean: ## remove everything that was installed or made
	rm -rf .venv .cache out
