"""Many sessions on one set of models: each as if it were alone, whatever happens to the others."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from call_rig import Caller, run

import spiritrt
from spiritrt.audio import Samples
from spiritrt.duplex.call import Call, Full
from spiritrt.duplex.client import PACKET_SAMPLES
from spiritrt.duplex.clock import VirtualClock
from spiritrt.duplex.config import EchoConfig, SessionConfig, TurnConfig
from spiritrt.duplex.costs import Busy, Costs
from spiritrt.duplex.events import Closed, Error, ReplyEnded, SpeechStopped, TextOut
from spiritrt.duplex.scheduler import Scheduler
from spiritrt.duplex.script import shipped_lines
from spiritrt.duplex.stages import Stages, read_prefix
from spiritrt.duplex.turns import Decision
from spiritrt.duplex.work import Feed
from spiritrt.engine.steps import Row, Step

ENERGY = TurnConfig(activity="energy")
"""The cheaper detector: these tests are not about hearing."""


def silence(seconds: float) -> np.ndarray:
    return np.zeros(int(16000 * seconds), np.float32)


@pytest.fixture(scope="module")
def stages(nano: spiritrt.SpiritLM) -> Stages:
    return Stages.load(nano.family, 3)


@pytest.fixture(scope="module")
def question() -> np.ndarray:
    """A question, and silence for its answer."""
    return np.concatenate([silence(0.2), shipped_lines()[0].samples, silence(4.5)])


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def scheduler(stages: Stages, clock: VirtualClock) -> Iterator[Scheduler]:
    """Gives everything back at the end, or the test fails."""
    free = stages.engine.free_pages
    scheduler = Scheduler(stages, clock, admit=False)
    yield scheduler
    for call in list(scheduler.calls.values()):
        scheduler.close(call)
    assert stages.engine.free_pages == free, "all pages are returned"
    assert all(stages.encoder.open() >= 0 for _ in range(4))
    for slot in range(4):
        stages.encoder.free(slot)


def config(seed: int = 0, **settings: object) -> SessionConfig:
    return SessionConfig(reply="chain", seed=seed, turns=ENERGY, max_reply_s=3.0, **settings)  # type: ignore[arg-type]


def open_callers(scheduler: Scheduler, sounds: Sequence[np.ndarray]) -> list[Caller]:
    return [Caller(scheduler.open(config(seed)), sound) for seed, sound in enumerate(sounds)]


def test_sessions_beside_each_other_sound_as_if_alone(
    stages: Stages, scheduler: Scheduler, clock: VirtualClock, question: np.ndarray
) -> None:
    sounds = [question, np.concatenate([silence(0.3), question]), question]
    together = open_callers(scheduler, sounds)
    run(scheduler, clock, together)
    for caller in together:
        assert caller.kinds() == ["SpeechStarted", "SpeechStopped", "ReplyEnded"]
        scheduler.close(caller.call)
    for seed, (caller, sound) in enumerate(zip(together, sounds, strict=True)):
        alone = Caller(scheduler.open(config(seed)), sound)
        run(scheduler, clock, [alone])
        scheduler.close(alone.call)
        np.testing.assert_array_equal(alone.pcm, caller.pcm)
        assert texts(alone) == texts(caller) and len(caller.pcm)
    assert scheduler.costs.piece.count and 0 < scheduler.costs.load(1) < scheduler.costs.load(2)


def test_stages_that_step_in_batches_serve_all(
    nano: spiritrt.SpiritLM, clock: VirtualClock, question: np.ndarray
) -> None:
    scheduler = Scheduler(Stages.load(nano.family, 3, alone=False), clock, admit=False)
    scheduler.warm_up()
    assert scheduler.costs.piece.count and scheduler.costs.unit.count and scheduler.totals.drawn_tokens == 0
    callers = open_callers(scheduler, [question] * 3)
    run(scheduler, clock, callers)
    assert [caller.kinds()[-1] for caller in callers] == ["ReplyEnded"] * 3
    assert all(len(caller.pcm) for caller in callers)


def texts(caller: Caller) -> str:
    return "".join(event.text for event in caller.events if isinstance(event, TextOut))


def test_a_decoder_that_fails_for_one_session_closes_that_one(
    stages: Stages, scheduler: Scheduler, clock: VirtualClock, question: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    callers = open_callers(scheduler, [question] * 3)
    step = stages.engine.step

    def fails(rows: Sequence[Row]) -> Step:
        broken = callers[1].call
        if any(row.slot in (broken.slots.main, broken.slots.draft) and row.ids is None for row in rows):
            raise RuntimeError("injected")
        return step(rows)

    monkeypatch.setattr(stages.engine, "step", fails)
    run(scheduler, clock, callers)
    monkeypatch.undo()
    assert callers[1].events[-2:] == [Error("RuntimeError: injected"), Closed("error")]
    assert [caller.kinds()[-1] for caller in callers] == ["ReplyEnded", "Closed", "ReplyEnded"]
    assert scheduler.errors == 1 and len(scheduler.calls) == 2


@pytest.mark.parametrize("stage", ["encoder", "voices"])
def test_an_encoder_or_vocoder_that_fails_closes_the_session_it_worked_for(
    stages: Stages, scheduler: Scheduler, clock: VirtualClock, question: np.ndarray, monkeypatch: pytest.MonkeyPatch,
    stage: str,
) -> None:  # fmt: skip
    callers = open_callers(scheduler, [question] * 2)
    broken = {"encoder": callers[0].call.encoder_slot, "voices": callers[0].call.voice_slot}[stage]
    owner, name = {"encoder": (stages.encoder, "listen"), "voices": (stages.voices, "speak")}[stage]
    work = getattr(owner, name)

    def fails(batch: Sequence[tuple[int, object]]) -> object:
        if any(slot == broken for slot, _ in batch):
            raise ValueError("injected")
        return work(batch)

    monkeypatch.setattr(owner, name, fails)
    run(scheduler, clock, callers)
    assert [caller.kinds()[-1] for caller in callers] == ["Closed", "ReplyEnded"]
    assert callers[0].events[-2] == Error("ValueError: injected")


def test_a_detector_that_fails_closes_its_session(stages: Stages, clock: VirtualClock, question: np.ndarray) -> None:
    class Deaf:
        window_samples = 320

        def accept(self, window: Samples) -> float:
            raise RuntimeError("no ears")

    scheduler = Scheduler(stages, clock, activity=Deaf)
    caller = Caller(scheduler.open(config()), question)
    run(scheduler, clock, [caller])
    assert caller.events == [Error("RuntimeError: no ears"), Closed("error")] and not scheduler.calls


def test_detectors_of_ones_own_decide(stages: Stages, clock: VirtualClock, question: np.ndarray) -> None:
    class Patient:
        """Ends a turn after a second of windows that are no speech, and never says that it may end."""

        def __init__(self) -> None:
            self.silent = 0

        def reset(self) -> None:
            self.silent = 0

        def accept(self, window: Samples, speech: bool, silence_ms: float) -> Decision:
            assert len(window) == Loud.window_samples
            self.silent = 0 if speech else self.silent + len(window)
            return "end" if self.silent >= 16000 else ""

    class Loud:
        window_samples = 400

        def accept(self, window: Samples) -> float:
            return float(np.abs(window).max() > 0.02)

    scheduler = Scheduler(stages, clock, activity=Loud, endpoint=Patient)
    caller = Caller(scheduler.open(config()), question)
    run(scheduler, clock, [caller])
    stopped = next(event for event in caller.events if isinstance(event, SpeechStopped))
    assert 0 <= stopped.at - stopped.ended - 16000 <= 1600 and caller.call.session.stats.dropped_drafts == 0
    assert len(caller.pcm), "it is answered all the same, without a pause to think ahead in"
    scheduler.close(caller.call)


def test_a_pool_without_pages_closes_who_needs_one(
    nano: spiritrt.SpiritLM, clock: VirtualClock, question: np.ndarray
) -> None:
    small = Stages.load(nano.family, 2, tokens=150)
    free = small.engine.free_pages
    scheduler = Scheduler(small, clock, admit=False)
    callers = open_callers(scheduler, [question] * 2)
    run(scheduler, clock, callers)
    ends = sorted(caller.kinds()[-1] for caller in callers)
    assert ends == ["Closed", "ReplyEnded"], "one of the two goes on"
    error = next(event for caller in callers for event in caller.events if isinstance(event, Error))
    assert "pages are needed" in error.message
    for caller in callers:
        scheduler.close(caller.call)
    assert small.engine.free_pages == free


def test_unusable_sound_is_refused_and_the_session_goes_on(scheduler: Scheduler, question: np.ndarray) -> None:
    call = scheduler.open(config())
    bad = question[:320].copy()
    bad[7] = np.nan
    with pytest.raises(ValueError, match="samples hold nan, the first at 7"):
        call.send(bad)
    with pytest.raises(ValueError, match=r"samples must be float32 \[N\] at 16 kHz, got float64 \(320,\)"):
        call.send(question[:320].astype(np.float64))
    with pytest.raises(ValueError, match=r"played\(5\): the client has got 0 samples"):
        call.played(5)
    with pytest.raises(Full, match="200000 samples, and there is room for 160000"):
        call.send(np.zeros(200000, np.float32))
    call.send(question[:320])
    scheduler.settle()
    assert not call.closed and call.room == 160000


def test_clients_that_are_gone_are_dropped(scheduler: Scheduler, clock: VirtualClock, question: np.ndarray) -> None:
    long = np.concatenate([question, silence(40)])
    silent, deaf, well = open_callers(scheduler, [question[:3200], long, long])
    deaf.acknowledges = False
    run(scheduler, clock, [silent, deaf, well])
    assert silent.events[-2:] == [Error("the client has sent no sound for 30 s"), Closed("hung")]
    assert deaf.events[-2] == Error("the client has not said that it plays anything for 30 s") and scheduler.hung == 2
    assert well.kinds()[-1] == "ReplyEnded"
    with pytest.raises(KeyError):
        scheduler.calls[silent.call.number]


class Echoing(Caller):
    """A client whose microphone hears the loudspeaker, 60 ms late and 8 dB lower."""

    def __init__(self, call: Call, sound: np.ndarray) -> None:
        super().__init__(call, sound)
        self._played = [silence(0.02)] * 3

    def tick(self) -> None:
        start = self._packet * PACKET_SAMPLES
        self._sound[start : start + PACKET_SAMPLES] += 0.4 * self._played[-3][: len(self._sound) - start]
        super().tick()

    def play(self) -> None:
        self._played.append(self.loudspeaker.tick())


def test_a_model_that_hears_itself_goes_on_and_falls_silent_for_a_person(
    scheduler: Scheduler, clock: VirtualClock, question: np.ndarray
) -> None:
    gate = EchoConfig(cancelled=False, gain_db=-8.0, margin_db=6.0)
    louder = np.zeros_like(question)
    begin = len(question) - 52000  # into the reply
    louder[begin : begin + 8000] = 4 * shipped_lines()[3].samples[4000:12000]
    without, gated, interrupted = (
        Echoing(scheduler.open(config(echo=echo)), question + more)
        for echo, more in ((EchoConfig(), 0.0), (gate, 0.0), (gate, louder))
    )
    run(scheduler, clock, [without, gated, interrupted])
    assert "Ducked" in without.kinds(), "the echo is loud enough to be taken for a person"
    assert gated.kinds() == ["SpeechStarted", "SpeechStopped", "ReplyEnded"]
    assert "Interrupted" in interrupted.kinds()


def test_what_a_client_does_not_read_is_bounded(scheduler: Scheduler, question: np.ndarray) -> None:
    call = scheduler.open(config())
    call.events.extend([TextOut("x", "reply")] * 2000)
    scheduler.step()
    assert call.closed == "hung" and not scheduler.calls


def test_a_session_beyond_the_slots_or_the_machine_is_refused_with_a_hint(
    stages: Stages, scheduler: Scheduler, clock: VirtualClock
) -> None:
    calls = [scheduler.open(config()) for _ in range(3)]
    with pytest.raises(Busy, match="all 3 sessions are taken; try again in about") as refused:
        scheduler.open(config())
    assert refused.value.retry_after_s >= 1
    for call in calls:
        scheduler.close(call)
    strict = Scheduler(stages, clock)
    strict.costs.unit.add(0.03)  # seconds a unit: one speaker at most
    strict.costs.add_step(1, 0.02)
    only = strict.open(config())
    with pytest.raises(Busy, match="1 sessions are held, and one more would take"):
        strict.open(config())
    strict.close(only)


def test_a_session_that_cannot_be_opened_takes_nothing(scheduler: Scheduler, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="speaker 9 is out of range"):
        scheduler.open(SessionConfig(voice=9, turns=ENERGY))
    with pytest.raises(ValueError, match="has no room for a conversation"):
        scheduler.open(config(context_tokens=100))
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        scheduler.open(config(), record=tmp_path / "file" / "one.trace")
    assert not scheduler.calls


def test_a_long_call_keeps_within_its_window(scheduler: Scheduler, clock: VirtualClock, question: np.ndarray) -> None:
    settings = config(context_tokens=330, max_text_tokens=60)
    caller = Caller(scheduler.open(settings), np.tile(question, 6))
    most = 0
    while not caller.over:
        clock.advance_to(clock() + 0.02)
        caller.tick()
        scheduler.settle()
        slots = (caller.call.slots.main, caller.call.slots.draft)
        most = max(most, *(scheduler.stages.engine.length(slot) for slot in slots if slot is not None))
    stats = caller.call.session.stats
    assert stats.evicted_tokens > 0 and most <= 330
    assert sum(isinstance(event, ReplyEnded) for event in caller.events) == 6
    assert scheduler.stages.engine.length(caller.call.slots.main) == len(caller.call.session.context)


def test_a_long_prefill_is_bounded_and_holds_up_nobody_who_decodes(
    stages: Stages, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = [scheduler.open(config()) for _ in range(3)]
    wants: list[Feed | None] = [Feed("main", (5,) * 100), Feed("main", (6,) * 100), Feed("main", None, "speech")]
    steps: list[list[int]] = []
    for number, call in enumerate(calls):
        monkeypatch.setattr(call.session, "due", lambda now, number=number: number)
        monkeypatch.setattr(call.session, "cache_work", lambda number=number: wants[number])
    monkeypatch.setattr(stages.engine, "step", lambda rows: steps.append([row.tokens for row in rows]))
    scheduler._decode()
    wants[0] = None
    scheduler._decode()
    assert steps == [[100, 1], [100, 1]], "the second long one waits for the next step, who decodes does not"


def test_costs_tell_a_step_from_its_rows() -> None:
    costs = Costs(expressive=False)
    for rows in (1, 2, 4, 8) * 50:
        costs.add_step(rows, 0.002 + 0.001 * rows)
    assert costs.row == pytest.approx(0.001, rel=0.05) and costs.step == pytest.approx(0.002, rel=0.1)


def test_a_few_shot_prefix_opens_every_context(nano: spiritrt.SpiritLM, tmp_path, clock: VirtualClock) -> None:
    file = tmp_path / "prefix.jsonl"
    file.write_text('{"text": "hello A: hi"}\n\n{"text": "bye"}\n')
    stages = Stages.load(nano.family, 1, prefix=file)
    ids = read_prefix(file, nano.family)
    scheduler = Scheduler(stages, clock)
    free = stages.engine.free_pages
    call = scheduler.open(config())
    assert stages.engine.free_pages == free, "its pages are shared"
    assert list(call.session.context) == [1, *ids] and ids.count(nano.family.vocabulary.text_marker) == 2
    assert stages.engine.length(call.slots.main) == len(ids) + 1
    file.write_text('{"song": "la"}\n')
    with pytest.raises(ValueError, match=r"prefix.jsonl:1: not an exchange"):
        read_prefix(file, nano.family)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("prefix.json", '{"text": "hello', "exchanges go into a .jsonl file, one a line"),
        ("prefix.json", '[{"text": "hello"}]', "exchanges go into a .jsonl file, one a line"),
        ("prefix.txt", ' {"text": "hello"}', "exchanges go into a .jsonl file, one a line"),
        ("prefix.txt", "[Speech][Hu600]", r"not a prompt string: unknown token \[Hu600\]"),
    ],
)
def test_a_prefix_that_is_none_is_refused(
    nano: spiritrt.SpiritLM, tmp_path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name}: {message}"):
        read_prefix(tmp_path / name, nano.family)
    (tmp_path / "prefix.txt").write_text("[Speech][Hu60][Text]hello\n")
    assert len(read_prefix(tmp_path / "prefix.txt", nano.family)) >= 4
