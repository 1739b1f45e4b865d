# Needs python3 with venv, and make. `make demo PY=python3.12` chooses another Python.
PY ?= python3
VENV ?= .venv
ARGS ?=

.PHONY: demo test lint docs format clean

demo: $(VENV)/demo.stamp  ## classify four pictures with MobileNetV2
	$(VENV)/bin/gpu-conv classify $(ARGS)

# One BLAS thread: two of them on busy cores are many times slower than one. Workers that are done take over from others.
test: $(VENV)/test.stamp  ## ARGS goes to pytest
	OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n auto --maxprocesses 8 --dist worksteal $(ARGS)

lint: $(VENV)/test.stamp $(VENV)/dev.stamp
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	find kernels tests -name '*.cu' -o -name '*.cuh' | xargs $(VENV)/bin/clang-format --dry-run -Werror

docs: $(VENV)/docs.stamp  ## the site, in build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --site-dir build/site

format: $(VENV)/dev.stamp
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	find kernels tests -name '*.cu' -o -name '*.cuh' | xargs $(VENV)/bin/clang-format -i

# One environment for all extras; each is installed once for every change of pyproject.toml.
$(VENV)/%.stamp: pyproject.toml
	test -x $(VENV)/bin/python || $(PY) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
