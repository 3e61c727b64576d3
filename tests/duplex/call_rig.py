"""Calls on a scheduler in virtual time: scripted sound goes in, a loudspeaker plays what comes out."""

import random
from collections.abc import Sequence

import numpy as np

from spiritrt.duplex.call import Call
from spiritrt.duplex.client import PACKET_SAMPLES, Loudspeaker
from spiritrt.duplex.clock import VirtualClock
from spiritrt.duplex.events import AudioOut, Event
from spiritrt.duplex.scheduler import Scheduler


class Caller:
    """One client: what it says, packet by packet, and what it got."""

    def __init__(self, call: Call, sound: np.ndarray) -> None:
        self.call = call
        self.acknowledges = True
        self.events: list[Event] = []
        self.loudspeaker = Loudspeaker()
        self._sound = sound
        self._packet = 0

    @property
    def over(self) -> bool:
        return bool(self.call.closed) or self._packet * PACKET_SAMPLES >= len(self._sound)

    def tick(self) -> None:
        """Sends a packet and reports what has been played."""
        self.take()
        if self.over:
            return
        packet = self._sound[self._packet * PACKET_SAMPLES : (self._packet + 1) * PACKET_SAMPLES]
        self._packet += 1
        if self.acknowledges:
            self.call.played(self.loudspeaker.position)
        self.call.send(packet)
        self.play()

    def play(self) -> None:
        """The loudspeaker plays a packet."""
        self.loudspeaker.tick()

    def take(self) -> None:
        for event in self.call.take_events():
            self.events.append(event)
            self.loudspeaker.take(event)

    @property
    def pcm(self) -> np.ndarray:
        packets = [event.pcm for event in self.events if isinstance(event, AudioOut)]
        return np.concatenate([np.zeros(0, np.float32), *packets])

    def kinds(self) -> list[str]:
        """Names of the events, sound and text left out."""
        return [name for event in self.events if (name := type(event).__name__) not in ("AudioOut", "TextOut")]


def run(
    scheduler: Scheduler, clock: VirtualClock, callers: Sequence[Caller], slow: random.Random | None = None
) -> None:
    """Runs calls to the end of their sound; on a `slow` machine some packets find no time for work, or little."""
    while not all(caller.over for caller in callers):
        clock.advance_to(clock() + PACKET_SAMPLES / 16000)
        for caller in callers:
            caller.tick()
        if slow is None:
            scheduler.settle()
        else:
            for _ in range(slow.choice((0, 1, 4, 30))):
                scheduler.step()
    scheduler.settle()
    for caller in callers:
        caller.take()
