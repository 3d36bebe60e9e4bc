# make quickstart   the main job, end to end, on generated data
# make check        a file of tests for each package, in under two minutes
# make test         the tests; under 20 minutes on 2 cores
# make test-all     the slow tests as well: whole searches, kills, benchmarks
# make fuzz         broken and odd inputs, for SECONDS (60)
# make wheel-check  installs the wheel into an empty environment and uses it
# make docs         the guides and the API reference, as pages in site/
# make bench        benchmarks against peers, in an hour
# make lint         formatting, static checks, types
#
# Each target makes its own virtual environment in .venv on first use.
# PYTHON=/path/to/python3.12 picks the interpreter (3.10, 3.11 or 3.12).
# JOBS: tests that run at a time; each holds about 3 GiB.

BENCHMARKS := floor resampling train_step history input_pipeline \
  catalogue_scaling memory full_ranking estimator_bias serving

.PHONY: quickstart check test test-all fuzz wheel-check docs bench lint format clean
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
JOBS := 2
SECONDS := 60
# A file for each package, quick ones; a test sees that no package is left out.
CHECK := tests/imports_test.py tests/ops/losses_test.py \
  tests/ops/resampling_test.py tests/ops/masking_test.py \
  tests/layers/candidate_cache_test.py \
  tests/models/towers_test.py tests/optimizers/optimizers_test.py \
  tests/metrics/full_ranking_test.py tests/indexes/index_test.py \
  tests/diagnostics/divergence_test.py tests/data/records_test.py \
  tests/data/schema_test.py tests/tasks/xir_test.py \
  tests/programs/settings_test.py tests/pipelines/readers_test.py \
  tests/pipelines/splits_test.py tests/pipelines/schedule_test.py \
  tests/pipelines/evaluate_test.py tests/pipelines/reproduce_test.py \
  tests/pipelines/tuning_space_test.py \
  tests/pipelines/prepare_beam_test.py tests/export/retriever_test.py \
  tests/export/serving_tensors_test.py
SOURCES := xir_tfrs pipelines export benchmarks examples tests tools setup.py

quickstart: $(READY)
	$(BIN)/xir-tfrs quickstart $(ARGS)

bench: $(READY)
	for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name || exit; done

check: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not slow" \
	  $(CHECK) $(ARGS)

# Files in the order of tests/conftest.py, and not by their number of tests.
test: WHICH := -m "not slow"
test test-all: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(WHICH) \
	  --no-loadscope-reorder $(ARGS)

fuzz: $(READY)
	$(BIN)/python -m tests.fuzz.run --seconds=$(SECONDS) $(ARGS)

wheel-check: $(READY)
	$(BIN)/python tools/check_wheel.py

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

lint: $(READY)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

$(READY): setup.py
	sh tools/make_venv.sh $(VENV) $(PYTHON)
	touch $@

clean:
	rm -rf $(VENV) build dist site *.egg-info
