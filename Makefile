# make train ARGS="data=cifar10 backbone=resnet20" passes overrides on.
PYTHON ?= python3
BIN := .venv/bin
# The system's certificates, as pip takes them: behind a company's proxy uv's own are not enough.
UV := VIRTUAL_ENV=.venv $(BIN)/uv --system-certs
# Where an image of a container sets it, each process of the tests would compile all that it imports.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup train test test-all lint lock

setup: .venv/ready

.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; make PYTHON=python3.12 …")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(UV) pip install --quiet --require-hashes -r requirements.lock
	$(UV) pip install --quiet --no-deps -e .
	touch $@

train: setup
	$(BIN)/imgcls train $(ARGS)

test: setup
	$(BIN)/python -m pytest -n 2 $(ARGS)

test-all: setup
	$(BIN)/python -m pytest -n 2 -m "slow or not slow" $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lock: setup
	$(UV) pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-emit-find-links --upgrade --quiet -o requirements.lock
