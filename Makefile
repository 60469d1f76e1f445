# `make` alone lists the targets. Everything a target needs is installed first; that is quick the second time.

SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON := .venv/bin/python
SCRIPT := PYTHONPATH=. $(PYTHON)

.PHONY: help install test demo lint fmt docs bpf dist lock soak soak-install chaos bench-install bench-handoff bench-false-moves soak-crashes bench-relay bench-splice bench-agent bench-policy clean distclean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install:  ## install what is missing: Debian packages (root), .venv, locked dependencies, msocks itself
	@tools/install

test: lint docs  ## lint, build the docs, run every test; a skipped test is a failed test
	$(PYTHON) -m pytest --session-timeout=2400

demo: install  ## the main job: real curl and ssh move between networks, nothing is lost
	@$(SCRIPT) demo/main.py

lint: install  ## ruff, mypy --strict, the layers
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy $(wildcard src tests demo benchmarks chaos tools) hatch_build.py
	.venv/bin/lint-imports --no-logo

fmt: install  ## let ruff repair and format
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

docs: install  ## build docs/_build/html; a warning is an error
	$(PYTHON) -m sphinx -q -W --keep-going -b html docs docs/_build/html

bpf: | .venv  ## compile the eBPF objects anew and show what the verifier says of them (root)
	$(PYTHON) hatch_build.py object
	@$(PYTHON) tools/load_bpf.py

.venv:
	@tools/install

dist: install  ## build sdist and wheel into dist/
	rm -rf dist
	$(PYTHON) -m build --no-isolation

lock:  ## rewrite requirements/*.txt from pyproject.toml
	@tools/lock

bench-install: install
	@tools/install bench

soak-install: install
	@tools/install soak

soak: soak-install  ## the long runs
	$(PYTHON) -m pytest tests/chaos tests/datapath tests/end_to_end tests/protocol tests/session tests/values --soak --timeout=1200
	$(PYTHON) -m pytest tests/agent tests/lab --soak -m long --timeout=1200
	@$(SCRIPT) benchmarks/soak.py

chaos: install  ## seeded storms over mixed traffic for an hour; a failing seed is printed and replays
	@$(SCRIPT) chaos/main.py

soak-crashes: install  ## 10,000 session-moves and 200 kills of the proxy; writes docs/benchmarks/
	@$(SCRIPT) benchmarks/soak.py --without-volumes --moves 10000 --crashes 200 --page crashes

bench-handoff: bench-install  ## stalls at a move, beside MPTCP and wireguard-go; writes docs/benchmarks/
	@$(SCRIPT) benchmarks/handoff.py
	@$(SCRIPT) benchmarks/new_connection.py
	@$(SCRIPT) benchmarks/many_sessions.py

bench-false-moves: install  ## six bad links for ten minutes: does anything move? goes into the page of bench-handoff
	@$(SCRIPT) benchmarks/false_moves.py

bench-relay: bench-install  ## the relay's throughput, rate and memory, beside pproxy and dante; writes docs/benchmarks/
	@$(SCRIPT) benchmarks/relay.py

bench-splice: bench-install  ## the splice beside IP forwarding, haproxy, dante and microsocks; writes docs/benchmarks/
	@$(SCRIPT) benchmarks/splice.py

bench-agent: bench-install  ## library, agent and `msocks run` beside the splice alone; writes docs/benchmarks/
	@$(SCRIPT) benchmarks/agent.py

bench-policy: install  ## how long a decision of the policy takes; writes docs/benchmarks/
	@$(SCRIPT) benchmarks/policy.py

clean:  ## remove what was built and every cache
	rm -rf build dist docs/_build .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find src tests demo benchmarks chaos -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean  ## and the installed environment
	rm -rf .venv .tools src/msocks/datapath/splice/_libbpf*.so src/msocks/datapath/splice/_splice.bpf.o src/msocks/interception/_interception.bpf.o
