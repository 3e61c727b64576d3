"""Against what the public Spirit LM code computes, through the public API: token ids, logits, continuations, sound."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import spiritrt
from spiritrt import GREEDY, SpiritLM, Units
from spiritrt.engine.steps import Row
from spiritrt.tokens.units import merge
from spiritrt.tokens.vocabulary import MODALITIES, format_speech

PROMPTS = ("text", "speech", "speech_then_text", "text_then_speech", "fewshot_asr", "unicode", "brackets")
CONTINUED = PROMPTS[:5]
CLIPS = ("leading_blank", "odd_length", "7143-88743-0029")


@dataclass(frozen=True, slots=True)
class GoldenModel:
    """A loaded golden model and, by prompt, what the public code makes of it."""

    lm: SpiritLM
    prompts: dict[str, dict]
    logits: dict[str, np.ndarray]  # after each prompt, of the ids `ids`
    ids: np.ndarray


@pytest.fixture(scope="module", params=["base", "expressive", "base, whole", "expressive, whole"])
def model(request) -> GoldenModel:
    """Both models as the repository holds them, and as they are where the whole golden data is at hand."""
    name = f"spirit-lm-{request.param.split(',')[0]}-7b"
    if "whole" in request.param:
        root: Path = request.getfixturevalue("whole_golden")
        lm = spiritrt.load(str(root / "checkpoints" / "spiritlm_model" / name), lazy=True)
    else:
        root = request.getfixturevalue("golden")
        lm = request.getfixturevalue("base_lm" if request.param == "base" else "expressive_lm")
    logits = dict(np.load(root / "expected" / f"{name}_last_logits.npz"))
    ids = logits.pop("ids", np.arange(lm.family.vocabulary.rows))
    return GoldenModel(lm, json.loads((root / "expected" / "lm.json").read_text())[name], logits, ids)


class TestLanguageModel:
    @pytest.mark.parametrize("prompt", PROMPTS)
    def test_ids_and_text(self, model, prompt):
        expected = model.prompts[prompt]
        tokenizer = model.lm.family.tokenizer
        assert tokenizer.encode(expected["prompt"]) == expected["ids"]
        assert tokenizer.decode(expected["ids"]) == expected["decoded"]

    @pytest.mark.parametrize("prompt", PROMPTS)
    def test_last_logits(self, model, prompt):
        with torch.inference_mode():
            logits = model.lm.family.llama(torch.tensor([model.prompts[prompt]["ids"]]), last_only=True)[0, 0]
        expected = model.logits[prompt]
        assert np.abs(logits.numpy()[model.ids] - expected).max() <= 1e-4 * np.abs(expected).max()

    @pytest.mark.parametrize("prompt", PROMPTS)
    def test_last_logits_of_the_engine(self, model, prompt):
        ids, engine = model.prompts[prompt]["ids"], model.lm.engine
        slot = engine.open()
        engine.step([Row(slot, tuple(ids[:-1]), draw=False)])
        logits = engine.logits(slot, ids[-1:])[0]
        engine.close(slot)
        expected = model.logits[prompt]
        assert np.abs(logits.numpy()[model.ids] - expected).max() <= 1e-4 * np.abs(expected).max()

    @pytest.mark.parametrize("prompt", PROMPTS)
    def test_mean_log_probability_of_the_prompt(self, model, prompt):
        expected = model.prompts[prompt]
        if model.lm.family.expressive and len(model.ids) < model.lm.family.vocabulary.rows:
            pytest.skip("of this model's output head the repository holds a part (data/shrink_golden.py)")
        scores = model.lm.logprobs("", expected["prompt"])
        assert len(scores.tokens) == len(expected["ids"]) - 1
        assert scores.mean == pytest.approx(expected["mean_logprob"], rel=1e-4)

    @pytest.mark.parametrize("prompt", CONTINUED)
    @pytest.mark.parametrize("output", MODALITIES)
    def test_greedy_continuation(self, model, prompt, output):
        expected = model.prompts[prompt]
        out = model.lm.generate(expected["prompt"], output, GREEDY, max_new_tokens=24)
        assert out.ids == expected[f"greedy_{output.upper()}"]
        assert out.prompt_ids == expected["ids"] and out.finish == "length"


@pytest.fixture(scope="module", params=CLIPS)
def clip(request) -> tuple[Path, dict, dict[str, np.ndarray]]:
    """A recording, its units and token strings, and its waveforms."""
    in_repository = request.param != CLIPS[-1]
    root: Path = request.getfixturevalue("golden" if in_repository else "whole_golden")
    units = json.loads((root / "expected" / "units.json").read_text())[request.param]
    arrays = dict(np.load(root / "expected" / f"{request.param}.npz"))
    return root / "audio" / f"{request.param}.flac", units, arrays


@pytest.fixture(scope="module", params=["base", "expressive"])
def family(request) -> tuple[str, SpiritLM]:
    return request.param, request.getfixturevalue(f"{request.param}_lm")


class TestSpeech:
    def test_encode(self, family, clip):
        (name, lm), (file, expected, arrays) = family, clip
        units = lm.encode(file)
        codes = {kind: getattr(units, kind) for kind in ("hubert", "pitch", "style")}
        raw = {kind: tuple(map(int, string.split())) for kind, string in expected[f"units_{name}"].items()}
        differs = np.flatnonzero(np.not_equal(codes.pop("hubert"), raw.pop("hubert")))
        assert all(arrays["unit_margin"][i] <= 1e-3 for i in differs)
        assert codes == {"pitch": None, "style": None} | raw
        if not len(differs):
            assert format_speech(merge(units)) == expected[f"string_{name}"]

    def test_decode_tokens(self, family, clip):
        (name, lm), (_, expected, arrays) = family, clip
        sound = lm.decode(expected[f"string_{name}"], speaker=2 if name == "base" else 1)
        waveform = arrays["base_dur" if name == "base" else "expr_dur"]
        assert sound.rate == 16000 and sound.tokens == expected[f"string_{name}"]
        assert sound.array.shape == waveform.shape and np.abs(sound.array - waveform).max() <= 1e-4

    def test_decode_raw_frames(self, family, clip):
        (name, lm), (_, expected, arrays) = family, clip
        units = Units(**{kind: list(map(int, s.split())) for kind, s in expected[f"units_{name}"].items()})
        sound = lm.decode(units, speaker=2)
        waveform = arrays["base_nodur" if name == "base" else "expr_resyn"]
        assert sound.tokens == expected[f"string_{name}"]
        assert sound.array.shape == waveform.shape and np.abs(sound.array - waveform).max() <= 1e-4
