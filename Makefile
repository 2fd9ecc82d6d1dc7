# Two commands on a fresh machine with git, make, python3 (3.11 or newer) and its venv: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DURATION ?=
# Nothing of the caller's pip settings may weaken the hashes below.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement

.PHONY: demo test check audit folder bench bench-plots proof format lock proto clean

demo: $(VENV)/run.stamp  ## simulator → journal → Parquet, no credentials
	$(BIN)/tickvault demo $(if $(DURATION),--duration $(DURATION))

test: $(VENV)/dev.stamp  ## all tests, with the real servers
	$(BIN)/python tools/fetch_servers.py
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: $(VENV)/dev.stamp  ## format, lint, types, import contracts, security lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive src deploy tools

audit: $(VENV)/dev.stamp  ## known vulnerabilities of the locked versions; asks the package index, so CI, which may have no network, does not
	$(BIN)/pip-audit --strict --require-hashes --disable-pip --requirement requirements.lock
	$(BIN)/pip-audit --strict --require-hashes --disable-pip --requirement requirements-dev.lock

folder: $(VENV)/dev.stamp  ## record the data folder of this version that the tests open
	$(BIN)/python tools/record_folder.py

bench: build/peers/stamp  ## benchmarks, with the peers they compare with
	$(BIN)/python tools/fetch_servers.py
	$(BIN)/python -m benchmarks

bench-plots: build/peers/stamp  ## how cost grows, drawn; writes benchmarks/growth.md and docs/img
	$(BIN)/python -m benchmarks.growth

proof: $(VENV)/dev.stamp  ## reliability at full size, some hours; writes docs/reliability.md
	$(BIN)/python tools/fetch_servers.py
	$(BIN)/python -m proof --write

format: $(VENV)/dev.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(VENV)/dev.stamp  ## resolve the dependencies anew
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-emit-find-links --no-header --group build pyproject.toml --output-file requirements.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-emit-find-links --no-header --group build --group dev pyproject.toml --constraint requirements.lock \
	  --output-file requirements-dev.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-emit-find-links --no-header --group pyproject.toml:benchmark --constraint requirements-dev.lock \
	  --output-file requirements-bench.lock

proto: $(VENV)/dev.stamp  ## generate the protobuf module from the .proto
	cd src/tickvault/brokers/upstox/proto && ../../../../../$(BIN)/python -m grpc_tools.protoc -I. \
	  --python_out=. --pyi_out=. market_data_feed.proto

clean:
	rm -rf $(VENV) .servers demo-data

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "tickvault needs Python 3.11 or newer; name one with make PYTHON=python3.12 …"; exit 1; }
	$(PYTHON) -m venv $(VENV) || { echo "the venv module is missing; on Debian: apt install python3-venv"; exit 1; }

$(VENV)/run.stamp: requirements.lock pyproject.toml | $(BIN)/python
	$(INSTALL) requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/dev.stamp: requirements-dev.lock $(VENV)/run.stamp
	$(INSTALL) requirements-dev.lock
	@touch $@

# Beside the environment, not in it: numpy alone, once there, is imported by every recorder.
build/peers/stamp: requirements-bench.lock $(VENV)/dev.stamp
	rm -rf build/peers
	$(INSTALL) requirements-bench.lock --target build/peers
	@touch $@
