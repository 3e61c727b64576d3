"""The conversation that the README shows: what is written there runs, is answered, and is interrupted."""

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np

from spiritrt.audio import Samples
from spiritrt.duplex.client import PACKET_SAMPLES
from spiritrt.duplex.script import shipped_lines

README = Path(__file__).parents[2] / "README.md"
PATIENCE_PACKETS = 1500


class Speaker:
    """A loudspeaker with the verbs of the README, that says what it was told."""

    def __init__(self) -> None:
        self.position = 0
        self.heard: list[Samples] = []
        self.told: list[str] = []
        self._waiting: deque[tuple[int, Samples]] = deque()
        self._paused = False

    @property
    def empty(self) -> bool:
        return not self._waiting

    def queue(self, start_sample: int, pcm: Samples) -> None:
        self._waiting.append((start_sample, pcm))

    def pause(self) -> None:
        self.told.append("pause")
        self._paused = True

    def resume(self) -> None:
        self.told.append("resume")
        self._paused = False

    def clear(self) -> None:
        self.told.append("clear")
        self._waiting.clear()
        self._paused = False

    def play(self) -> None:
        """What sounds within one packet of the microphone."""
        left = 0 if self._paused else PACKET_SAMPLES
        while self._waiting and left:
            start, pcm = self._waiting.popleft()
            now, rest = pcm[:left], pcm[left:]
            self.heard.append(now)
            self.position, left = start + len(now), left - len(now)
            if len(rest):
                self._waiting.appendleft((self.position, rest))


async def speak(speaker: Speaker) -> AsyncIterator[Samples]:
    """A question, another as soon as half a second of the answer has sounded, and silence until that is answered."""
    saying = deque([shipped_lines()[0].samples, shipped_lines()[3].samples])
    sound, spoken = saying.popleft(), 0
    for _ in range(PATIENCE_PACKETS):
        packet = sound[spoken : spoken + PACKET_SAMPLES]
        spoken += PACKET_SAMPLES
        yield np.pad(packet, (0, PACKET_SAMPLES - len(packet)))
        await asyncio.sleep(0.004)  # a microphone gives nothing at once
        speaker.play()
        if saying and speaker.position > 8000:
            sound, spoken = saying.popleft(), 0
            begun = speaker.position
        elif not saying and spoken > len(sound) + 16000 and speaker.position > begun + 8000 and speaker.empty:
            return
    raise AssertionError("nobody answered")


def test_the_readme_conversation_runs_as_written() -> None:
    section = README.read_text(encoding="utf-8").split("\n## Conversations of your own\n")[1].split("\n## ")[0]
    (snippet,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    speaker = Speaker()
    names: dict = {"speaker": speaker, "microphone": speak(speaker)}
    exec(snippet, names)
    asyncio.run(asyncio.wait_for(names["main"](), 60))
    assert speaker.told[:1] == ["pause"] and "clear" in speaker.told
    assert np.abs(np.concatenate(speaker.heard)).max() > 0.05
