# make run     set everything up, find the engines, start the proxy, show a streamed answer through it
# make test    the tests that need no real engine
# make help    all the others
SHELL := /bin/bash
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
STAMP := .venv/.ready
CRATE := Cargo.toml Cargo.lock $(wildcard flm/_native/src/*.rs)
# Where rustup's toolchains are, should HOME be elsewhere (see requirements/bootstrap.py).
RUSTUP_HOME ?= $(shell rustc --version >/dev/null 2>&1 || { p=$$(command -v rustc) && d=$${p%/*/*/*}/.rustup && [ -d $$d ] && echo $$d; })
ifneq ($(RUSTUP_HOME),)
export RUSTUP_HOME
endif

# A Rust that was fetched for the build alone has no cargo on PATH: then the crate's own tests are named as left out.
CARGO_TEST = if cargo --version >/dev/null 2>&1; then cargo test --quiet --locked --no-default-features; \
	elif [ -n "$$CI" ]; then echo "failed: cargo is not on PATH, the crate's tests could not run"; exit 1; \
	else echo "left out: cargo is not on PATH, so the native crate's own tests do not run"; fi

.PHONY: run test lint audit format setup help lock clean-setup
.DEFAULT_GOAL := help

run: $(STAMP) ## set up, find the engines, start the proxy, show a streamed answer
	@$(BIN)/python -m flm.cli.quickstart

test: $(STAMP) node-client ## all tests that need no real engine
	@$(CARGO_TEST)
	@$(BIN)/python -m tests.side_by_side

lint: $(STAMP) ## ruff, bandit, patterns of insecure code, the audit's record, mypy, stubtest, clippy, rustfmt
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/bandit --quiet --configfile pyproject.toml --recursive flm
	@$(BIN)/python -m tests.structure.patterns flm
	@$(BIN)/python -m tests.structure.audit
	@$(BIN)/mypy
	@$(BIN)/python -m mypy.stubtest flm._native._ext
	@PYO3_PYTHON=$(CURDIR)/$(BIN)/python cargo clippy --quiet --locked --all-targets -- -D warnings
	@cargo fmt --check

audit: $(STAMP) ## known vulnerabilities of everything locked: asks the internet, or clones of the databases (PYPA=, RUSTSEC=)
	@test -n "$(PYPA)" || { $(PYTHON) -m venv .build/pip-audit && .build/pip-audit/bin/pip install --quiet pip-audit; }
	@test -n "$(RUSTSEC)" || cargo audit --version >/dev/null 2>&1 || \
		{ echo "failed: cargo-audit is missing: cargo install --locked cargo-audit"; exit 1; }
	@$(BIN)/python -m tests.structure.audit ask $(if $(PYPA),--pypa "$(PYPA)") $(if $(RUSTSEC),--rustsec "$(RUSTSEC)")

format: $(STAMP) ## rewrite the code as the formatters want it
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format . ; cargo fmt

setup: $(STAMP) ## virtual environment, locked dependencies, native crate

$(STAMP): requirements/bootstrap.py requirements/rust.py requirements/build_backend.py requirements/dev.lock pyproject.toml $(CRATE)
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; on Debian and Ubuntu: apt-get install python3 python3-venv"; exit 1; }
	@$(PYTHON) requirements/bootstrap.py
	@touch $@

lock: $(STAMP) ## resolve the dependencies anew
	@$(BIN)/python -m pip install --quiet uv
	@$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-annotate --no-header --group dev pyproject.toml -o requirements/dev.lock

help:
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

-include tests/clients/clients.mk tests/acme/acme.mk tests/real/real.mk tests/gates/gates.mk tests/real/vllm/vllm.mk loadtests/load.mk benches/bench.mk docs/docs.mk
