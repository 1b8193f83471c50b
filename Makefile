# make demo    ship two networks and show the reports        make test      run the tests: minutes
# make lint    ruff and mypy --strict                        make test-all  run the slow ones, too, and the wheel's
# make docs    build the manual into site/                 make test-gpu  run what needs a CUDA GPU
# make coverage  test-all but the wheel, and count the lines; make format, wheel, test-wheel, constraints

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PARALLEL := --numprocesses=2 --dist=worksteal
SOURCES := models compress export bench src examples tests docs

# Python keeps what it compiled, whatever the environment says: else each process compiles torch for as long as it works.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX := $(abspath $(VENV))/compiled

.PHONY: demo test test-rest test-all test-gpu coverage lint docs format wheel test-wheel bench-overhead constraints clean

demo: $(INSTALLED)
	$(BIN)/python examples/demo.py --out demo-out

test: $(INSTALLED)
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

test-all: test test-rest

# Apart from test-all, since counting takes the same tests two thirds longer: Python tells of every call in torch, too.
coverage: $(INSTALLED)
	$(BIN)/python -m pytest $(PARALLEL) --cov --cov-report=term --cov-fail-under=95

# What make test leaves.
test-rest: $(INSTALLED)
	$(BIN)/python -m pytest $(PARALLEL) -m slow
	$(MAKE) test-wheel

test-gpu: $(INSTALLED)
	$(BIN)/python -m pytest -m gpu

lint: $(INSTALLED)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy src/pruneport examples

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(INSTALLED)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

wheel: $(INSTALLED)
	rm -rf dist build
	$(BIN)/python -m build --installer uv --outdir dist .

# Against the built wheel in place of the checkout: what can see something new there. A test asks that its modules are the
# checkout's; so beside it that is which files are carried, what starts processes, the verbs one after the other, and what
# tells the user's modules from ours.
PACKAGED := tests/test_package.py tests/test_versions.py tests/models/test_source.py tests/models/digits \
	tests/commands/test_chain.py tests/commands/test_earlier_versions.py tests/commands/test_public_names.py \
	tests/commands/test_study.py tests/commands/test_user_projects.py tests/bench/transfer/test_runner.py \
	tests/export/bundle/test_two_writers.py tests/export/bundle/test_unfinished.py

test-wheel: wheel
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --force-reinstall dist/*.whl
	PRUNEPORT_EXPECT_WHEEL=1 $(BIN)/python -m pytest $(PARALLEL) -m "not real and not slow or wheel" $(PACKAGED); status=$$?; \
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e . && exit $$status

bench-overhead: $(INSTALLED)
	$(BIN)/python -m pruneport.bench.experiments.overhead --out bench/results/overhead.json

constraints: $(INSTALLED)
	$(BIN)/uv pip compile pyproject.toml --extra dev --extra gpu --universal --python-version 3.11 --upgrade \
		--no-header --no-annotate --no-emit-index-url --quiet -o constraints.txt

clean:
	rm -rf $(VENV) dist build site demo-out *.egg-info src/*.egg-info .mypy_cache .ruff_cache .pytest_cache

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info[:2] <= (3, 13) or sys.exit("pruneport needs Python 3.11 to 3.13, but $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	$(BIN)/uv pip install --python $(BIN)/python -c constraints.txt -e '.[dev]'
	@touch $(INSTALLED)
