# The doors of the house. Every target makes what it needs, and is quick where that is already there.

SHELL := /bin/bash
PYTHON_BIN := .venv/bin
HOST := deployments/host
# Most of a test's time is waiting: more processes than the two processors that CI has, and no more than their memory bears.
TEST_PROCESSES ?= 3
# Nothing in the house reports to anyone, test runs included.
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false

.DEFAULT_GOAL := help
.PHONY: help demo up test check lint types map scripts generated bench bench-ingest bench-trigger bench-engine screenshots format requirements environment dcmtk orthanc chromium file-systems engine images clean

help: ## Say what each target does
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: environment dcmtk images ## Send a study through everything, with real parts, and show that it arrived
	@$(PYTHON_BIN)/dicomflow demo

up: environment images ## Run DicomFlow on this host until Ctrl-C
	@$(PYTHON_BIN)/dicomflow up

test: environment dcmtk chromium file-systems images ## Run all tests, several at a time
	@$(PYTHON_BIN)/python -m pytest -n $(TEST_PROCESSES)

check: lint types map scripts generated ## Lint, types, the map of imports, scripts, and what is generated from other files

lint: environment
	@$(PYTHON_BIN)/ruff check .
	@$(PYTHON_BIN)/ruff format --check .

types: environment
	@$(PYTHON_BIN)/mypy

map: environment
	@$(PYTHON_BIN)/lint-imports

scripts: environment
	@$(PYTHON_BIN)/shellcheck .ci/run requirements/*.sh $(HOST)/*.sh

generated: environment
	@$(PYTHON_BIN)/python requirements/freshness.py
	@$(PYTHON_BIN)/python -m flows_engine.definition.json_schema --check
	@$(PYTHON_BIN)/python -m deployments.parameter_schemas --check
	@FLOW_DIRECTORY=flow_definitions $(PYTHON_BIN)/dicomflow deploy --write --check

bench: environment dcmtk images ## Measure a study's whole way, side by side with other programs
	@$(PYTHON_BIN)/python -m tests.benchmarks.end_to_end

bench-ingest: environment dcmtk orthanc ## Measure receiving, side by side with DCMTK and Orthanc
	@$(PYTHON_BIN)/python -m tests.benchmarks.ingest

bench-trigger: environment ## Measure run creation, long queues and deploying, on every database there is
	@$(PYTHON_BIN)/python -m tests.benchmarks.triggering
	@$(PYTHON_BIN)/python -m tests.benchmarks.deploying
	@$(PYTHON_BIN)/python -m tests.benchmarks.reprocessing

bench-engine: environment images ## Measure what a run takes beside its model, and beside Prefect's own worker
	@$(PYTHON_BIN)/python -m tests.benchmarks.engine

screenshots: environment dcmtk chromium images ## Take the pictures of docs/images anew
	@mkdir -p docs/images
	@SCREENSHOTS=$(CURDIR)/docs/images $(PYTHON_BIN)/python -m pytest -q tests/acceptance/test_in_the_browser.py

format: environment ## Bring the code into the form that check wants
	@$(PYTHON_BIN)/ruff check --fix .
	@$(PYTHON_BIN)/ruff format .

requirements: environment ## Pin anew what pyproject.toml and requirements/dev.in ask for
	@requirements/compile.sh

environment: ## Make the virtual environment .venv
	@$(HOST)/python_environment.sh

dcmtk: ## Install DCMTK's command-line tools
	@$(HOST)/dcmtk.sh

orthanc: ## Install Orthanc, for comparison
	@$(HOST)/orthanc.sh

chromium: ## Install a browser, for the tests of what a person sees
	@$(HOST)/chromium.sh

file-systems: ## Install what makes file systems, for the tests of power cuts
	@$(HOST)/file_systems.sh

engine: environment ## See that a Docker engine answers
	@$(HOST)/docker_engine.sh

images: engine ## See that the images of the examples are there
	@$(HOST)/images.sh

clean: ## Remove what the other targets made here; never DATA_DIR, which may hold patients
	@rm -rf .venv build .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
	@find flows_engine dicom_gateway deployments tests -type d -name __pycache__ -prune -exec rm -rf {} +
