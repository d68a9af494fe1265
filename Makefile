# make demo     detections of classes never trained on, from an empty machine: output/quickstart
# make test     all tests                         make lint     ruff and mypy
# make docs     the documentation: output/site    make web      the web page, after make demo
# make install  .venv with everything pinned      make clean    remove caches and build files
#
# Every target first sets up what it needs, once. Needed before: Python 3.11 (the versions of
# constraints.txt are for it) with venv, make, and a machine that reaches the Python package index.
# V=1 shows all that pip says, PYTHON=python3.11 chooses the interpreter of .venv, ARGS="-k fvit" is
# given to pytest, which runs in two processes.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
PIP := $(PY) -m pip --disable-pip-version-check $(if $(V),,-q)

# Two threads at most; idle ones sleep instead of spinning.
OMP_NUM_THREADS ?= 2
export OMP_NUM_THREADS
export OMP_WAIT_POLICY := PASSIVE

.PHONY: install demo test lint docs web clean
.DEFAULT_GOAL := install

install: $(STAMP)

$(PY):
	@$(PYTHON) -m venv $(VENV) || { rm -f $(PY); \
	  echo "error: cannot make $(VENV); on Debian: apt-get install python3-venv" >&2; exit 1; }

# What is installed already and fits is left as it is.
$(STAMP): constraints.txt setup.py tools/install_detectron2.py | $(PY)
	@echo "[1/4] torch and torchvision (5.4 GB with the CUDA libraries: some minutes; V=1 shows progress)"
	@$(PIP) install -c constraints.txt torch torchvision
	@echo "[2/4] densedet and what it stands on"
	@$(PIP) install -c constraints.txt setuptools wheel
	@$(PIP) install -c constraints.txt --no-build-isolation -e '.[dev,docs,eval,export,web-requirements]'
	@echo "[3/4] lvis, panopticapi-lite and Gradio"
	@$(PIP) install -c constraints.txt --no-deps lvis panopticapi-lite gradio gradio_client hf-gradio
	@echo "[4/4] Detectron2"
	@PIP_CONSTRAINT=constraints.txt $(PY) tools/install_detectron2.py
	@$(VENV)/bin/densedet doctor
	@touch $@

demo: $(STAMP)
	@$(PY) tools/quickstart.py

test: $(STAMP)
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(STAMP)
	@$(PY) -m ruff check .
	@$(PY) -m mypy

docs: $(STAMP)
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict -q
	@echo output/site/index.html

web: $(STAMP)
	@$(PY) tools/web_demo.py $(ARGS)

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find densedet tools tests configs projects -name __pycache__ -prune -exec rm -rf {} +
