"""What goes into a prompt: sound of any kind, tokens and text, and what each mistake in them is told."""

import re
import warnings

import numpy as np
import pytest
import soundfile
import torch

import spiritrt
from spiritrt import GREEDY, Speech, SpiritLM, Text
from spiritrt.tokens.units import merge
from spiritrt.tokens.vocabulary import format_speech


@pytest.fixture(scope="module", params=["base", "expressive"])
def lm(request) -> SpiritLM:
    return request.getfixturevalue(f"{request.param}_lm")


@pytest.fixture(scope="module")
def recording(golden) -> np.ndarray:
    return soundfile.read(golden / "audio" / "odd_length.flac", dtype="float32")[0]


class TestSoundIn:
    def test_a_recording_is_what_its_tokens_are(self, lm, recording):
        tokens = format_speech(merge(lm.encode(recording)))
        with_sound = lm.generate([Speech(recording)], "text", GREEDY, 3)
        assert with_sound.prompt_ids == lm.generate([Speech(tokens=tokens)], "text", GREEDY, 3).prompt_ids
        assert lm.decode(lm.encode(recording)).tokens == tokens

    @pytest.mark.parametrize("kind", ["path", "tensor", "int16", "speech"])
    def test_kinds_of_source(self, lm, recording, golden, kind):
        file = golden / "audio" / "odd_length.flac"
        sources = {"path": file, "tensor": torch.from_numpy(recording), "speech": Speech(str(file))}
        sources["int16"] = soundfile.read(file, dtype="int16")[0]
        assert lm.encode(sources[kind]) == lm.encode(recording)

    @pytest.mark.parametrize("rate", [8000, 24000, 44100, 48000])
    def test_other_rates_give_as_many_units(self, base_lm, recording, rate):
        other = spiritrt.audio.resample(recording, 16000, rate)
        units, same = base_lm.encode(other, rate).hubert, base_lm.encode(recording).hubert
        assert len(units) == len(same)
        if rate > 16000:
            assert sum(a == b for a, b in zip(units, same, strict=True)) > 0.5 * len(same)

    def test_stereo(self, base_lm, recording):
        stereo = np.stack([recording, -recording, recording], axis=1)
        with pytest.warns(UserWarning, match="audio: 3 channels are averaged; choose one with channel=N"):
            base_lm.generate([Speech(stereo)], "text", GREEDY, 1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            chosen = base_lm.encode(stereo, channel=2)
            assert chosen == base_lm.encode(Speech(stereo), channel=0) == base_lm.encode(Speech(stereo, channel=2))

    @pytest.mark.parametrize(
        ("samples", "message"),
        [
            (np.zeros(0, np.float32), "holds no samples"),
            (np.zeros(160, np.float32), r"waveform of 160 samples is too short: at least 1280 are needed \(80 ms"),
            (np.full(16000, np.nan, np.float32), "has 16000 NaN or infinite samples, the first at 0"),
        ],
        ids=["empty", "10 ms", "NaN"],
    )
    def test_what_cannot_be_heard(self, lm, samples, message):
        with pytest.raises(ValueError, match=message):
            lm.encode(samples)
        with pytest.raises(ValueError, match=message):
            lm.generate([Speech(samples)], "text", GREEDY, 1)

    def test_silence_is_heard_as_silence(self, lm):
        units = lm.encode(np.zeros(16000, np.float32))
        assert len(units.hubert) == 24 and set(units.hubert) <= lm.family.silence
        assert lm.generate([Speech(np.zeros(16000, np.float32))], "text", GREEDY, 1).ids

    def test_the_shortest_sound(self, lm):
        assert len(lm.encode(np.random.default_rng(0).standard_normal(1280).astype(np.float32)).hubert) == 1


class TestUnknown:
    @pytest.mark.parametrize("tokens", ["[Hu501]", "[Pi64]", "[St100]"])
    def test_tokens_are_named(self, lm, tokens):
        for ask in (lambda: lm.generate([Speech(tokens=tokens)], "text"), lambda: lm.decode(tokens)):
            with pytest.raises(ValueError, match=f"unknown token \\{tokens[:-1]}\\]: this model has"):
                ask()

    def test_pitch_in_base(self, base_lm):
        with pytest.raises(ValueError, match=r"unknown token \[Pi1\]: this model has no Pi tokens"):
            base_lm.generate([Speech(tokens="[Pi1][Hu1]")], "text")
        with pytest.raises(ValueError, match=r"unknown token \[Pi1\]: this model has no Pi tokens"):
            base_lm.generate("[Speech][Pi1][Hu1]", "text")

    @pytest.mark.parametrize(
        ("prompt", "token"),
        [
            ("[Hu600]", "[Hu600]"),
            ("[Speech][Hu99][Hu501]", "[Hu501]"),
            ("[Text]so [St-1]", "[St-1]"),
            ("[Hu007]", "[Hu007]"),
            ("[Pi64][Hu1]", "[Pi64]"),
        ],
    )
    def test_tokens_in_a_prompt_string_are_named(self, lm, prompt, token):
        for ask in (lambda: lm.generate(prompt, "text"), lambda: lm.logprobs(prompt, " so")):
            with pytest.raises(ValueError, match=rf"unknown token {re.escape(token)}: this model has .*Text item"):
                ask()

    @pytest.mark.parametrize(
        "prompt", ["[Text] see [1]", "[Text][hu] [Hubert Humphrey] Hu600 [Hu", "[Stop] the train [Hux]"]
    )
    def test_a_prompt_string_with_other_brackets_is_text(self, lm, prompt):
        assert lm.generate(prompt, "text", GREEDY, 1).prompt_ids == lm.family.tokenizer.encode(prompt)

    @pytest.mark.parametrize("tokens", ["hello", "[Hu1] and", "[Text]", "[Hu01]"])
    def test_what_is_no_speech_token(self, lm, tokens):
        with pytest.raises(ValueError, match="not a speech token at character"):
            lm.generate([Speech(tokens=tokens)], "text")

    @pytest.mark.parametrize("text", ["see [Hu1]", "[Text]", "a[Speech]b"])
    def test_text_is_literal_so_tokens_in_it_are_a_mistake(self, lm, text):
        with pytest.raises(
            ValueError, match=r"Text holds the token \[.*; use Speech\(tokens=...\) for speech, or give"
        ):
            lm.generate([Text(text)], "text")

    def test_text_that_only_looks_like_tokens_is_fine(self, lm):
        assert lm.generate([Text("see [1] and [Hu9999]")], "text", GREEDY, 1).ids

    @pytest.mark.parametrize("item", ["hello", None, 7])
    def test_prompt_items_are_text_and_speech(self, lm, item):
        with pytest.raises(ValueError, match=f"a prompt holds Text and Speech, got {type(item).__name__}"):
            lm.generate([Text("a"), item], "text")

    def test_speech_needs_something(self, lm):
        with pytest.raises(ValueError, match="Speech needs samples"):
            Speech()
        with pytest.raises(ValueError, match="holds tokens only; there is no sound to encode"):
            lm.encode(Speech(tokens="[Hu1]"))
        with pytest.raises(ValueError, match="this Speech holds no mono float32 array"):
            _ = Speech("q.wav").seconds
