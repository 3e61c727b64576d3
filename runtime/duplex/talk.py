"""A conversation from recordings: a scripted person, a loudspeaker, and a session between them.

The person speaks in 20 ms packets as a microphone would bring them, waits for replies and cuts into them; the
loudspeaker plays what the session hands out and says how much of it has sounded.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from spiritrt.audio import RATE_HZ, Samples, load
from spiritrt.duplex.session import Event, Reply, Session, SessionConfig
from spiritrt.models.family import Family
from spiritrt.sampling import Sampling
from spiritrt.tokens.units import Units

PACKET_SAMPLES = RATE_HZ // 50  # 20 ms
PATIENCE_S = 15.0  # how long the person waits for a reply


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """Something the person says: `samples` at 16 kHz.

    It begins `pause_s` after the reply before it ended or, where `interrupt_s` is given, once that reply has been heard
    for so long.
    """

    name: str
    samples: Samples
    pause_s: float = 0.6
    interrupt_s: float | None = None


@dataclass(slots=True)
class Turn:
    """A turn of the person and what came of it: times in seconds since the start. None: it did not happen."""

    began_s: float
    endpoint_s: float | None = None
    heard_text: str = ""
    reply_text: str = ""
    first_audio_ms: float | None = None  # endpoint decided -> first sound handed to the loudspeaker
    response_ms: float | None = None  # the person fell silent -> the same; the endpoint's silence is part of it
    reply_s: float | None = None  # length of the reply that was heard
    interrupted_ms: float | None = None  # speech over the reply began -> loudspeaker silent
    finish: str = ""  # why the reply ended


@dataclass(slots=True)
class Report:
    """A finished conversation. `stereo` [N, 2]: left the person, right the model, at 16 kHz."""

    turns: list[Turn]
    seconds: float
    underruns: int  # packets at which the loudspeaker ran dry within a reply
    late_ms: float  # the longest that a microphone packet waited for the session
    busy: float  # share of the time that the session computed
    timeline: list[tuple[float, str, str]] = field(default_factory=list)
    stereo: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.float32))

    def summary(self) -> dict:
        """The numbers and texts of the report, ready for JSON."""
        fields = ("seconds", "underruns", "late_ms", "busy")
        return {"turns": [asdict(turn) for turn in self.turns], **{f: round(getattr(self, f), 3) for f in fields}}


class _Loudspeaker:
    def __init__(self) -> None:
        self.queue = np.zeros(0, np.float32)
        self.played = 0  # samples of the running reply

    def tick(self) -> Samples:
        packet, self.queue = self.queue[:PACKET_SAMPLES], self.queue[PACKET_SAMPLES:]
        self.played += len(packet)
        return np.pad(packet, (0, PACKET_SAMPLES - len(packet)))

    def clear(self) -> None:
        self.queue = np.zeros(0, np.float32)
        self.played = 0


class Conversation:
    """Runs `lines` against a session; in `real_time`, or with all the computing time that the session wants."""

    def __init__(self, family: Family, config: SessionConfig, lines: Sequence[Line], real_time: bool = True) -> None:
        self._session = Session(family, config, self._on_event)
        self._lines = list(lines)
        self._real_time = real_time
        self._speaker = _Loudspeaker()
        self._turns: list[Turn] = []
        self._timeline: list[tuple[float, str, str]] = []
        self._line: Samples | None = None  # what is left of the line being said
        self._quiet_since = 0  # packet at which both fell silent
        self._packet = 0
        self._clock_start = 0.0
        self._endpoint = 0.0  # when the last endpoint was decided
        self._silent_s = 0.0  # when the speech before it ended

    def run(self) -> Report:
        """Plays the conversation to its end."""
        sides: list[tuple[Samples, Samples]] = []
        busy, late, underruns = 0.0, 0.0, 0
        self._clock_start = time.perf_counter()
        while not self._over():
            due = self._packet * PACKET_SAMPLES / RATE_HZ
            if self._real_time:
                # until the next packet is due the session works, in steps
                while (now := self._now()) < due:
                    begin = time.perf_counter()
                    if self._work():
                        busy += time.perf_counter() - begin
                    else:
                        time.sleep(min(0.002, due - now))
                late = max(late, self._now() - due)
            begin = time.perf_counter()
            person = self._person()
            short = self._speaker.played > 0 and len(self._speaker.queue) < PACKET_SAMPLES
            underruns += short and self._session.speaking and not self._session.complete
            model = self._speaker.tick()
            self._session.played(self._speaker.played)
            self._session.accept(person)
            while not self._real_time and self._work():
                pass
            busy += time.perf_counter() - begin
            sides.append((person, model))
            self._packet += 1
        stereo = np.stack([np.concatenate(side) for side in zip(*sides, strict=True)], axis=1)
        seconds = self._packet * PACKET_SAMPLES / RATE_HZ
        return Report(self._turns, seconds, underruns, 1000 * late, busy / seconds, self._timeline, stereo)

    def _now(self) -> float:
        """Seconds since the start: of the wall clock, or of the microphone where time is simulated."""
        if self._real_time:
            return time.perf_counter() - self._clock_start
        return self._packet * PACKET_SAMPLES / RATE_HZ

    def _work(self) -> bool:
        sound = self._session.step()
        if sound is None:
            return False
        if len(sound) and self._session.speaking:
            turn = self._turns[-1]
            if turn.first_audio_ms is None:
                turn.first_audio_ms = 1000 * (time.perf_counter() - self._endpoint)
                waited_ms = 1000 * ((turn.endpoint_s or 0.0) - self._silent_s)
                turn.response_ms = waited_ms + turn.first_audio_ms
                self._note("model", f"begins to speak, {turn.first_audio_ms:.0f} ms after the endpoint")
            self._speaker.queue = np.concatenate([self._speaker.queue, sound])
        return True

    def _person(self) -> Samples:
        """The next 20 ms of the person's side."""
        if self._line is None and self._lines and self._wants_to_speak(self._lines[0]):
            line = self._lines.pop(0)
            self._line = line.samples
            self._note("person", f"{line.name} ({len(line.samples) / RATE_HZ:.1f} s)")
        if self._line is None:
            return np.zeros(PACKET_SAMPLES, np.float32)
        packet, self._line = self._line[:PACKET_SAMPLES], self._line[PACKET_SAMPLES:]
        if not len(self._line):
            self._line = None
            self._quiet_since = self._packet
        return np.pad(packet, (0, PACKET_SAMPLES - len(packet)))

    def _wants_to_speak(self, line: Line) -> bool:
        quiet_s = (self._packet - self._quiet_since) * PACKET_SAMPLES / RATE_HZ
        if not self._turns:
            return quiet_s >= line.pause_s
        if line.interrupt_s is not None and self._session.speaking:
            return self._speaker.played >= line.interrupt_s * RATE_HZ
        return (self._answered() and quiet_s >= line.pause_s) or quiet_s >= self._patience_s()

    def _over(self) -> bool:
        quiet_s = (self._packet - self._quiet_since) * PACKET_SAMPLES / RATE_HZ
        if self._lines or self._line is not None or self._session.speaking:
            return False
        return quiet_s >= (1.0 if self._answered() else self._patience_s())

    def _patience_s(self) -> float:
        """How long the person waits: not for a reply to what nobody heard."""
        open_turn = bool(self._turns) and not self._turns[-1].finish
        return PATIENCE_S if open_turn or self._session.speaking else 2.0

    def _answered(self) -> bool:
        return bool(self._turns) and bool(self._turns[-1].finish)

    def _note(self, who: str, what: str) -> None:
        self._timeline.append((self._now(), who, what))

    def _on_event(self, event: Event) -> None:
        if event.kind == "speech_started":
            began_s = event.value / RATE_HZ
            if self._turns and self._turns[-1].finish == "interrupted" and self._turns[-1].interrupted_ms is None:
                cut_ms = self._turns[-1].interrupted_ms = 1000 * (self._now() - began_s)
                self._note("model", f"falls silent, {cut_ms:.0f} ms after the person began to speak over it")
            self._turns.append(Turn(began_s))
            self._note("person", f"heard speaking since {began_s:.2f} s")
            return
        turn = self._turns[-1]
        if event.kind == "speech_stopped":
            self._endpoint = time.perf_counter()
            turn.endpoint_s = self._now()
            self._silent_s = event.value / RATE_HZ
            self._note("turn", f"endpoint; speech ended at {event.value / RATE_HZ:.2f} s")
        elif event.kind == "heard":
            turn.heard_text = event.text
            self._note("model", f"heard: {event.text!r}")
        elif event.kind == "reply_text":
            turn.reply_text = event.text
            self._note("model", f"answers: {event.text!r}")
        elif event.kind == "interrupted":
            self._speaker.clear()
            turn.reply_s, turn.finish = event.value / RATE_HZ, "interrupted"
        elif event.kind == "reply_done":
            turn.reply_s, turn.finish = event.value / RATE_HZ, event.text
            self._speaker.clear()
            self._quiet_since = self._packet
            self._note("model", f"ends after {turn.reply_s:.2f} s ({event.text})")
        elif event.kind == "context_reset":
            self._note("model", f"drops {event.value} tokens of old context")


def hold_conversation(
    model: str,
    recordings: Sequence[Path],
    interrupt_s: float | None,
    sampling: Sampling,
    speaker: int | None,
    real_time: bool,
    device: str = "cpu",
    dtype: str = "auto",
) -> Report:
    """The main job: loads a model and runs a conversation over `recordings`, or over those that are shipped.

    nano replies in its "chain" form; other models continue in speech. Raises ValueError for unusable sound or a model
    that is not whole.
    """
    if interrupt_s is not None and interrupt_s < 0:
        raise ValueError(f"--interrupt must be 0 or more seconds, got {interrupt_s}")
    family = Family.load(model, device, dtype)
    if recordings:
        lines = [
            Line(file.name, load(file), interrupt_s=interrupt_s if number else None)
            for number, file in enumerate(recordings)
        ]
    else:
        lines = shipped_lines()
    reply: Reply = "chain" if family.checkpoint.reply == "chain" else "continuation"
    config = SessionConfig(reply=reply, sampling=sampling, speaker=speaker)
    # what the first use would cost is paid before the conversation starts
    family.vocode_expanded(Units((0,) * 8, *((0,) * 8 if family.expressive else None,) * 2), speaker)
    _ = family.silence
    return Conversation(family, config, lines, real_time).run()


def shipped_lines() -> list[Line]:
    """The recordings that come with the package: see recordings/README.md for what they are and their licences."""
    folder = Path(__file__).parent / "recordings"
    entries = json.loads((folder / "lines.json").read_text(encoding="utf-8"))
    return [Line(e["name"], load(folder / e["file"]), e["pause_s"], e.get("interrupt_s")) for e in entries]


def render(report: Report, out: Path) -> str:
    """The report as text: what happened when, then the numbers."""
    lines = [f"{seconds:7.2f} s  {who:6}  {what}" for seconds, who, what in report.timeline]
    lines.append("" if report.turns else "nothing was heard: the recordings hold no speech above the threshold")
    for number, turn in enumerate(report.turns, start=1):
        reply = "no reply"
        if turn.first_audio_ms is not None and turn.response_ms is not None:
            reply = f"first audio {turn.first_audio_ms:.0f} ms after the endpoint"
            reply += f" ({turn.response_ms:.0f} ms after the person fell silent)"
        if turn.reply_s is not None:
            reply += f", {turn.reply_s:.1f} s of reply heard ({turn.finish})"
        if turn.interrupted_ms is not None:
            reply += f", silent {turn.interrupted_ms:.0f} ms after the person cut in"
        heard = f"heard {turn.heard_text!r}, said {turn.reply_text!r}; " if turn.heard_text or turn.reply_text else ""
        lines.append(f"turn {number}: {heard}{reply}")
    lines.append(
        f"{report.seconds:.1f} s of conversation, computing {100 * report.busy:.0f}% of the time; "
        f"{report.underruns} underruns, microphone packets waited {report.late_ms:.0f} ms at most"
    )
    lines.append(f"wrote {out} (left: person, right: model)")
    return "\n".join(lines)
