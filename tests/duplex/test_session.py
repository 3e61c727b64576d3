"""One conversation: turns, replies, interruptions, and what the model's context holds of them."""

import numpy as np
import pytest

import spiritrt
from spiritrt.duplex.session import Event, Session, SessionConfig
from spiritrt.duplex.talk import Conversation, Line, render, shipped_lines
from spiritrt.duplex.turns import TurnConfig
from spiritrt.tokens.vocabulary import EOS

PACKET = 320


class Rig:
    """A session with all the computing time it wants, and a loudspeaker that plays as the microphone runs."""

    def __init__(self, nano: spiritrt.SpiritLM, **config: object) -> None:
        self.events: list[Event] = []
        self.session = Session(nano.family, SessionConfig(**config), self.on_event)  # type: ignore[arg-type]
        self.sound: list[np.ndarray] = []  # of the last reply
        self.played = 0

    def on_event(self, event: Event) -> None:
        self.events.append(event)
        if event.kind == "speech_stopped":
            self.sound, self.played = [], 0

    def hear(self, samples: np.ndarray) -> None:
        for start in range(0, len(samples), PACKET):
            if self.session.speaking:
                self.played = min(self.played + PACKET, sum(map(len, self.sound)))
                self.session.played(self.played)
            self.session.accept(samples[start : start + PACKET])
            while (sound := self.session.step()) is not None:
                self.sound.append(sound)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]

    @property
    def ids(self) -> list[int]:
        return self.session._decoder.ids


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    """A human sentence of 2.5 s, from the shipped recording."""
    return shipped_lines()[0].samples[: int(2.5 * 16000)]


def _silence(seconds: float) -> np.ndarray:
    return np.zeros(int(16000 * seconds), np.float32)


def test_a_turn_is_heard_answered_and_closed(nano: spiritrt.SpiritLM, clip: np.ndarray) -> None:
    rig = Rig(nano, max_reply_s=3.0)
    rig.hear(np.concatenate([_silence(0.3), clip, _silence(6.0)]))
    assert rig.kinds() == ["speech_started", "speech_stopped", "heard", "reply_text", "reply_done"]
    assert rig.ids[-1] == EOS
    vocabulary = nano.family.vocabulary
    turn = nano.family.tokenizer.decode(rig.ids)
    assert turn.startswith("[Speech][Hu")
    assert turn.count("[Text]") == 1 and turn.count("[Speech]") == 2
    assert vocabulary.text_marker in rig.ids


def test_silence_and_noise_below_the_threshold_begin_nothing(nano: spiritrt.SpiritLM) -> None:
    rig = Rig(nano)
    noise = 1e-3 * np.random.default_rng(0).standard_normal(32000)
    rig.hear(np.concatenate([_silence(1), noise.astype(np.float32), _silence(1)]))
    assert rig.events == [] and not rig.session.speaking


def test_an_interruption_leaves_in_the_context_what_was_heard(nano: spiritrt.SpiritLM, clip: np.ndarray) -> None:
    rig = Rig(nano, max_reply_s=8.0)
    rig.hear(np.concatenate([clip, _silence(1.2)]))
    assert rig.session.speaking
    reply = rig.session._reply
    assert reply is not None
    start = reply._speech_start
    rig.hear(clip[8000:16000])
    interrupted = next(event for event in rig.events if event.kind == "interrupted")
    assert 0 < interrupted.value == rig.played
    heard = reply._sound.heard_tokens(interrupted.value)
    cut = start + heard
    assert rig.ids[cut] == EOS
    assert rig.ids[cut + 1] == nano.family.vocabulary.speech_marker
    made = sum(map(len, rig.sound))
    assert heard < reply._sound.heard_tokens(made), "more was made than was heard"


def test_an_interruption_before_the_first_sound_takes_the_reply_text_out(
    nano: spiritrt.SpiritLM, clip: np.ndarray
) -> None:
    rig = Rig(nano)
    session = rig.session
    for start in range(0, len(clip) + 12000, PACKET):
        packet = clip[start : start + PACKET]
        session.accept(np.pad(packet, (0, PACKET - len(packet))))
        if not session.speaking:
            session.step()
    assert session.speaking
    while nano.family.vocabulary.text_marker not in rig.ids:
        session.step()
    turn = rig.ids.index(nano.family.vocabulary.text_marker)
    session.step()
    session.accept(clip[8000:16000])
    assert rig.kinds()[-2:] == ["interrupted", "speech_started"]
    assert rig.ids[turn:] == [EOS, nano.family.vocabulary.speech_marker]


@pytest.mark.parametrize("packets_a_step", [1, 7, 1000])
def test_the_context_depends_on_the_sound_and_not_on_packets_or_time(
    nano: spiritrt.SpiritLM, clip: np.ndarray, packets_a_step: int
) -> None:
    def converse(size: int, every: int) -> list[int]:
        session = Session(nano.family, SessionConfig(max_reply_s=2.0), lambda event: None)
        sound = np.concatenate([_silence(0.3), clip, _silence(0.7)])
        for number, start in enumerate(range(0, len(sound), size)):
            session.accept(sound[start : start + size])
            if number % every == 0:
                session.step()
        while session.step() is not None:
            pass
        return session._decoder.ids

    assert converse(777, packets_a_step) == converse(320, 1)


def test_bad_samples_are_refused_and_lose_nothing(nano: spiritrt.SpiritLM) -> None:
    rig = Rig(nano)
    bad = np.zeros(320, np.float32)
    bad[7] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity, the first at 7"):
        rig.session.accept(bad)
    with pytest.raises(ValueError, match=r"float32 \[N\], got float64"):
        rig.session.accept(np.zeros(320))
    assert rig.session.clock == 0
    rig.session.accept(np.zeros(320, np.float32))
    assert rig.session.clock == 320


def test_a_long_call_starts_its_context_anew(nano: spiritrt.SpiritLM, clip: np.ndarray) -> None:
    rig = Rig(nano, max_reply_s=1.0, max_text_tokens=10)
    context = nano.family.llama.config.max_position_embeddings
    rig.session._decoder.append([nano.family.vocabulary.first_unit] * (context // 2))
    rig.hear(np.concatenate([clip, _silence(3)]))
    reset = next(event for event in rig.events if event.kind == "context_reset")
    assert reset.value == context // 2
    assert rig.kinds()[-1] == "reply_done"


def test_a_turn_that_never_ends_is_ended_and_answered(nano: spiritrt.SpiritLM) -> None:
    rig = Rig(nano, max_reply_s=1.0, turns=TurnConfig(max_turn_s=1.0))
    rig.hear((0.1 * np.random.default_rng(0).standard_normal(16000 + 3200)).astype(np.float32))
    assert rig.kinds()[:2] == ["speech_started", "speech_stopped"]
    assert "interrupted" not in rig.kinds(), "the same speech does not cut off its own reply at once"


def test_a_turn_that_fills_the_context_ends_there_and_is_answered(nano: spiritrt.SpiritLM, clip: np.ndarray) -> None:
    rig = Rig(nano, max_reply_s=1.0, turns=TurnConfig(max_turn_s=60.0))
    context = nano.family.llama.config.max_position_embeddings
    rig.session._decoder.append([nano.family.vocabulary.first_unit] * (context // 2 - 1))
    rig.session._reply_room = context // 2 - 40  # as if the context were a hundred tokens long
    rig.hear(np.concatenate([np.tile(clip[:32000], 5), _silence(4)]))
    assert rig.kinds()[:2] == ["speech_started", "speech_stopped"]
    assert rig.events[1].at < 5 * 32000, "the turn ended before the person did"
    assert "reply_text" in rig.kinds()


def test_a_reply_cut_by_its_length_leaves_only_what_sounded(nano: spiritrt.SpiritLM, clip: np.ndarray) -> None:
    rig = Rig(nano, max_reply_s=1.0, sampling=spiritrt.Sampling(temperature=1.5, top_p=1.0, seed=1))
    rig.hear(np.concatenate([clip, _silence(1.0)]))
    reply = rig.session._reply
    assert reply is not None
    rig.hear(_silence(6.0))
    done = rig.events[-1]
    assert done.kind == "reply_done" and done.value == sum(map(len, rig.sound))
    assert rig.ids[-1] == EOS
    assert reply._speech_start + reply._sound.heard_tokens(done.value) == len(rig.ids) - 1


def test_other_models_continue_in_speech(nano: spiritrt.SpiritLM, clip: np.ndarray) -> None:
    rig = Rig(nano, reply="continuation", max_reply_s=1.0)
    rig.hear(np.concatenate([clip, _silence(4)]))
    assert rig.kinds() == ["speech_started", "speech_stopped", "reply_done"]
    assert nano.family.vocabulary.text_marker not in rig.ids


def test_a_conversation_reports_turns_interruptions_and_sound(nano: spiritrt.SpiritLM, clip: np.ndarray) -> None:
    lines = [Line("first", clip), Line("second", clip, interrupt_s=0.4)]
    config = SessionConfig(max_reply_s=4.0)
    report = Conversation(nano.family, config, lines, real_time=False).run()
    first, second = report.turns[0], report.turns[-1]
    assert first.finish == "interrupted" and first.reply_s is not None and first.reply_s >= 0.4
    assert first.interrupted_ms is not None and first.interrupted_ms <= 400
    assert second.finish and second.first_audio_ms is not None
    assert report.stereo.shape == (round(report.seconds * 16000), 2)
    assert np.abs(report.stereo[:, 1]).max() > 0.01, "the model is heard"
    assert "silent" in render(report, spiritrt.audio.Path("x.wav"))
    again = Conversation(nano.family, config, lines, real_time=False).run()
    np.testing.assert_array_equal(report.stereo, again.stereo)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"reply": "shout"}, "reply must be 'chain' or 'continuation', got 'shout'"),
        ({"lead_ms": 10}, "lead_ms must be at least 100"),
        ({"max_reply_s": 0}, "max_reply_s and max_text_tokens positive"),
    ],
)
def test_session_settings_are_checked(config: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SessionConfig(**config)
