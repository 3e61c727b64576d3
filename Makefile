# `make talk` and `make test` each work alone in a fresh clone; a second run takes seconds.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.installed
TORCH := torch==2.13.0
export OMP_NUM_THREADS ?= 1

.PHONY: talk test lint nano clean

talk: $(SETUP)
	$(BIN)/spiritrt talk

test: $(SETUP) lint
	$(BIN)/python -m pytest

lint: $(SETUP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@# mypy sees the mapped folders as one package through links
	@rm -rf build/lint && mkdir -p build/lint/spiritrt
	@ln -s $(CURDIR)/runtime/* $(CURDIR)/training build/lint/spiritrt/
	cd build/lint && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p spiritrt

# torch first and by name: an unpinned one would bring several GB of CUDA; a torch that is already there stays
$(SETUP): setup.py pyproject.toml $(wildcard csrc/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install -q $(TORCH)
	$(BIN)/pip install -q "setuptools>=77" wheel pybind11 ninja numpy
	$(BIN)/pip install -q --no-build-isolation -e ".[test,pitch]"
	$(BIN)/pip install -q --no-deps torchfcpe==0.0.4  # its torchaudio dependency has no CPU build; see README
	touch $(SETUP)

clean:
	rm -rf build out *.egg-info runtime/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
