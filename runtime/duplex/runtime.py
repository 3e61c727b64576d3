"""Full duplex for many people at once, with an asynchronous face: a thread that computes, and sessions that wait.

    async with spiritrt.Runtime("nano", sessions=4) as runtime:
        async with runtime.session(voice=2, reply="chain", seed=7) as session:
            ...

All of the models' work is done by one thread; the event loop only hands sound and events over, and is never blocked.
"""

import asyncio
import gc
import logging
import signal
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from spiritrt.audio import Samples
from spiritrt.duplex.call import INBOX_SAMPLES, NOBODY_WAITS, Call, Full, check_samples
from spiritrt.duplex.config import ReplyPolicy, SessionConfig
from spiritrt.duplex.costs import Busy
from spiritrt.duplex.events import Closed, Event
from spiritrt.duplex.scheduler import Scheduler
from spiritrt.duplex.stages import Stages, default_policy
from spiritrt.duplex.turns import Activity, Endpoint
from spiritrt.models.family import Family

T = TypeVar("T")
log = logging.getLogger(__name__)
IDLE_S = 0.1  # without input the thread looks so often whether a client is gone
SEND_SAMPLES = INBOX_SAMPLES // 4  # of one `send` that are handed over at a time


class Runtime:
    """A family at work for up to `sessions` conversations; see the module for its use.

    Args:
        model: a name or folder, a loaded family, or the models in the form in which sessions share them.
        sessions: conversations that may be open at once. Each takes memory; the machine's time may end before.
        device, weights, cache, kernels: where the models run, and how the language model does; see `Engine`.
        prefix: file of few-shot examples that every conversation begins with, shared by all; see `stages.read_prefix`.
        activity, endpoint: detectors of your own, made once a session; see `turns`.
        admit: whether to refuse sessions that the machine would not keep up with.
        hung_s: a client that sends no sound, or does not say that it plays any, for so long is dropped.
    """

    def __init__(
        self,
        model: str | Family | Stages = "nano",
        sessions: int = 4,
        *,
        device: str = "cpu",
        weights: str = "auto",
        cache: str = "auto",
        kernels: Mapping[str, str] | None = None,
        prefix: Path | None = None,
        activity: Activity | None = None,
        endpoint: Endpoint | None = None,
        admit: bool = True,
        hung_s: float = 30.0,
    ) -> None:
        if sessions < 1:
            raise ValueError(f"sessions must be at least 1, got {sessions}")
        for name, detector in (("activity", activity), ("endpoint", endpoint)):
            if detector is not None and not callable(detector):
                raise ValueError(
                    f"{name} must be a callable that makes a detector, got {detector!r}; a detector by name or by its "
                    "times goes into the session's TurnConfig(activity=..., endpoint_ms=...)"
                )
        self._model, self._sessions, self._device = model, sessions, device
        self._weights, self._cache, self._kernels, self._prefix = weights, cache, kernels, prefix
        self._activity, self._endpoint, self._admit, self._hung_s = activity, endpoint, admit, hung_s
        self._wake = threading.Event()
        self._tasks: deque[Callable[[], None]] = deque()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._faces: dict[int, RuntimeSession] = {}
        self._stopping = False
        self._closing: asyncio.Future[None] | None = None
        self._lock = threading.Lock()  # of `_tasks` and `_running`: what is taken in is done
        self._running = True
        self._scheduler: Scheduler | None = None

    async def __aenter__(self) -> "Runtime":
        """Loads the models and runs them once, so that nobody waits for a first time.

        Raises RuntimeError for a runtime that was entered or closed before.
        """
        if self._thread is not None or self._stopping:
            raise RuntimeError("this runtime was used before, and runs once: make a new Runtime")
        self._loop = asyncio.get_running_loop()
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(started,), name="spiritrt", daemon=True)
        self._thread.start()
        await asyncio.wrap_future(started)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def scheduler(self) -> Scheduler:
        """What serves the sessions: its counters may be read at any time. Raises ValueError before the start."""
        if self._scheduler is None:
            raise ValueError("the runtime is not running: use it in an `async with`")
        return self._scheduler

    def session(
        self,
        voice: int | None = None,
        reply: ReplyPolicy | None = None,
        seed: int | None = None,
        *,
        config: SessionConfig | None = None,
        record: str | Path | None = None,
    ) -> "RuntimeSession":
        """A conversation, to be entered with `async with`, once.

        That raises Busy where there is no room for it, RuntimeError once the runtime is closed, and FileNotFoundError
        where the folder of `record`, the file for its trace, is not there. `voice`, `reply` and `seed` go over those of
        `config`. The policy is by default the one that the model is trained for.
        """
        config = config or SessionConfig(reply=default_policy(self.scheduler.stages.family))
        config = replace(
            config,
            voice=config.voice if voice is None else voice,
            reply=reply or config.reply,
            seed=config.seed if seed is None else seed,
        )
        return RuntimeSession(self, config, None if record is None else Path(record))

    async def close(self, grace_s: float = 0.0) -> None:
        """Takes no more sessions, lets running replies end for up to `grace_s`, closes the rest, stops the thread."""
        self._stopping = True
        if self._thread is None or self._scheduler is None:
            return
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close(self._thread, grace_s))
        await asyncio.shield(self._closing)

    async def _close(self, thread: threading.Thread, grace_s: float) -> None:
        deadline = time.perf_counter() + grace_s
        with suppress(ConnectionError):  # it has failed, and everybody knows
            while time.perf_counter() < deadline and await self.do(self._drop_idle):
                await asyncio.sleep(0.02)
            await self.do(self._close_all)
            await self.do(self._end)
        await asyncio.to_thread(thread.join)

    def stop_on(self, *signals: signal.Signals, grace_s: float = 5.0) -> None:
        """Closes the runtime on these signals, SIGTERM and SIGINT by default; sessions are told, and finish replies."""
        assert self._loop is not None, "the runtime is not running"
        for number in signals or (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, lambda: asyncio.ensure_future(self.close(grace_s)))

    async def do(self, task: Callable[[], T]) -> T:
        """Runs something on the computing thread, between two steps. Raises ConnectionError where that has ended."""
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(task())
            except BaseException as error:
                done.set_exception(error)

        with self._lock:
            if not self._running:
                raise ConnectionError("the runtime has stopped")
            self._tasks.append(run)
        self._wake.set()
        return await asyncio.wrap_future(done)

    # The computing thread

    def _run(self, started: "Future[None]") -> None:
        try:
            scheduler = self._scheduler = self._start()
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result(None)
        try:
            while self._running or self._tasks:
                while self._tasks:
                    self._tasks.popleft()()
                worked = scheduler.step()
                self._hand_over()
                if not worked and not self._tasks:
                    self._wake.wait(IDLE_S)
                    self._wake.clear()
        except Exception as error:  # not of one session: nobody may wait for what never comes
            log.exception("the runtime has failed")
            self._fail(scheduler, error)

    def _start(self) -> Scheduler:
        scheduler = Scheduler(
            self._stages(),
            hung_s=self._hung_s,
            admit=self._admit,
            activity=self._activity,
            endpoint=self._endpoint,
        )
        scheduler.warm_up()
        scheduler.announce = self._hand_over
        gc.collect()
        gc.freeze()  # models are for good: a collection that walks them takes longer than a step
        return scheduler

    def _fail(self, scheduler: Scheduler, error: Exception) -> None:
        self._end()
        for call in scheduler.calls.values():
            call.finish("error", f"the runtime has failed: {type(error).__name__}: {error}")
        while self._tasks:
            self._tasks.popleft()()
        self._hand_over()

    def _stages(self) -> Stages:
        model = self._model
        if isinstance(model, Stages):
            return model
        return Stages.load(
            Family.load(model, self._device) if isinstance(model, str) else model,
            self._sessions,
            prefix=self._prefix,
            weights=self._weights,
            cache=self._cache,
            kernels=self._kernels,
        )

    def _end(self) -> None:
        with self._lock:
            self._running = False

    def _hand_over(self) -> None:
        """Wakes the event loop where a client has something to read, or room to send."""
        ready = [face for face in list(self._faces.values()) if face.has_news]
        if ready and self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed, and nobody waits
                self._loop.call_soon_threadsafe(_notify, ready)

    def _drop_idle(self) -> bool:
        """Closes the sessions that owe no reply; whether any are left."""
        for call in list(self.scheduler.calls.values()):
            if call.session.state in ("listening", "thinking_ahead"):
                self.scheduler.close(call, "stopping")
        return bool(self.scheduler.calls)

    def _close_all(self) -> None:
        for call in list(self.scheduler.calls.values()):
            self.scheduler.close(call, "stopping")
        self._hand_over()


class RuntimeSession:
    """One conversation of a `Runtime`. `async with` opens and closes it."""

    def __init__(self, runtime: Runtime, config: SessionConfig, record: Path | None) -> None:
        self.config = config
        self._runtime, self._record = runtime, record
        self._call: Call | None = None
        self._news = asyncio.Event()
        self._ended = False

    async def __aenter__(self) -> "RuntimeSession":
        runtime = self._runtime
        if self._call is not None:
            raise RuntimeError("this session was entered before: a new conversation needs a new runtime.session()")
        if runtime._closing is not None and runtime._closing.done():
            raise RuntimeError("this runtime is closed: make a new Runtime")
        if runtime._stopping:
            raise Busy("the runtime is stopping", 60.0)

        def open_call() -> Call:
            call = runtime.scheduler.open(self.config, self._record)
            runtime._faces[call.number] = self
            return call

        self._call = await runtime.do(open_call)
        return self

    async def __aexit__(self, *_: object) -> None:
        call, runtime = self.call, self._runtime
        with suppress(ConnectionError):  # then the runtime has closed it
            await runtime.do(lambda: runtime.scheduler.close(call))
        runtime._faces.pop(call.number, None)
        self._news.set()  # who reads the events learns of the end, whatever the thread does next

    @property
    def call(self) -> Call:
        """The scheduler's side. Raises ValueError for a session that was not entered."""
        if self._call is None:
            raise ValueError("the session is not open: use it in an `async with`")
        return self._call

    @property
    def has_news(self) -> bool:
        """Whether something waits for the client, or somebody for room."""
        call = self._call
        return call is not None and (bool(call.events) or bool(call.closed) or call.wanted <= call.room)

    async def send(self, pcm: Samples) -> None:
        """Sends microphone samples [N], float32 at 16 kHz, of any number.

        Waits while the buffer of ten seconds is full. Raises ValueError for another dtype or shape, NaN or infinite
        samples and a peak above 16, and ConnectionError once the session is closed.
        """
        check_samples(pcm)
        call = self.call
        for start in range(0, len(pcm), SEND_SAMPLES):
            part = pcm[start : start + SEND_SAMPLES]
            while True:
                if call.closed:
                    raise ConnectionError(f"the session is closed: {call.closed}")
                try:
                    call.send(part)
                    call.wanted = NOBODY_WAITS
                    break
                except Full:
                    call.wanted = len(part)
                    self._news.clear()
                    await self._news.wait()
            self._runtime._wake.set()

    async def events(self) -> AsyncIterator[Event]:
        """What happens, in order, until `Closed`. For one reader."""
        call = self.call
        while not self._ended:
            events = call.take_events()
            if not events:
                self._news.clear()
                if not call.events:
                    await self._news.wait()
                continue
            for event in events:
                self._ended = self._ended or isinstance(event, Closed)
                yield event

    def played(self, position: int) -> None:
        """Says that the loudspeaker has played up to an output position: `start_sample` + samples of a packet.

        The oftener the better, every 20 to 100 ms, and once more when `Ducked` has stopped it: that is where an
        interrupted reply is cut. Raises ValueError for a position beyond what was handed out, and Full where thousands
        of inputs wait for a machine that is behind: say it again later.
        """
        if not self.call.closed:
            self.call.played(position)
            self._runtime._wake.set()


def _notify(faces: Sequence[RuntimeSession]) -> None:
    for face in faces:
        face._news.set()
