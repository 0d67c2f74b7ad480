# From a fresh clone to the rendered book: `make book`. Everything else: `make help`.

PYTHON ?= python3
STUDY ?= shapes
WHAT ?= training

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SITE := book/_build/html
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help install book test chromium test-site lint format lab train results picture benchmark clean

help:  ## list what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=python3.12       the Python that .venv is made with ($(PYTHON))"
	@echo "  TORCH_INDEX=address     index that torch comes from when .venv is made, as the CPU index"
	@echo "  MINUTES=90              when make train stops, to go on the next time"
	@echo "  STUDY=cifar10           the study whose tables make results refreshes ($(STUDY))"
	@echo "  WHAT=analysis           what make benchmark measures: training or analysis ($(WHAT))"

# A Python that is named, and is not the one in .venv, replaces it.
ifneq ($(origin PYTHON),file)
ifneq ($(shell $(BIN)/python -V 2>&1),$(shell "$(PYTHON)" -V 2>&1))
REPLACED := yes
.PHONY: $(INSTALLED)
endif
endif

# An environment that works is taken over: satisfied requirements stay as they are. One that was not finished
# (no pip) or has too old a Python is made anew.
$(INSTALLED): requirements.txt pyproject.toml
	@[ -z "$(REPLACED)" ] && $(BIN)/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null \
	|| { "$(PYTHON)" -c 'import sys; sys.exit("this project needs Python 3.10 or newer, and $(PYTHON) is " + \
	sys.version.split()[0] + "; name another: make PYTHON=python3.12" if sys.version_info < (3, 10) else 0)' \
	&& "$(PYTHON)" -m venv --clear $(VENV); }
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install --index-url $(TORCH_INDEX) torch torchvision)
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	touch $@

install: $(INSTALLED)  ## make the environment in .venv

# The tables of all chapters, several encoders at once: a chapter by itself would take one after the other.
TABLES := book/_build/.tables
$(TABLES): $(INSTALLED) $(shell find nbhelpers data -type f ! -name '.*' ! -name '*.pyc')
	$(BIN)/python -m nbhelpers.results.fill
	mkdir -p $(@D)
	touch $@

# Sphinx reports a page's warnings only when it reads the page: after a failure every page is read anew.
# Executed notebooks are kept in book/_build/.jupyter_cache either way.
book: $(TABLES)  ## execute every notebook and build the site into book/_build/html
	$(BIN)/jupyter-book build book -W --keep-going || { rm -rf book/_build/.doctrees; exit 1; }

test: $(INSTALLED)  ## run all tests, doctests included
	$(PYTEST) -m "not site"

# As root on Debian a missing browser is installed; elsewhere the tests say what is missing.
chromium:
	@[ -n "$$CHROME" ] || command -v chromium chromium-browser google-chrome google-chrome-stable chrome \
	|| ! command -v apt-get || [ "$$(id -u)" != 0 ] \
	|| { apt-get update && apt-get install --yes --no-install-recommends chromium; }

test-site: book chromium  ## open the built site in headless Chromium and look at every page
	$(PYTEST) -m site tests/book

lint: $(INSTALLED)  ## check style and the direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports

format: $(INSTALLED)  ## mend what make lint can mend by itself
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# The settings in .jupyter open a chapter as a notebook on a double click.
lab: $(INSTALLED)  ## open the chapters as notebooks in JupyterLab
	JUPYTER_CONFIG_PATH="$(CURDIR)/.jupyter" $(BIN)/jupyter-lab $(if $(filter 0,$(shell id -u)),--allow-root)

train: $(INSTALLED)  ## train the encoders of data/queue.csv that are not there yet
	$(BIN)/python -m nbhelpers.pretrain --queue data/queue.csv $(if $(MINUTES),--minutes $(MINUTES))

results: $(INSTALLED)  ## refresh the stored tables of STUDY in data/
	$(BIN)/python -m nbhelpers.results --study $(STUDY)

picture: $(INSTALLED)  ## draw the figure of README.md from the stored tables
	$(BIN)/python book/_static/picture.py

benchmark: $(INSTALLED)  ## measure the speed of WHAT against a reference in the same run
	$(BIN)/python tests/benchmark.py $(WHAT)

clean:  ## remove the built site and tool caches; keeps .venv and .cache (data sets, training runs)
	rm -rf book/_build .pytest_cache .ruff_cache .import_linter_cache *.egg-info
	find nbhelpers tests book -name __pycache__ -prune -exec rm -rf {} +
