"""What goes wrong with one session stays with it: the others give the same sound to the last bit, and nothing leaks."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from conftest import RECORDINGS

import spiritrt
from spiritrt import audio
from spiritrt.audio import RATE_HZ, Samples
from spiritrt.duplex.call import Call, Full
from spiritrt.duplex.client import PACKET_SAMPLES, Loudspeaker
from spiritrt.duplex.clock import VirtualClock
from spiritrt.duplex.config import SessionConfig, TurnConfig
from spiritrt.duplex.costs import Busy
from spiritrt.duplex.events import AudioOut, Closed, Error, Event, ReplyEnded
from spiritrt.duplex.runtime import Runtime, RuntimeSession
from spiritrt.duplex.scheduler import Scheduler
from spiritrt.duplex.stages import Stages

CONFIG = SessionConfig("chain", seed=3, max_reply_s=1.5, turns=TurnConfig(activity="energy"))
HUNG_S = 2.0
QUESTION = np.concatenate([audio.load(RECORDINGS / "question.flac"), np.zeros(4 * RATE_HZ, np.float32)])


@pytest.fixture(scope="module")
def stages(nano: spiritrt.SpiritLM) -> Stages:
    return Stages.load(nano.family, 3)


@pytest.fixture
def world(stages: Stages) -> Iterator["World"]:
    """A scheduler, at the end of which all slots and pages must be back."""
    free = stages.engine.free_pages
    made = World(stages)
    yield made
    for call in list(made.scheduler.calls.values()):
        made.scheduler.close(call)
    assert stages.engine.free_pages == free
    again = [made.scheduler.open(CONFIG) for _ in range(stages.sessions)]
    for call in again:
        made.scheduler.close(call)


@dataclass
class Client:
    """One who says `sound`, plays what comes, and may go away without a word."""

    call: Call
    sound: Samples
    events: list[Event] = field(default_factory=list)
    speaker: Loudspeaker = field(default_factory=Loudspeaker)
    gone: bool = False
    mute: bool = False  # it does not say what it plays
    leaves: Callable[[Event], bool] = lambda event: False

    @property
    def got(self) -> list[object]:
        """What came, to the last bit."""
        return [
            (event.start_sample, event.pcm.tobytes(), event.tokens) if isinstance(event, AudioOut) else event
            for event in self.events
        ]

    @property
    def ending(self) -> list[str]:
        return [type(event).__name__ for event in self.events[-2:]]


class World:
    """Clients that send a packet every 20 ms, on an infinitely fast machine."""

    def __init__(self, stages: Stages) -> None:
        self.clock = VirtualClock()
        self.scheduler = Scheduler(stages, self.clock, hung_s=HUNG_S, admit=False)

    def client(self, seed: int = 3, sound: Samples = QUESTION) -> Client:
        return Client(
            self.scheduler.open(SessionConfig("chain", seed=seed, max_reply_s=1.5, turns=CONFIG.turns)), sound
        )

    def run(self, *clients: Client, seconds: float = 6.0) -> None:
        begin = self.clock()
        for packet in range(round(seconds * RATE_HZ / PACKET_SAMPLES)):
            self.clock.advance_to(begin + packet * PACKET_SAMPLES / RATE_HZ)
            for client in clients:
                if client.gone or client.call.closed:
                    continue
                at = client.call.offered
                if not client.mute:
                    client.call.played(client.speaker.position)
                client.speaker.tick()
                rest = client.sound[at : at + PACKET_SAMPLES]
                client.call.send(np.pad(rest, (0, PACKET_SAMPLES - len(rest))))
            self.scheduler.settle()
            for client in clients:
                if not client.gone or client.call.closed:
                    for event in client.call.take_events():
                        client.events.append(event)
                        client.speaker.take(event)
                        client.gone = client.gone or client.leaves(event)


@pytest.fixture(scope="module")
def undisturbed(stages: Stages) -> list[object]:
    """What a client gets that is alone."""
    world = World(stages)
    client = world.client()
    world.run(client)
    world.scheduler.close(client.call)
    assert any(isinstance(event, ReplyEnded) for event in client.events), "it was answered"
    return client.got


def test_a_client_that_vanishes_into_a_reply_is_reaped(world: World, undisturbed: list[object]) -> None:
    vanishing, other = world.client(seed=9), world.client()
    vanishing.leaves = lambda event: isinstance(event, AudioOut)
    world.run(vanishing, other)
    assert other.got == undisturbed
    assert vanishing.call.closed == "hung" and world.scheduler.hung == 1
    assert vanishing.ending == ["Error", "Closed"]
    assert isinstance(vanishing.events[-2], Error) and "has sent no sound for 2 s" in vanishing.events[-2].message
    assert len(world.scheduler.calls) == 1


def test_a_client_that_does_not_say_what_it_plays_is_reaped(world: World, undisturbed: list[object]) -> None:
    silent, other = world.client(seed=9), world.client()
    silent.mute = True
    world.run(silent, other, seconds=6.0)
    assert other.got == undisturbed
    assert silent.call.closed == "hung"
    assert isinstance(silent.events[-2], Error) and "not said that it plays" in silent.events[-2].message


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.array([0.0, np.nan, 0.0], np.float32), "samples hold nan, the first at 1"),
        (np.array([np.inf], np.float32), "samples hold inf, the first at 0"),
        (np.zeros(320), r"must be float32 \[N\] at 16 kHz, got float64"),
        (np.zeros((2, 320), np.float32), r"got float32 \(2, 320\)"),
    ],
)
def test_sound_that_is_none_is_refused_and_changes_nothing(
    world: World, undisturbed: list[object], samples: Samples, message: str
) -> None:
    client = world.client()
    world.run(client, seconds=1.0)
    with pytest.raises(ValueError, match=message):
        client.call.send(samples)
    with pytest.raises(ValueError, match=r"played\(99999999\): the client has got 0 samples"):
        client.call.played(99_999_999)
    world.run(client, seconds=5.0)
    assert client.got == undisturbed


@pytest.mark.parametrize(("part", "method"), [("engine", "step"), ("encoder", "listen"), ("voices", "speak")])
def test_an_exception_in_a_model_closes_its_session_alone(
    world: World, stages: Stages, undisturbed: list[object], part: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, other = world.client(seed=9), world.client()
    whose = {"encoder": broken.call.encoder_slot, "voices": broken.call.voice_slot}
    model = getattr(stages, part)
    right, calls = getattr(model, method), 0

    def step(work: list) -> object:
        nonlocal calls
        slots = {each.slot for each in work} if part == "engine" else {slot for slot, _ in work}
        mine = {broken.call.slots.main, broken.call.slots.draft} if part == "engine" else {whose[part]}
        calls += bool(slots & mine)
        if slots & mine and calls > 3 and not broken.call.closed:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return right(work)

    monkeypatch.setattr(model, method, step)
    world.run(broken, other)
    assert broken.call.closed == "error" and world.scheduler.errors == 1
    assert broken.events[-2:] == [
        Error("RuntimeError: CUDA error: an illegal memory access was encountered"),
        Closed("error"),
    ]
    assert other.got == undisturbed


def test_an_exhausted_pool_closes_who_asks_for_more(world: World, stages: Stages, undisturbed: list[object]) -> None:
    engine = stages.engine
    greedy = world.client(seed=9)
    hog = engine.open()
    page = engine.cache.config.page_size
    hogged = 0
    while engine.free_pages > 1:
        count = min(128, (engine.free_pages - 1) * page, engine.room(hog))
        if not count:
            break
        engine.cache.reserve([(hog, count)])
        hogged += count
    extra = []
    while engine.free_pages > 1:
        extra.append(engine.open())
        count = min((engine.free_pages - 1) * page, engine.room(extra[-1]))
        engine.cache.reserve([(extra[-1], count)])
    world.run(greedy, seconds=4.0)
    for slot in (hog, *extra):
        engine.close(slot)
    assert greedy.call.closed == "error"
    assert isinstance(greedy.events[-2], Error) and "page" in greedy.events[-2].message
    other = world.client()
    world.run(other)
    assert other.got == undisturbed


def test_one_session_too_many_is_refused_with_a_hint(world: World, stages: Stages) -> None:
    clients = [world.client(seed=seed) for seed in range(stages.sessions)]
    with pytest.raises(Busy, match="all 3 sessions are taken; try again in about 10 s") as refused:
        world.client()
    assert refused.value.retry_after_s > 0
    world.run(*clients, seconds=0.5)
    assert all(not client.call.closed for client in clients)


def test_a_sender_that_is_faster_than_time_meets_a_bound(world: World) -> None:
    client = world.client()
    with pytest.raises(Full, match="there is room for"):
        for _ in range(1000):
            client.call.send(np.zeros(RATE_HZ, np.float32))
    assert client.call.offered == 10 * RATE_HZ
    world.scheduler.settle()
    assert client.call.room == 10 * RATE_HZ and not client.call.closed


def test_a_runtime_that_fails_leaves_nobody_waiting(stages: Stages, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> list[Event]:
        async with Runtime(stages, admit=False) as runtime, runtime.session(config=CONFIG) as session:
            monkeypatch.setattr(runtime.scheduler, "step", broken)
            await session.send(QUESTION[:1600])
            found = [event async for event in session.events()]
            with pytest.raises(ConnectionError, match="the runtime has stopped"):
                await runtime.do(lambda: None)
            runtime.scheduler.close(session.call)
            return found

    def broken() -> bool:
        raise RuntimeError("no more of this")

    events = asyncio.run(asyncio.wait_for(main(), 30))
    assert events == [Error("the runtime has failed: RuntimeError: no more of this"), Closed("error")]


def test_sigterm_under_load_tells_everybody_and_stops(stages: Stages) -> None:
    free = stages.engine.free_pages
    endings: list[str] = []

    async def talk(session: RuntimeSession, terminate: bool) -> None:
        async with session:
            reader = asyncio.create_task(read(session, terminate))
            try:
                for at in range(0, len(QUESTION), PACKET_SAMPLES):
                    await session.send(QUESTION[at : at + PACKET_SAMPLES])
                    await asyncio.sleep(0.005)
            except ConnectionError as error:
                assert str(error) == "the session is closed: stopping"
            await asyncio.wait_for(reader, 30)

    async def read(session: RuntimeSession, terminate: bool) -> None:
        async for event in session.events():
            if isinstance(event, AudioOut):
                session.played(event.start_sample + len(event.pcm))
                if terminate:
                    os.kill(os.getpid(), signal.SIGTERM)
                    terminate = False
            if isinstance(event, Closed):
                endings.append(event.reason)

    async def main() -> None:
        async with Runtime(stages, admit=False) as runtime:
            runtime.stop_on(signal.SIGTERM, grace_s=3.0)
            sessions = [runtime.session(config=CONFIG, seed=seed) for seed in range(3)]
            await asyncio.wait_for(
                asyncio.gather(*(talk(session, number == 0) for number, session in enumerate(sessions))), 60
            )
            with pytest.raises(RuntimeError, match=r"the runtime is stopping|this runtime is closed"):
                async with runtime.session(config=CONFIG):
                    pass

    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # should nothing catch it, the tests go on and fail here
    try:
        asyncio.run(main())
    finally:
        signal.signal(signal.SIGTERM, before)
    assert endings == ["stopping"] * 3
    assert stages.engine.free_pages == free
