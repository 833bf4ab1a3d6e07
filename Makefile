# The tasks of working on the toolkit. `make` alone lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
BUILD := .build
# The interpreter that .venv is made with: a Python of 3.11 to 3.13; empty for the first that works.
PYTHON ?=
# uv, which only `make lock` needs; where there is none, it is fetched into .build.
UV ?= $(shell command -v uv || echo $(BUILD)/uv/bin/uv)
# Arguments for `make demo`, the benchmarks and `make test-faults`.
ARGS ?=
# How many files of tests run at once. Each may start ten machines, and the kernel's usual limit of
# inotify instances leaves room for thirty.
WORKERS ?= 2
# Rounds of `make test-chaos`, and the seed of their choices; empty for a new one.
N ?= 50
SEED ?=

TESTS := tests

# Shell functions for recipes, taken in by `eval "$$FUNCTIONS"`.
define FUNCTIONS
say() { printf '\n== %s\n' "$$*"; }

# Print "3.N PATH" for each Python that truly runs, oldest first. A pyenv shim may be on the path
# and yet fail, a Debian Python may lack `venv`, a home-made one `ssl` or `sqlite3`.
pythons() {
    local minor candidate program answer homes=~/.pyenv
    homes=$${PYENV_ROOT:-$$homes}/versions
    program='import ensurepip, sqlite3, ssl, sys, venv'
    program+='; print("%d.%d" % sys.version_info[:2], getattr(sys, "_base_executable", sys.executable))'
    for minor in 3.11 3.12 3.13; do
        while read -r candidate; do
            answer=$$(timeout 10 "$$candidate" -c "$$program" 2>/dev/null </dev/null) || continue
            [[ $$answer == "$$minor "* ]] || continue
            echo "$$answer"
            break
        done < <(
            type -ap "python$$minor" || true
            compgen -G "$$homes/$$minor*/bin/python$$minor" || true
            if [[ -x /usr/bin/python3 ]]; then echo /usr/bin/python3; fi
        )
    done
}

minor_of() { "$$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

# install PYTHON DIRECTORY: make a virtual environment, or bring one up to date.
install() {
    "$$2/bin/python" -c '' 2>/dev/null || { rm -rf "$$2" && "$$1" -m venv "$$2"; } || return
    local pip=("$$2/bin/python" -m pip -qq --disable-pip-version-check --no-input install)
    # Chained, since `set -e` does not hold in a function that is called before `||`.
    "$${pip[@]}" --require-hashes --only-binary :all: --requirement requirements/dev.txt \
        && "$${pip[@]}" --no-deps --no-build-isolation --editable . \
        && touch "$$2/.installed"
}

# test_pythons [3.N]: the fast tests on the oldest and the newest Python, but not on 3.N.
test_pythons() {
    local all minor python own venv count code=0
    all=$$(pythons)
    count=$$(wc -l <<<"$$all")
    own=$$(minor_of $(BIN)/python)
    if [[ $$count -lt 2 ]]; then
        say "skipped: fast tests on a second Python (only $${all%% *} is on this machine)"
    fi
    while read -r minor python; do
        [[ $$minor != "$${1:-}" ]] || continue
        venv=$(VENV)
        if [[ $$minor != "$$own" ]]; then
            venv=$(BUILD)/venv-$$minor
            if [[ requirements/dev.txt -nt $$venv/.installed || pyproject.toml -nt $$venv/.installed ]]; then
                say "installing the requirements for Python $$minor"
                install "$$python" "$$venv" || return
            fi
        fi
        say "fast tests on Python $$minor"
        "$$venv/bin/python" -m pytest -n auto -o cache_dir="$(CURDIR)/$(BUILD)/pytest-$$minor" tests/unit || code=1
    done < <(sed -n '1p;$$p' <<<"$$all" | uniq)
    return $$code
}
endef
export FUNCTIONS

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

.PHONY: setup
setup: host-packages $(VENV)/.installed ## Install everything: Debian packages, then .venv from hashed requirements

.PHONY: host-packages
host-packages: ## Install the Debian packages that are missing (as root, or with sudo)
	@wanted=$$(sed 's/#.*//' .ci/host-packages | xargs)
	command -v dpkg-query >/dev/null || { echo "not a Debian: install yourself: $$wanted"; exit 0; }
	here=$$(dpkg-query -W -f '$${db:Status-Status} $${Package}\n' $$wanted 2>/dev/null || true)
	missing=$$(for name in $$wanted; do grep -qx "installed $$name" <<<"$$here" || echo "$$name"; done | xargs)
	[[ -n $$missing ]] || exit 0
	become=()
	if [[ $$(id -u) -ne 0 ]]; then
	    command -v sudo >/dev/null || { echo "as root, run: apt-get install $$missing" >&2; exit 1; }
	    become=(sudo)
	fi
	echo "installing Debian packages: $$missing"
	apt() { "$${become[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$$@"; }
	mkdir -p $(BUILD)
	if ! { apt update && apt install --yes --no-install-recommends $$missing; } &>$(BUILD)/apt.log </dev/null; then
	    cat $(BUILD)/apt.log >&2
	    exit 1
	fi

# The packages bring the interpreter, so they come first; whether they do is no reason to make
# the environment anew.
$(VENV)/.installed: requirements/dev.txt pyproject.toml | host-packages
	@eval "$$FUNCTIONS"
	python="$(PYTHON)"
	if [[ -z $$python ]]; then python=$$(pythons | sed -n '1s/^[^ ]* //p'); fi
	[[ -n $$python ]] || { echo "no Python of 3.11 to 3.13 runs here; name one: make $(MAKECMDGOALS) PYTHON=…" >&2; exit 1; }
	minor=$$(minor_of "$$python" 2>/dev/null || true)
	[[ $$minor =~ ^3\.1[123]$$ ]] || { echo "$$python is not a Python of 3.11 to 3.13" >&2; exit 1; }
	echo "installing the locked requirements into $(VENV), with Python $$minor"
	install "$$python" $(VENV)

.PHONY: demo
demo: setup ## Bake, roll and break the example service before your eyes
	@$(BIN)/python -m examples.demo $(ARGS)

.PHONY: test
test: setup ## Run everything: lint, unit tests on two Pythons, integration, end to end
	@eval "$$FUNCTIONS"
	mkdir -p $(BUILD)
	failed=()
	# What both of the runs below need is baked once.
	layers=$$(mktemp -d)
	trap 'rm -rf "$$layers"' EXIT
	export TOOLKIT_TEST_STORE=$${TOOLKIT_TEST_STORE:-$$layers}
	say "lint"
	$(MAKE) lint || failed+=(lint)
	test_pythons "$$(minor_of $(BIN)/python)" || failed+=("a second Python")
	say "tests that are run alone, on $$($(BIN)/python --version)"
	$(BIN)/python -m pytest -m alone --durations 10 --junitxml $(BUILD)/tests-alone.xml $(TESTS) \
	    || failed+=("tests that are run alone")
	say "all other tests"
	$(BIN)/python -m pytest -m "not alone" -n $(WORKERS) --dist loadfile \
	    --durations 10 --junitxml $(BUILD)/tests.xml $(TESTS) || failed+=("other tests")
	if [[ $${#failed[@]} -gt 0 ]]; then
	    printf 'failed: %s\n' "$${failed[@]}" >&2
	    exit 1
	fi

.PHONY: test-fast
test-fast: setup lint ## Run what takes seconds: lint and the unit tests
	@$(BIN)/python -m pytest -n auto tests/unit

.PHONY: test-faults
test-faults: setup ## Kill every command before and after every effect (hours; ARGS="-k rolling" for a part)
	@TOOLKIT_EXHAUSTIVE=1 $(BIN)/python -m pytest --durations 10 tests/faults $(ARGS)

.PHONY: test-chaos
test-chaos: setup ## Cut random commands short, N times; SEED repeats the choices of a run
	@CHAOS_N=$(N) CHAOS_SEED=$(SEED) $(BIN)/python -m pytest -s tests/faults/test_chaos.py

.PHONY: test-pythons
test-pythons: setup ## Run the unit tests on the oldest and the newest Python of this machine
	@eval "$$FUNCTIONS"
	test_pythons

.PHONY: test-contention
test-contention: setup ## Let 20 operators roll at once, 20 times: half an hour
	@TOOLKIT_EXHAUSTIVE=1 $(BIN)/python -m pytest -rA tests/faults/test_contention.py

.PHONY: lint
lint: setup ## Check style and types: ruff, mypy
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: format
format: setup ## Put the code into its form: ruff
	@$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: bench-roll
bench-roll: setup ## Roll under load and count what fails (ARGS=--help)
	@$(BIN)/python -m bench.roll $(ARGS)

.PHONY: bench-rotate
bench-rotate: setup ## Rotate secrets under load and count what fails (ARGS=--help)
	@$(BIN)/python -m bench.roll --rotate $(ARGS)

.PHONY: bench-faults
bench-faults: setup ## Roll under load while things break, and count what fails (ARGS=--help)
	@$(BIN)/python -m bench.faults $(ARGS)

.PHONY: bench-bake
bench-bake: setup ## Measure bakes: cold, application only, unchanged (ARGS=--help)
	@$(BIN)/python -m bench.bake $(ARGS)

COMPILE = "$(UV)" pip compile --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-annotate --no-header

.PHONY: lock
lock: | $(filter $(BUILD)/%,$(UV)) ## Pin the requirements of pyproject.toml, with hashes (needs uv)
	@$(COMPILE) --extra dev pyproject.toml -o requirements/dev.txt >/dev/null
	$(COMPILE) --constraint requirements/dev.txt pyproject.toml -o requirements/toolkit.txt >/dev/null

$(BUILD)/uv/bin/uv: | $(VENV)/.installed
	@$(BIN)/python -m venv $(BUILD)/uv
	$(BUILD)/uv/bin/python -m pip --quiet --disable-pip-version-check install uv

.PHONY: clean
clean: ## Remove what make made here: environments, caches, reports (images and machines stay)
	@rm -rf $(VENV) $(BUILD) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
