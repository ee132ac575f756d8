# Sets up .venv and calls the tools; what depends on what is in the Snakefile.
#
#   make book         execute what is not up to date and build book/_build/html/index.html
#   make test         everything that has to hold: style, types, tests, pages, the book in a browser
#   make check        in about three minutes: style, types, and the tests that reach what the branch changed
#   make bench        speed against reference implementations
#   make revalidate   carry stored results forward to code that repeats their witnesses
#   make clean        remove what can be made again (not .venv, not the stored results)
#
# PYTHON=python3.12 names another Python. A PyTorch that is in .venv already, such as one without CUDA, is kept.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready-$(shell cat requirements.txt pyproject.toml | cksum | tr ' ' '-')
CORES := $(shell getconf _NPROCESSORS_ONLN)

.PHONY: book test check bench revalidate clean
.DELETE_ON_ERROR:

book: $(READY)
	$(BIN)/snakemake --cores $(CORES) --rerun-triggers mtime --rerun-incomplete --nolock --quiet

test check: export OMP_NUM_THREADS = 1  # two workers share two cores

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadscope tests --ignore tests/test_book.py --ignore tests/test_browser.py
	$(BIN)/python -m compendium.results status
	$(BIN)/python -m compendium.pages status
	$(BIN)/jupyter-book build book
	$(BIN)/python -m pytest -n 2 --dist loadscope --nbval book
	$(BIN)/python -m pytest -n 2 --dist worksteal tests/test_book.py tests/test_browser.py

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	tests=$$($(BIN)/python tests/changed.py) && if [ -n "$$tests" ]; then \
	$(BIN)/python -m pytest -n 2 --dist worksteal $$tests; fi

bench: $(READY)
	$(BIN)/python -m pip install --quiet --no-deps -r benchmarks/requirements.txt
	$(BIN)/python -m benchmarks.run

revalidate: $(READY)
	$(BIN)/python -m compendium.results revalidate

clean:
	rm -rf book/_build .snakemake .work .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(READY): requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("molrg needs Python 3.11 or later: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -r requirements.txt
	$(BIN)/python -m pip install --no-deps -e .
	rm -f .venv/.ready-*
	touch $@
