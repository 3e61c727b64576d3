"""VocoderStream given what it must refuse, and driven by threads."""

import threading

import pytest
from stream_rigs import VocoderRig

from spiritrt.duplex.streams import VocoderStream
from spiritrt.models.vocoder import Vocoder


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("plain", ([3, 21],), "units 21 at position 1 is out of range: this vocoder knows 0..20"),
        ("plain", ([-1],), "units -1 at position 0 is out of range"),
        ("plain", ([1], [2]), "takes no pitch codes"),
        ("plain", ([1], None, [2]), "takes no style codes"),
        ("expressive", ([1],), "needs pitch codes"),
        ("expressive", ([1], [64], [0]), "pitch 64 at position 0 is out of range"),
        ("expressive", ([1, 2], [1], [0, 0]), "pitch has 1 codes for 2 units"),
        ("plain", ([1] * 33,), "slot 0 would hold 33 units: its limit is 32"),
        ("plain", ([1], None, None, [0]), "a unit lasts from 1 to 1000000 frames, got 0"),
        ("plain", ([1], None, None, [1, 1]), "frames has 2 durations for 1 units"),
    ],
)
def test_bad_input_is_named_and_touches_no_slot(
    vocoders: dict[str, Vocoder], kind: str, arguments: tuple, message: str
) -> None:
    rig = VocoderRig(vocoders[kind], 2, max_units=32)
    rig.accept(1, 5)
    with pytest.raises(ValueError, match=message):
        rig.stream.accept(0, *arguments)
    rig.accept(0, 3)
    rig.check(rig.finish(1))
    rig.check(rig.finish(0))


def test_misuse_of_slots_is_named(vocoders: dict[str, Vocoder]) -> None:
    stream = VocoderStream(vocoders["plain"], 2)
    slot = stream.open()
    for call in (stream.flush, stream.reset, stream.close):
        with pytest.raises(ValueError, match="slot 1 is not open"):
            call(1)
    with pytest.raises(ValueError, match=r"slot 7 does not exist: this stream has slots 0..1"):
        stream.accept(7, [1])
    with pytest.raises(ValueError, match="speaker 4 is out of range"):
        stream.open(speaker=4)
    stream.open()
    with pytest.raises(ValueError, match="all 2 slots are open"):
        stream.open()
    stream.accept(slot, [1], frames=[2])
    with pytest.raises(ValueError, match="slot 0 began with given durations"):
        stream.accept(slot, [1])
    stream.flush(slot)
    with pytest.raises(ValueError, match="slot 0 was flushed"):
        stream.accept(slot, [1], frames=[2])
    with pytest.raises(ValueError, match="speaker 9 is out of range: this vocoder has 4"):
        stream.set_speaker(slot, 9)


def test_settings_are_checked(vocoders: dict[str, Vocoder]) -> None:
    for options, message in (
        ({"slots": 0}, "slots must be from 1 to 4096, got 0"),
        ({"chunk_frames": 0}, "chunk_frames must be at least 1"),
        ({"max_units": 0}, "max_units must be at least 1, got 0"),
        ({"look_ahead_frames": -1}, "look_ahead_frames must not be negative, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            VocoderStream(vocoders["plain"], **options)  # type: ignore[arg-type]


def test_a_second_thread_inside_a_stream_gets_an_error_and_the_first_goes_on(vocoders: dict[str, Vocoder]) -> None:
    rig = VocoderRig(vocoders["nano"], 1)
    rig.accept(0, 400)
    refusals: list[str] = []
    stop = threading.Event()

    def intrude() -> None:
        while not stop.is_set():
            try:
                rig.stream.ready()
            except RuntimeError as error:
                refusals.append(str(error))

    intruder = threading.Thread(target=intrude)
    intruder.start()
    try:
        for _ in range(2000):
            try:
                rig.step()
            except RuntimeError as error:
                refusals.append(str(error))
            if refusals and len(rig.turns[0].samples) > 16000:
                break
    finally:
        stop.set()
        intruder.join()
    assert refusals
    assert set(refusals) == {
        "another thread is inside this VocoderStream: one stream is driven by one thread at a time"
    }
    rig.check(rig.finish(0))


def test_two_threads_drive_two_streams(vocoders: dict[str, Vocoder]) -> None:
    rigs = [VocoderRig(vocoders["plain"], 2, seed) for seed in range(2)]
    failures: list[BaseException] = []

    def drive(rig: VocoderRig) -> None:
        try:
            for count in (3, 1, 8, 5):
                for slot in rig.turns:
                    rig.accept(slot, count)
                    rig.step()
            for slot in list(rig.turns):
                rig.check(rig.finish(slot))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=drive, args=(rig,)) for rig in rigs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
