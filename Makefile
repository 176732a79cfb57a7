.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
EXTRAS := trainer,server,mlflow,oidc,telemetry,pipelines,dev

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

venv: .venv/installed ## set up .venv with the locked versions

# A .venv whose folder was copied or moved runs the code of the first folder, or nothing: it is set up anew.
ifeq ($(shell grep -sF '$(CURDIR)/.venv/bin/python' .venv/bin/distrinews),)
.PHONY: .venv/installed
CLEAR := --clear
endif

.venv/installed: pyproject.toml images/constraints.txt
	@echo "setting up .venv (about a minute; needs a package index)"
	$(PYTHON) -m venv $(CLEAR) .venv
	$(BIN)/python -m pip install --quiet --constraint images/constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

run: venv ## the whole pipeline on generated sample data with a small model
	$(BIN)/distrinews run --data sample

static: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: static ## format, lint, types and the fast tests
	$(BIN)/python -m pytest -m "not slow and not cluster and not browser"

test: static ## all checks and all tests
	$(BIN)/python -m pytest

test-images: venv ## build the images for a CPU and run them with podman: two pods train, one is killed, a server serves
	TORCH=cpu images/build
	$(BIN)/python -m pytest -rP tests/images/containers.py

test-cluster: venv ## the tests that need a cluster: dry runs on the one of kubeconfig's current context; they change nothing
	$(BIN)/python -m pytest -rs -n0 -m cluster

bench: venv ## measure: NAME=train, train_memory, serving.compare, serving.engines, serving.soak ... (docs/benchmarks)
	$(BIN)/python -m tests.benchmarks.$(or $(NAME),$(error name a module of tests/benchmarks, such as NAME=train))

charts: venv ## write what is generated in helm/: README tables, the schema of settings
	$(BIN)/python .ci/charts

images: ## build the images with docker, podman or buildah; TORCH=cpu: the trainer without CUDA
	images/build

lock: ## renew images/constraints.txt from the newest versions that pyproject allows, then the lock of each image
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet 'torch$(TORCH_VERSION)' '.[$(EXTRAS)]'
	.venv-lock/bin/python -m pip freeze --exclude distrinews | sed 's/+cpu$$//' > images/constraints.txt
	$(MAKE) lock-images

lock-images: ## renew the lock of each image from images/constraints.txt
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet uv
	images/lock .venv-lock/bin/python
	rm -rf .venv-lock

clean: ## remove what the targets made, but not runs/
	rm -rf .venv .venv-lock .mypy_cache .ruff_cache .pytest_cache

.PHONY: help venv run static check test test-images test-cluster bench charts images lock lock-images clean
