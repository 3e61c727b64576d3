from collections.abc import Callable
from dataclasses import replace
from itertools import cycle

import numpy as np
import pytest
import torch

from spiritrt import GREEDY, Sampling, Speech, SpiritLM, Stop, Text, Units
from spiritrt.engine.engine import Engine
from spiritrt.engine.steps import Step
from spiritrt.tokens.vocabulary import EOS, parse_speech

SPEECH = "[Hu409][Hu367][Hu406][Hu150][Hu304]"
EXPRESSIVE_SPEECH = "[St32][Pi21][Hu409][Hu367][Pi13][Hu406]"
MIXED = [Speech(tokens=SPEECH), Text(" so he said")]
NO_STOP = Stop(repeats=0)


def units(count: int) -> str:
    return "".join(f"[Hu{i}]" for i in range(count))


@pytest.fixture(scope="module", params=["base", "expressive"])
def lm(request) -> SpiritLM:
    return request.getfixturevalue(f"{request.param}_lm")


@pytest.fixture
def says(monkeypatch) -> Callable[[SpiritLM, str], None]:
    """Makes a model say a string, whatever it thinks of it, and then end; again and again."""

    def say(lm: SpiritLM, string: str) -> None:
        ids = cycle([*lm.family.tokenizer.encode(f"[Text]{string}", bos=False)[2:], EOS])
        monkeypatch.setattr(Step, "ids", property(lambda step: [next(ids)]))

    return say


class TestOutputs:
    def test_text(self, lm):
        out = lm.generate(MIXED, "text", Sampling(seed=1), max_new_tokens=12)
        assert [type(item) for item in out] == [Text] and out.text == out.raw == out[0].text
        assert len(out.ids) == len(out.logprobs) == 12 and max(out.ids) < 32000
        assert out.finish == "length" and out.samples.shape == (0,)

    def test_speech(self, lm):
        out = lm.generate(MIXED, "speech", Sampling(seed=1), max_new_tokens=12)
        assert [type(item) for item in out] == [Speech] and out.text == ""
        assert out[0].tokens == out.raw and len(parse_speech(out.raw)) == 12
        alone = lm.decode(out.raw, seed=1)
        np.testing.assert_array_equal(out.samples, alone.array)  # the prompt ended in text
        assert out[0].rate == 16000 and out[0].seconds == len(out.samples) / 16000 > 0.1

    @pytest.mark.parametrize(
        ("raw", "items"),
        [
            (f" so{units(23)}[Text] on[Speech]{units(24)}", [" so", " on", units(24)]),
            (f"{units(2)}[Text] so", [units(2), " so"]),
            (f"[Speech]{units(30)}[Text]", [units(30)]),
            ("[Text] see [1]", [" see [1]"]),
        ],
    )
    def test_arbitrary(self, lm, says, raw, items):
        """Text and speech in the order of the output, without markers; short speech within it is left out."""
        says(lm, raw)
        out = lm.generate(MIXED, "arbitrary")
        assert out.raw == raw and out.finish == "end"
        assert [item.text if isinstance(item, Text) else item.tokens for item in out] == items
        assert all(len(item.array) >= 640 * item.tokens.count("Hu") for item in out if isinstance(item, Speech))

    @pytest.mark.parametrize("output", ["text", "speech"])
    def test_banned_ids_never_come(self, lm, output):
        allowed = lm.family.vocabulary.allowed(output)
        for seed in range(5):
            rule = Sampling(temperature=3.0, top_p=1.0, seed=seed)
            assert allowed[lm.generate("[Text]hello", output, rule, max_new_tokens=20).ids].all()

    def test_suppressed_tokens_never_come(self, lm):
        plain = lm.generate("[Text]hello", "text", GREEDY, 8).ids
        others = lm.generate("[Text]hello", "text", GREEDY, 8, suppress_tokens=plain)
        assert len(others.ids) == 8 and not set(others.ids) & set(plain)
        text = [i for i, allowed in enumerate(lm.family.vocabulary.allowed("text")) if allowed]
        with pytest.raises(ValueError, match="leaves no token"):
            lm.generate("[Text]hello", "text", GREEDY, 8, suppress_tokens=text)
        with pytest.raises(ValueError, match="suppress_tokens must be from 0"):
            lm.generate("[Text]hello", "text", GREEDY, 8, suppress_tokens=[-1])

    def test_prompt_string_is_used_as_it_is(self, lm):
        string = f"[Speech]{SPEECH}[Text] so he said"
        out = lm.generate(string, "text", GREEDY, 4)
        assert out.prompt_ids == lm.family.tokenizer.encode(string)
        assert out.ids == lm.generate(MIXED, "text", GREEDY, 4).ids
        assert lm.generate(string, "speech", GREEDY, 4).prompt_ids == out.prompt_ids

    def test_markers_are_put_where_the_modality_changes(self, lm):
        strings = [
            lm.prompt_string([*MIXED, Text(" that"), Speech(tokens=SPEECH)], output) for output in ("text", "speech")
        ]
        assert strings[1] == f"[Speech]{SPEECH}[Text] so he said that[Speech]{SPEECH}"
        assert strings[0] == f"{strings[1]}[Text]"

    def test_an_empty_prompt(self, lm):
        assert lm.generate([], "text", GREEDY, 2).prompt_ids == lm.family.tokenizer.encode("[Text]")
        assert lm.generate("", "text", GREEDY, 2).prompt_ids == [1]

    @pytest.mark.parametrize("prompt", [MIXED, "[Text]hi"])
    def test_unknown_output(self, lm, prompt):
        with pytest.raises(ValueError, match="output must be one of text, speech, arbitrary, got 'video'"):
            lm.generate(prompt, "video")

    @pytest.mark.parametrize(
        ("voice", "message"), [({"speaker": 4}, "speaker 4 is out of range"), ({"style": 99}, "style 99")]
    )
    def test_unknown_voice(self, lm, voice, message):
        with pytest.raises(ValueError, match=message):
            lm.generate("[Speech]", "speech", GREEDY, 2, **voice)

    def test_voices_sound_different(self, lm):
        sounds = [lm.generate("[Speech]", "speech", GREEDY, 4, speaker=speaker).samples for speaker in (None, 2, 1)]
        np.testing.assert_array_equal(sounds[0], sounds[1])
        assert not np.array_equal(sounds[1], sounds[2])


class TestExpressive:
    @pytest.mark.parametrize("tokens", ["[Hu1][Hu2]", "[St5][Hu1][Hu2]", "[Pi5][Hu1][Hu2]", "[Pi5]", ""])
    def test_any_output_can_be_heard(self, expressive_lm, tokens):
        """A model may well say units without a pitch or a style."""
        sound = expressive_lm.decode(tokens)
        assert np.isfinite(sound.array).all() and bool(len(sound.array)) == ("Hu" in tokens)

    def test_output_without_a_pitch(self, expressive_lm):
        out = expressive_lm.generate("[Speech]", "speech", GREEDY, 1)
        assert "Pi" not in out.raw and len(out.samples) >= 640

    def test_raw_frames_need_all_streams(self, expressive_lm):
        with pytest.raises(ValueError, match="needs pitch codes to make speech, and these units have none"):
            expressive_lm.decode(Units((1, 2)))

    def test_style_where_there_is_none_is_drawn_by_the_seed(self, expressive_lm):
        sounds = [expressive_lm.decode("[Pi5][Hu1][Hu2]", seed=seed).array for seed in (1, 1, 2, 3, 4, 5)]
        np.testing.assert_array_equal(sounds[0], sounds[1])
        assert any(not np.array_equal(sounds[0], sound) for sound in sounds[2:])

    def test_style_is_drawn_by_the_seed_of_the_sampling(self, expressive_lm, says):
        says(expressive_lm, "[Pi5][Hu1][Hu2]")
        for seed in range(5):
            out = expressive_lm.generate("[Speech]", "speech", Sampling(seed=seed))
            np.testing.assert_array_equal(out.samples, expressive_lm.decode("[Pi5][Hu1][Hu2]", seed=seed).array)


class TestJointSound:
    @pytest.mark.parametrize("output", ["speech", "arbitrary"])
    def test_prompt_and_output_are_vocoded_together_and_cut_at_the_sample(self, lm, says, output):
        before = EXPRESSIVE_SPEECH if lm.family.expressive else SPEECH
        says(lm, "[Hu130][Hu62][Hu423]")
        out = lm.generate([Speech(tokens=before)], output)
        whole = lm.decode(before + "[Hu130][Hu62][Hu423]").array
        _, lengths = lm.family.vocode(parse_speech(before + "[Hu130][Hu62][Hu423]"))
        np.testing.assert_array_equal(out.samples, whole[sum(lengths[: before.count("Hu")]) :])
        assert not np.array_equal(out.samples, lm.decode("[Hu130][Hu62][Hu423]").array)

    def test_pitch_and_style_of_the_prompt_go_on(self, expressive_lm, says):
        says(expressive_lm, "[Hu130][Hu62]")
        sounds = [
            expressive_lm.generate([Speech(tokens=f"[St{style}][Pi21][Hu409]")], "speech").samples
            for style in (1, 1, 2)
        ]
        np.testing.assert_array_equal(sounds[0], sounds[1])
        assert not np.array_equal(sounds[0], sounds[2])

    def test_speech_within_the_output_is_vocoded_alone(self, lm, says):
        says(lm, f" so[Speech]{units(24)}")
        out = lm.generate([Speech(tokens=SPEECH)], "arbitrary")
        np.testing.assert_array_equal(out.samples, lm.decode(units(24)).array)

    @pytest.mark.parametrize("end", ["[Text]so[Speech]", "[Text]"])
    def test_speech_after_text_is_vocoded_alone(self, lm, says, end):
        says(lm, "[Hu130][Hu62]")
        out = lm.generate(f"[Speech]{SPEECH}{end}", "arbitrary")
        np.testing.assert_array_equal(out.samples, lm.decode("[Hu130][Hu62]").array)


class TestStop:
    def test_output_that_never_stops_ends_at_the_limit(self, stuck_lm):
        out = stuck_lm.generate("[Speech]", "speech", GREEDY, 20, NO_STOP)
        assert (out.finish, out.raw) == ("length", "[Hu0]" * 20)

    def test_or_at_the_context(self, stuck_lm):
        for text in ("", " word" * 40, " word" * 60):
            out = stuck_lm.generate(f"[Text]{text}", "text", GREEDY, 10**9, NO_STOP)
            assert out.finish == "context"
            assert len(out.prompt_ids) + len(out.ids) == 64 + 1  # the last token fits without being read

    def test_or_where_it_repeats_itself(self, stuck_lm):
        out = stuck_lm.generate("[Speech]", "speech", GREEDY, 10**9)
        assert (out.finish, len(out.ids)) == ("repetition", 32)
        out = stuck_lm.generate("[Speech]", "speech", GREEDY, 10**9, Stop(repeats=3, repeated_tokens=5))
        assert (out.finish, len(out.ids)) == ("repetition", 5)

    @pytest.mark.parametrize("output", ["text", "speech"])
    def test_end_tokens_are_no_part_of_the_output(self, lm, output):
        ids = lm.generate("[Text]hello", output, GREEDY, 12).ids
        stop = Stop(ids=(ids[7], 31999))
        out = lm.generate("[Text]hello", output, GREEDY, 12, stop)
        assert out.finish == "end" and out.ids == ids[: ids.index(ids[7])]
        assert len(out.logprobs) == len(out.ids)

    def test_end_tokens_pass_in_speech_only_where_asked(self, stuck_lm):
        """All are equally likely, and greedy takes the lowest id that may come: EOS, then."""
        prompt = "[Speech][Hu5]"
        assert stuck_lm.generate(prompt, "speech", GREEDY, 3).raw == "[Hu0]" * 3
        for ends in (Stop(ids_in_speech=True), Stop(ids=(7,), ids_in_speech=True)):
            out = stuck_lm.generate(prompt, "speech", GREEDY, 3, ends)
            assert (out.finish, out.ids, list(out)) == ("end", [], [])

    def test_end_tokens_pass_in_speech_of_a_model_that_is_trained_so(self, stuck_lm, monkeypatch):
        monkeypatch.setattr(stuck_lm.family, "checkpoint", replace(stuck_lm.family.checkpoint, reply="chain"))
        assert stuck_lm.generate("[Speech]", "speech", GREEDY, 3).finish == "end"
        assert stuck_lm.generate("[Speech]", "speech", GREEDY, 3, Stop(ids_in_speech=False)).finish == "length"

    def test_a_string_alone_is_no_stop(self, base_lm):
        with pytest.raises(ValueError, match=r"stop must be a Stop, such as .*, got 'x'"):
            base_lm.generate("[Text]hello", "text", stop="x")

    def test_strings_cut_the_text(self, lm):
        whole = lm.generate("[Text]hello", "text", GREEDY, 12)
        at = len(whole.raw) // 2
        string = whole.raw[at : at + 4]
        out = lm.generate("[Text]hello", "text", GREEDY, 12, Stop(strings=("never said", string)))
        assert out.finish == "string" and out.text == out.raw == whole.raw[: whole.raw.index(string)]
        assert out.ids == whole.ids[: len(out.ids)] and len(out.ids) < 12

    @pytest.mark.parametrize("prompt", ["[Text]hello", "[Speech][Hu1][Text]", "[Text]"])
    @pytest.mark.parametrize(
        ("said", "string", "kept", "tokens"),
        [(" and so on", " and", "", 1), (" and so on", " so", " and", 2), (" and so on", "d so o", " an", 3)],
    )
    def test_strings_that_begin_with_a_space(self, lm, says, prompt, said, string, kept, tokens):
        says(lm, said)
        out = lm.generate(prompt, "text", stop=Stop(strings=(string,)))
        assert (out.finish, out.raw, len(out.ids)) == ("string", kept, tokens)

    def test_a_string_far_into_a_long_output(self, lm, says):
        says(lm, " and so on" * 30 + "<END> more")
        out = lm.generate("[Text]", "text", stop=Stop(strings=("<END>",), repeats=0))
        assert out.finish == "string" and out.text == " and so on" * 30

    def test_silence_after_sound(self, base_lm, says):
        """As soon as the units that silence has last so long in all, by the durations that they will have."""
        silent = min(base_lm.family.silence)

        def seconds(count: int) -> float:
            return sum(base_lm.family.durations(Units([130, 62, *[silent] * count]))[2:]) * 0.04

        says(base_lm, "[Hu130][Hu62]" + f"[Hu{silent}]" * 30)
        out = base_lm.generate("[Speech]", "speech", stop=Stop(silence_s=seconds(7)))
        assert out.finish == "silence" and seconds(len(out.ids) - 2) >= seconds(7) > seconds(len(out.ids) - 3)
        assert base_lm.generate("[Speech]", "speech").finish == "end"

    def test_silence_before_any_sound_is_a_pause_for_breath(self, base_lm, says):
        says(base_lm, f"[Hu{min(base_lm.family.silence)}]" * 30)
        assert base_lm.generate("[Speech]", "speech", stop=Stop(silence_s=0.04)).finish == "end"

    @pytest.mark.parametrize("count", [0, -5, 2.5])
    def test_no_tokens_at_all(self, stuck_lm, count):
        with pytest.raises(ValueError, match=f"max_new_tokens must be a whole number from 1, got {count}"):
            stuck_lm.generate("hi", "text", max_new_tokens=count)

    def test_a_prompt_over_the_context(self, stuck_lm):
        assert len(stuck_lm.generate("[Speech]" + "[Hu1]" * 60, "speech", GREEDY, 1).ids) == 1  # and BOS, and a space
        for count in (61, 200):
            message = f"the prompt has {count + 3} tokens and the model's context is 64; shorten it"
            with pytest.raises(ValueError, match=message):
                stuck_lm.generate("[Speech]" + "[Hu1]" * count, "speech", GREEDY, 1)


class TestDeterminism:
    RULE = Sampling(temperature=1.0, top_p=0.95, seed=3)

    def test_same_seed_same_output(self, lm):
        one, two, other = (
            lm.generate(MIXED, "speech", rule, 10) for rule in (self.RULE, self.RULE, Sampling(1.0, 0.95, seed=4))
        )
        assert (one.ids, one.logprobs) == (two.ids, two.logprobs) and one.ids != other.ids
        np.testing.assert_array_equal(one.samples, two.samples)

    def test_a_batch_is_what_each_is_alone_bit_for_bit(self, lm):
        prompts = [
            MIXED,
            "[Text]hello",
            [Speech(tokens=SPEECH)],
            "[Speech]",
            "",
            f"[Speech]{units(300)}",
            "[Text]a",
            [],
        ]
        rules = [self.RULE, GREEDY, Sampling(seed=9), self.RULE] * 2
        batch = lm.generate_batch(prompts, "speech", rules, 6)
        for prompt, rule, out in zip(prompts, rules, batch, strict=True):
            alone = lm.generate(prompt, "speech", rule, 6)
            assert (out.ids, out.logprobs, out.raw, out.finish) == (alone.ids, alone.logprobs, alone.raw, alone.finish)
            np.testing.assert_array_equal(out.samples, alone.samples)

    def test_more_prompts_than_slots_or_pages(self, base_lm, monkeypatch):
        """They wait for each other, and nobody can tell."""
        prompts = [f"[Text]{'a ' * (7 * i % 40)}" for i in range(9)]
        expected = [base_lm.generate(prompt, "text", self.RULE, 2 + i % 4).ids for i, prompt in enumerate(prompts)]
        monkeypatch.setattr(base_lm, "engine", Engine(base_lm.family, slots=3, tokens=112, progress=False))
        for count in range(2, 6):
            batch = base_lm.generate_batch(prompts, "text", self.RULE, count)
            for i, out in enumerate(batch):
                if 2 + i % 4 == count:
                    assert out.ids == expected[i]
        engine = base_lm.engine
        assert engine.free_pages == engine.cache.config.pages

    def test_results_that_arrive_a_step_late(self, lm, monkeypatch):
        """As on CUDA: what was drawn after the end of an output is not part of it."""
        prompts, rules = [MIXED, "[Text]hello", "[Speech]"], [self.RULE, GREEDY, Sampling(seed=9)]
        stop = Stop(ids=(2, *range(100, 2000, 3)))
        at_once = lm.generate_batch(prompts, "text", rules, 10, stop)
        monkeypatch.setattr(lm.engine, "late", True)
        late = lm.generate_batch(prompts, "text", rules, 10, stop)
        assert [(out.ids, out.logprobs, out.finish) for out in late] == [
            (out.ids, out.logprobs, out.finish) for out in at_once
        ]
        assert lm.engine.free_pages == lm.engine.cache.config.pages

    def test_an_error_gives_all_slots_back(self, base_lm, monkeypatch):
        monkeypatch.setattr(Step, "ids", property(lambda step: 1 / 0))
        with pytest.raises(ZeroDivisionError):
            base_lm.generate_batch(["[Text]a", "[Text]b"], "text", self.RULE, 3)
        account = base_lm.engine.cache.account
        assert account.free_slots == account.slots and account.free_pages == account.pages

    def test_one_sampling_serves_a_batch(self, base_lm):
        batch = base_lm.generate_batch(["[Text]a", "[Text]b"], "text", self.RULE, 3)
        assert [out.ids for out in batch] == [
            base_lm.generate(p, "text", self.RULE, 3).ids for p in ("[Text]a", "[Text]b")
        ]
        with pytest.raises(ValueError, match="3 samplings for 2 prompts; give one, or one a prompt"):
            base_lm.generate_batch(["a", "b"], "text", [GREEDY] * 3)

    def test_log_probabilities_are_those_of_the_model(self, lm):
        out = lm.generate("[Text]hello", "text", self.RULE, 5)
        with torch.inference_mode():
            logits = lm.family.llama(torch.tensor([out.prompt_ids + out.ids]))[0]
        rows = torch.log_softmax(logits, -1)[len(out.prompt_ids) - 1 : -1]
        assert out.logprobs == pytest.approx(rows[torch.arange(5), out.ids].tolist(), rel=1e-4)
