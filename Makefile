# demo, test, bench, lint: each sets itself up in .venv on first use.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DEMO   := runs/demo
JOBS   ?= 2
LONG    := campaign digital_learning ma_ota_learning prepared_base pwff_learning sparsification switching_learning

# a caller's interpreter settings must not reach into the virtual environment
unexport PYTHONPATH
unexport PYTHONHOME
unexport PIP_USER
unexport PIP_TARGET
unexport PIP_PREFIX
unexport PIP_REQUIRE_VIRTUALENV

.PHONY: help install demo test bench lint clean

help:
	@echo "make demo    install, run the quickstart in simulation, compare moving with fixed antennas"
	@echo "make test    install, run the whole test-suite"
	@echo "make lint    install, check style, types and import contracts"
	@echo "make bench   install, run the benchmarks"
	@echo "make clean   remove the virtual environment, caches and runs/demo"

install: $(STAMP)

# torch goes first and alone, so that no other requirement pulls a CUDA build
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet torch==2.13.0 -c constraints.txt
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)
	rm -rf $(DEMO)
	$(BIN)/testbed run quickstart --backend sim --out $(DEMO)/moving
	$(BIN)/testbed run quickstart --backend sim --out $(DEMO)/fixed --bench fixed --set name=quickstart-fixed
	$(BIN)/testbed show $(DEMO)/moving --against $(DEMO)/fixed

# two at a time: what keeps real time runs in one of the two processes, the rest beside it; JOBS=0 runs one by one
test: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) --no-loadscope-reorder

# a campaign takes hours: here only whether it works
bench: $(STAMP)
	@set -e; for script in $$(grep -l __main__ benchmarks/*.py); do \
		name=$$(basename $$script .py); echo "== $$script"; \
		case " $(LONG) " in *" $$name "*) options=--quick ;; *) options= ;; esac; \
		$(BIN)/python -m benchmarks.$$name $$options; \
	done

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy testbed drivers sim_backend nodes calibration benchmarks

clean:
	rm -rf $(VENV) $(DEMO) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
