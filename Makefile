# Everything runs from .venv, which the first target that needs it makes and fills.
PYTHON ?= python3
OUT ?= demo_output
WORKERS ?= 2

VENV := .venv
VENV_LOWEST := .venv-lowest
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-lowest lint types docs clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

# The marker is written last, so an interrupted installation starts again.
$(STAMP): pyproject.toml
	@echo "Setting up $(VENV): about 7 GB (PyTorch and TerraTorch), several minutes the first time."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed: remove $(VENV), then make PYTHON=python3.12 ..."; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## run the three stages on real tiles, pictures to demo_output
	@$(BIN)/axs demo --out $(OUT) --overwrite
	@echo "The results are in $(OUT)/"

# One torch thread a worker; tests of one xdist_group stay on one worker and share what they build.
test: $(STAMP) ## the fast tests, offline
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(ARGS)

test-slow: $(STAMP) ## the slow tests: full-size parity, training, end to end
	@$(BIN)/python -m pytest -m slow $(ARGS)

# The doors to the libraries that change most: adapters, schedulers, loading, and the stages that use them.
test-lowest: ## the tests of the doors with the lowest allowed versions (needs uv)
	@uv venv --quiet --allow-existing $(VENV_LOWEST)
	@uv pip install --quiet --python $(VENV_LOWEST) --resolution lowest-direct --editable '.[dev]'
	@OMP_NUM_THREADS=1 $(VENV_LOWEST)/bin/python -m pytest tests/test_adapters.py tests/terramind \
		tests/test_stage3_tm_ground.py tests/test_user_document.py $(ARGS)

lint: $(STAMP) ## ruff
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(STAMP) ## mypy
	@$(BIN)/mypy

docs: $(STAMP) ## the documentation as a site, in site/
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean: ## remove what make and the tools wrote, the environment included
	rm -rf $(VENV) $(VENV_LOWEST) $(OUT) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
