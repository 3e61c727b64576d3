"""A call with files in the place of a microphone and a loudspeaker: a recording goes in, the answer comes out.

    python examples/call.py runtime/duplex/recordings/question.flac answer.wav

Both run packet by packet in real time, as sound cards do; what the session says is printed as it comes.
"""

import asyncio
import sys

import numpy as np

import spiritrt
from spiritrt.duplex.client import PACKET_SAMPLES, PATIENCE_S, Loudspeaker
from spiritrt.duplex.events import Closed, Error, Interrupted, ReplyEnded, SpeechStopped, TextOut

PACKET_S = PACKET_SAMPLES / spiritrt.audio.RATE_HZ


async def microphone(recording: np.ndarray, over: asyncio.Event):
    """Packets of the recording, then of silence until the reply has ended or none comes, each at its time."""
    clock = asyncio.get_running_loop().time
    begin = clock()
    most = (len(recording) / spiritrt.audio.RATE_HZ + PATIENCE_S) / PACKET_S
    number = 0
    while number < most and not over.is_set():
        packet = recording[number * PACKET_SAMPLES : (number + 1) * PACKET_SAMPLES]
        yield np.pad(packet, (0, PACKET_SAMPLES - len(packet)))
        number += 1
        await asyncio.sleep(begin + number * PACKET_S - clock())


async def call(runtime: spiritrt.Runtime, recording: np.ndarray) -> np.ndarray:
    """What the loudspeaker played while the recording was said and answered, float32 at 16 kHz."""
    speaker, over, sounded = Loudspeaker(), asyncio.Event(), []
    async with runtime.session() as session:

        async def listen() -> None:
            async for event in session.events():
                speaker.take(event)  # queues AudioOut.pcm, pauses at Ducked, goes on at Resumed, clears at Interrupted
                if isinstance(event, TextOut):
                    print(f"{event.source}: {event.text}")
                elif isinstance(event, SpeechStopped | Interrupted | ReplyEnded | Error):
                    print(event)
                if isinstance(event, ReplyEnded | Closed):
                    over.set()

        listening = asyncio.create_task(listen())
        async for packet in microphone(recording, over):
            await session.send(packet)
            sounded.append(speaker.tick())
            session.played(speaker.position)  # what has sounded: the session can only be cut where the client is
    await listening
    return np.concatenate(sounded)


async def main(source: str, out: str) -> None:
    async with spiritrt.Runtime("nano", sessions=1) as runtime:
        spiritrt.audio.save(out, await call(runtime, spiritrt.audio.load(source)))
    print(f"wrote {out}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python examples/call.py RECORDING ANSWER.wav")
    asyncio.run(main(*sys.argv[1:]))
