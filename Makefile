# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check -q
SOURCES = $(shell find src csrc -type f -not -name '*.so' -not -name '*.pyc') CMakeLists.txt pyproject.toml
EXAMPLE_DEPENDENCIES = scipy scikit-learn cma lightgbm xgboost-cpu transformers gymnasium pyarrow numba \
                       statsmodels
TEST_DEPENDENCIES = pytest pytest-xdist hypothesis mpmath numpy expecttest peft accelerate \
                    cleanlab triton playwright rich rich-argparse shtab \
                    $(EXAMPLE_DEPENDENCIES)

SITE_DEPENDENCIES = sphinx myst-nb pydata-sphinx-theme sphinx-design sphinx-copybutton sphinxcontrib-bibtex \
                    sphinx-mathjax-offline axe-playwright-python

# What `make test` leaves out for its length.
PARTS = test-slow test-site test-processors test-examples test-pythons test-trl
LINTERS = ruff pyright clang-format
LINTS = $(addprefix lint-,$(LINTERS))

.DEFAULT_GOAL := help
.PHONY: help demo check test-quick test test-all $(PARTS) check-package mutants experiments bench bench-gpu site docs lint $(LINTS) format clean

help:
	@echo "make demo      train a language model, alone and on two ranks, for two minutes, and show tables and pictures"
	@echo "make check     lint, types and a part of the tests, in a minute and a half: for whoever works on it"
	@echo "make test      the test suite, with the compiled core and without it"
	@echo "make test-all  what is long: $(PARTS)"
	@echo "make check-package  builds what is published, and checks it with the tools of those who take it"
	@echo "make mutants   puts faults into the library, and counts those that the tests notice"
	@echo "make bench     speed, memory and error beside PyTorch and its peers"
	@echo "make bench-gpu  the same for logits on a GPU, with the torch that is installed there"
	@echo "make site      the documentation as pages: $(SITE)/index.html"
	@echo "make docs      writes docs/architecture.svg and docs/coverage.md anew"
	@echo "make lint      ruff, pyright and clang-format; make format fixes what they can"
	@echo "make experiments   every example: tables, pictures, and what they must show, into docs/experiments"

$(VENV)/python:
	$(PYTHON) -c 'import sys; sys.exit("xent needs Python 3.10 or later; try make PYTHON=python3.11" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# Compiled once, for the stable interface: every Python takes this wheel.
WHEELS = $(VENV)/wheels
$(VENV)/wheel: $(VENV)/python $(SOURCES)
	rm -rf $(WHEELS)
	$(PIP) wheel --no-deps -w $(WHEELS) .
	@touch $@

$(VENV)/installed: $(VENV)/wheel constraints.txt
	$(PIP) install -c constraints.txt torch==2.13.0 numpy
	$(PIP) install --no-deps --force-reinstall $(WHEELS)/*.whl
	$(PIP) install -c constraints.txt "$$(echo $(WHEELS)/*.whl)[train]"
	@touch $@

$(VENV)/test: $(VENV)/installed
	$(PIP) install -c constraints.txt $(TEST_DEPENDENCIES)
	@touch $@

# Frameworks that docs/frameworks.md is about, and libraries whose numbers docs/coming-from shows.
$(VENV)/frameworks: $(VENV)/test
	$(PIP) install -c constraints.txt lightning keras skorch || echo "skipped: frameworks, which cannot be installed here"
	$(PIP) install -c constraints.txt jax optax || echo "skipped: optax, which cannot be installed here"
	$(PIP) install -c constraints.txt --no-deps liger-kernel cut-cross-entropy || echo "skipped: Liger and CCE, which cannot be installed here"
	@touch $@

$(VENV)/mutants: $(VENV)/test
	$(PIP) install -c constraints.txt coverage
	@touch $@

$(VENV)/examples: $(VENV)/installed
	$(PIP) install -c constraints.txt $(EXAMPLE_DEPENDENCIES)
	@touch $@

# Of the versions in constraints.txt, as wheels, which bring all they need: pyright has its node.
LINTER = $(PIP) install --only-binary :all: -c constraints.txt
$(VENV)/ruff $(VENV)/clang-format: $(VENV)/python constraints.txt
	$(LINTER) $(@F)
	@touch $@

$(VENV)/pyright: $(VENV)/test
	$(LINTER) "pyright[nodejs]"
	@touch $@

$(VENV)/site: $(VENV)/examples
	$(PIP) install -c constraints.txt $(SITE_DEPENDENCIES)
	@touch $@

$(VENV)/bench: $(VENV)/installed
	$(PIP) install -c constraints.txt jax optax ".[learn]"
	$(PIP) install --no-deps kornia kornia_rs entmax
	@touch $@

demo: $(VENV)/installed
	$(BIN)/xent train --minutes 1.6 --out runs/demo
	@echo
	@echo "on two ranks, each with half of the classes, and on the sources of xent:"
	OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc-per-node 2 -m xent train src --parallel classes --steps 40 --out runs/ranks
	@echo
	@echo "next: score a text of yours by $(BIN)/xent eval runs/demo FILE, or draw losses by $(BIN)/xent plot cross_entropy focal_loss"

# One case of each test function but for the long ones, on one core, while the linters have the other.
check: $(VENV)/test $(addprefix $(VENV)/,$(LINTERS))
	@$(MAKE) --no-print-directory -j 2 --output-sync=target test-quick $(LINTS)

test-quick: $(VENV)/test
	$(PYTEST) -m "not slow and not long" --one-case

# Where a missing core could show. The laws run on the reference engine either way.
REFERENCE_TESTS = \
  tests/house/test_structure.py \
  tests/frames/test_row_loss.py \
  tests/losses/test_classification_errors.py \
  tests/engines/rows/test_edge_cases.py \
  tests/house/test_parity.py \
  tests/house/test_torch_samples.py \
  tests/house/test_compile.py \
  tests/heads/test_logits.py

# Two processes, for the two cores of a small machine; threads that wait leave the cores to the others.
PYTEST = OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -q
test: $(VENV)/test
	$(PYTEST) -n 2 -m "not slow"
	XENT_NO_CORE=1 $(PYTEST) -n 2 -m "not slow" -k "not triton" $(REFERENCE_TESTS)

# All parts, whatever becomes of the first; says which of them failed.
test-all:
	@failed=; for part in $(PARTS); do \
		echo "== $$part"; \
		$(MAKE) --no-print-directory PYTHONS=--no-download $$part || failed="$$failed $$part"; \
	done; \
	if [ -n "$$failed" ]; then echo "failed:$$failed"; exit 1; fi; echo "all parts passed: $(PARTS)"

test-slow: $(VENV)/frameworks
	$(PYTEST) -n 2 -m slow --ignore=tests/house/test_processors.py --ignore=tests/site --ignore=tests/playground

# The pages in Debian's chromium, and the losses of the playground against the library.
test-site: $(VENV)/test
	@if $(MAKE) --no-print-directory $(VENV)/site; \
	then $(MAKE) --no-print-directory site; \
	else echo "skipped: the pages, as one of these cannot be installed here: $(SITE_DEPENDENCIES)"; fi
	@command -v chromium chromium-headless-shell >/dev/null || echo "skipped: tests in a browser, as chromium is not installed"
	$(PYTEST) -n 2 -m slow tests/site tests/playground

test-processors: $(VENV)/test
	$(PYTEST) -n 2 tests/house/test_processors.py

test-examples: $(VENV)/examples
	$(BIN)/python docs/experiments.py --small --jobs 2

# By itself it downloads PyTorch, gigabytes, for the Pythons that need it; in test-all it leaves them out.
test-pythons: $(VENV)/wheel
	$(BIN)/python tests/house/other_pythons.py $(PYTHONS)

# Two environments of 1.5 GB, one after the other, which are removed.
test-trl: $(VENV)/wheel
	$(BIN)/python -m tests.trl

# Tools, sdist, wheels and an empty environment for the wheels, all of which are removed.
check-package: $(VENV)/python
	$(BIN)/python -m tests.house.package

mutants: $(VENV)/mutants
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m tests.mutants

experiments: $(VENV)/examples
	$(BIN)/python docs/experiments.py

# In under 20 minutes on two cores; then the tables of the pages.
RESULTS = benchmarks/results
bench: $(VENV)/bench
	mkdir -p $(RESULTS)
	$(BIN)/xent bench --memory --json $(RESULTS)/cpu.json --markdown | tee $(RESULTS)/cpu.txt
	for part in in_a_step small_calls inputs family; do \
	  $(BIN)/python -m benchmarks.$$part --json $(RESULTS)/$$part.json | tee $(RESULTS)/$$part.txt; done
	$(BIN)/xent bench linear --json $(RESULTS)/linear.json --markdown | tee $(RESULTS)/linear.txt
	$(BIN)/python -m benchmarks.over_ranks | tee $(RESULTS)/over_ranks.txt
	$(BIN)/python -m benchmarks.regression | tee $(RESULTS)/regression.txt
	$(BIN)/python -m benchmarks.readme

# In the environment that is active: PyTorch for this GPU is not what the constraints install.
bench-gpu:
	mkdir -p benchmarks/results
	$(PYTHON) -m benchmarks.gpu.logits --json benchmarks/results/gpu_logits.json --markdown | tee benchmarks/results/gpu_logits.txt

# The pages into build/site: opens from the folder, and asks no other host for anything.
SITE = build/site
site: $(VENV)/site
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m sphinx -q -W --keep-going --nitpicky -j 4 -b html docs $(SITE)
	@echo "open $(SITE)/index.html"

docs: $(VENV)/examples
	$(BIN)/python docs/architecture.py
	$(BIN)/python docs/coverage_page.py

lint: $(LINTS)

lint-ruff: $(VENV)/ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint-pyright: $(VENV)/pyright
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python

CPP = $(wildcard csrc/*.h csrc/*.cpp)
lint-clang-format: $(VENV)/clang-format
	$(BIN)/clang-format --dry-run -Werror $(CPP)

format: $(VENV)/ruff $(VENV)/clang-format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

clean:
	rm -rf build dist $(VENV)
