# Needs Python 3.11 or newer, make, and a package index. Everything goes into .venv.
PYTHON ?= python3
PIP_FLAGS ?= --quiet --disable-pip-version-check
BIN := .venv/bin

.PHONY: demo bench test coverage mutants check format lock clean

# The story of the paper in one run: a classifier, its heat map, FCN-32s, 16s, 8s, and a report to look at.
demo: .venv/ready
	$(BIN)/fullyconv demo --out runs/demo

# Speed and memory beside what others do, in quarter of an hour; writes docs/performance.md.
bench: .venv/ready
	$(BIN)/python benchmarks/run.py

test: .venv/ready
	$(BIN)/python -m pytest -n 2 --dist worksteal

# Branch coverage of src by the whole suite, subprocesses and workers too. What is timed runs longer while it is watched.
TIMED := tests/test_cold_start.py::test_help_answers_within_a_third_of_a_second
coverage: .venv/ready
	rm -rf runs/coverage
	mkdir -p runs/coverage
	$(BIN)/coverage run -m pytest -n 2 --dist worksteal --deselect $(TIMED)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered --sort=cover

# Is any test red when the code is wrong? Writes docs/results/mutation.md; MUTANTS="geometry --sample 50" does less.
mutants: .venv/ready
	$(BIN)/python tests/mutation/run.py $(MUTANTS)

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layering.py

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# uv installs in half the time of pip, and is itself pinned in the lock.
.venv/ready: requirements.lock pyproject.toml hatch_build.py src/fullyconv/native/kernel.cpp src/fullyconv/native/block.h
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	grep -A 50 '^uv==' requirements.lock | awk 'NR > 1 && /^[a-z]/ { exit } { print }' > .venv/uv.lock
	$(BIN)/python -m pip install $(PIP_FLAGS) --require-hashes -r .venv/uv.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	touch $@

# Pins and hashes for every platform, no addresses.
lock: .venv/ready
	$(BIN)/uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes \
		--no-annotate --no-header --no-emit-index-url --quiet --output-file requirements.lock

clean:
	rm -rf .venv .bench-venv runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
