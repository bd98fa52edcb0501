# Needs Python 3.11 or newer, make, and a package index. Everything goes into .venv.
PYTHON ?= python3
PIP_FLAGS ?= --quiet --disable-pip-version-check
BIN := .venv/bin

MINUTES ?= 40
WEIGHTS ?= none

.PHONY: demo bench model needs-camvid test lowest coverage mutants check audit sbom fuzz format lock clean

# The story of the paper in one run: a classifier, its heat map, FCN-32s, 16s, 8s, and a report to look at.
demo: .venv/ready
	$(BIN)/fullyconv demo --out runs/demo

# Speed and memory beside what others do, in quarter of an hour; writes docs/performance.md.
bench: .venv/ready
	$(BIN)/python benchmarks/run.py

needs-camvid:
	@test -n "$(CAMVID)" || { echo "CAMVID is not given; expected make model CAMVID=FOLDER, a folder as docs/data.md describes" >&2; exit 2; }

# A small model to offer beside a release: make model CAMVID=FOLDER [WEIGHTS=FILE] [MINUTES=40]; goes on where it was stopped.
model: needs-camvid .venv/ready
	$(BIN)/fullyconv train "$(CAMVID)" --backbone squeezenet1_0 --weights "$(WEIGHTS)" --input caffe --minutes $(MINUTES) --out runs/model --resume
	$(BIN)/python release/pack.py runs/model --out build --data "$(CAMVID)" --weights "$(WEIGHTS)"

test: .venv/ready
	$(BIN)/python -m pytest -n 2 --dist worksteal

# The suite with the oldest versions that pyproject.toml promises, in an environment of its own (5 GB). Old packages call
# what new ones deprecate, so warnings are no errors here. LOWEST=onnx,openvino adds extras, which ask for a newer torch.
LOWEST ?= geo,tensorboard
lowest: .venv/ready
	rm -rf .lowest-venv
	$(BIN)/uv venv --quiet --python $(BIN)/python .lowest-venv
	$(BIN)/uv pip install --quiet --python .lowest-venv/bin/python --resolution lowest-direct -e '.[$(LOWEST)]' --group test
	.lowest-venv/bin/python -m pytest -n 2 --dist worksteal -o filterwarnings=

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
	$(BIN)/python dependencies/audit.py

# Known vulnerabilities of the pins; says so, and goes on, where there is no database to ask.
audit: .venv/ready
	$(BIN)/python dependencies/audit.py

# A bill of materials (CycloneDX) of the pins, with their licences.
sbom: .venv/ready
	$(BIN)/python dependencies/sbom.py dist/fullyconv.cdx.json

# Half an hour for each reader of binary files. Atheris has no wheels for some platforms, so it is not in the lock.
fuzz: .venv/ready
	-$(BIN)/uv pip install --quiet --python $(BIN)/python atheris
	$(BIN)/python tests/fuzz/readers.py caffemodel
	$(BIN)/python tests/fuzz/readers.py safetensors

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# uv installs in half the time of pip, and is itself pinned in the lock. It compiles nothing, and where Python is told to
# write no bytecode every process of the tests would: torch takes twice as long to import then.
.venv/ready: requirements.lock pyproject.toml hatch_build.py src/fullyconv/native/kernel.cpp src/fullyconv/native/block.h src/fullyconv/native/loss.h
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	grep -A 50 '^uv==' requirements.lock | awk 'NR > 1 && /^[a-z]/ { exit } { print }' > .venv/uv.lock
	$(BIN)/python -m pip install $(PIP_FLAGS) --require-hashes -r .venv/uv.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	$(BIN)/python -m compileall -q -j 0 .venv/lib > .venv/compiled 2>&1 || true
	touch $@

# Pins and hashes for every platform, no addresses.
lock: .venv/ready
	$(BIN)/uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes \
		--no-annotate --no-header --no-emit-index-url --quiet --output-file requirements.lock

clean:
	rm -rf .venv .bench-venv .lowest-venv runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
