.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

venv: .venv/installed ## set up .venv with the locked versions

.venv/installed: pyproject.toml images/constraints.txt
	@echo "setting up .venv (about a minute; needs a package index)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint images/constraints.txt --editable '.[trainer,server,mlflow,oidc,telemetry,pipelines,dev]'
	@touch $@

run: venv ## the whole pipeline on generated sample data with a small model
	$(BIN)/distrinews run --data sample --ranks 2

test: venv ## all checks: ruff, mypy, pytest
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

bench-engines: venv ## measure what runs the model fastest, and its memory
	$(BIN)/python -m tests.benchmarks.serving.engines

bench-train: venv ## measure our trainer beside the one that tutorials write, one rank beside two, loss and memory (more than half an hour)
	$(BIN)/python -m tests.benchmarks.train
	$(BIN)/python -m tests.benchmarks.train_loss
	$(BIN)/python -m tests.benchmarks.train_memory

bench-gpu: venv ## the same on a CUDA device
	$(BIN)/python -m tests.benchmarks.train --device cuda

bench-serve: venv ## measure our server beside the one that tutorials write (half an hour)
	$(BIN)/python -m tests.benchmarks.serving.compare

bench-serve-more: venv ## the same beside LitServe and BentoML, and its memory over a soak (an hour)
	$(BIN)/python -m tests.benchmarks.serving.others
	$(BIN)/python -m tests.benchmarks.serving.soak

charts: venv ## write what is generated in helm/: README tables, the schema of settings
	$(BIN)/python .ci/charts

images: ## build the images with docker, podman or buildah; TORCH=cpu: the trainer without CUDA
	images/build

test-images: venv ## build them for a CPU and run them with podman: two pods train, one is killed, a server serves
	TORCH=cpu images/build
	$(BIN)/python -m pytest -rP tests/images/containers.py

lock: ## renew images/constraints.txt from the newest versions that pyproject allows, then what each image installs
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet 'torch$(TORCH_VERSION)' '.[trainer,server,mlflow,oidc,telemetry,pipelines,dev]'
	.venv-lock/bin/python -m pip freeze --exclude distrinews | sed 's/+cpu$$//' > images/constraints.txt
	rm -rf .venv-lock
	$(MAKE) lock-images

lock-images: ## renew what each image installs from images/constraints.txt
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet uv
	images/lock .venv-lock/bin/python
	rm -rf .venv-lock

clean: ## remove what the targets made, but not runs/
	rm -rf .venv .venv-lock .mypy_cache .ruff_cache .pytest_cache

.PHONY: help venv run test charts bench-data bench-engines bench-train bench-gpu bench-serve bench-serve-more images test-images lock lock-images clean
