# make demo   run notebooks 1 to 4 on the sample clips, with the nano model, on two CPU cores
# make lab    open JupyterLab with 00_quickstart; HOST=0.0.0.0 for other machines, PORT=8899
# make lint   run ruff, the word check, mypy and import-linter
# make check  run make lint and the quick tests, in under two minutes
# make test   run make lint and the default tests, at the same time
# make proof  measure on unseen videos whether fine-tuning helps; DAVIS=FOLDER, about 25 minutes
# make docs   build the documentation site, offline; open site/index.html
# make docs-notebooks   run the notebooks on the sample clips and render them to docs/notebooks/
# make gpu-check   check sam2kit on a GPU in under ten minutes; on a CPU, toy sizes
# Each target sets up .venv first; later calls install nothing.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.sam2kit-installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Tests often wait for other processes, so three share two cores. Each uses one thread.
WORKERS ?= 3
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

# JupyterLab listens on loopback, unless HOST is given to make; some shells export a variable HOST.
LAB_HOST := $(if $(filter command,$(firstword $(origin HOST))),$(HOST),127.0.0.1)
# Root needs a switch, and is the only user of many containers.
LAB_OPTIONS := $(if $(filter 0,$(shell id -u)),--allow-root) \
$(if $(filter command,$(firstword $(origin PORT))),--ServerApp.port=$(PORT))

DAVIS ?= ../shared/davis

# Each process that a test starts would compile the package.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: check demo gpu-check lab proof docs docs-notebooks test tests lint setup clean
.DEFAULT_GOAL := demo

setup: $(STAMP)

# The stamp is written last, so that the next call completes an interrupted setup; pip skips installed
# packages. sam2 is built without its CUDA extension and without build isolation, because an isolated
# build downloads torch a second time. Its build dependencies are therefore installed first.
$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	(3, 10) <= v <= (3, 12) or sys.exit("Python 3.10 to 3.12 is required, not %d.%d; select one with PYTHON=python3.12" % v)'
	@echo "[1/4] environment in $(VENV)"
	@test -x $(BIN)/python && $(BIN)/python -m pip --version >/dev/null 2>&1 \
	|| $(PYTHON) -m venv $(VENV)
	@echo "[2/4] torch and the build dependencies of sam2 (about 2 GB; one to two minutes)"
	@$(PIP) install --quiet --progress-bar off \
	$$(grep -E '^(torch|torchvision|setuptools|wheel|hatchling|editables)==' requirements.txt)
	@echo "[3/4] everything else in requirements.txt (one to two minutes)"
	@SAM2_BUILD_CUDA=0 $(PIP) install --quiet --progress-bar off --no-build-isolation \
	-r requirements.txt
	@echo "[4/4] sam2kit itself"
	@$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $@
	@echo "ready: $(BIN)/sam2kit --help"

demo: $(STAMP)
	$(BIN)/python -m sam2kit run --config configs/quickstart.yaml

lab: $(STAMP)
	$(BIN)/python -m jupyterlab "--ServerApp.root_dir=$(CURDIR)" --ServerApp.ip=$(LAB_HOST) \
	--LabApp.default_url=/lab/tree/notebooks/00_quickstart.ipynb $(LAB_OPTIONS)

proof: $(STAMP)
	$(ONE_THREAD) $(BIN)/python -m benchmarks.proof --davis $(DAVIS)

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "built site/index.html"

docs-notebooks: $(STAMP)
	$(BIN)/python docs/render_notebooks.py

gpu-check: $(STAMP)
	$(BIN)/python -m benchmarks.gpu_check

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python docs/check_words.py
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports --no-cache

check: lint
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --quick

# Without its cache, mypy uses one core for most of a minute; tests run on the other meanwhile.
test: $(STAMP)
	@$(MAKE) --no-print-directory -j2 lint tests

tests: $(STAMP)
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
