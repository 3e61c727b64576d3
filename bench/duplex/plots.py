"""Pictures of a run: how long people wait, what they could still hear, where the time goes, and what an hour leaves."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from spiritrt.bench.duplex.figures import Goals, counted
from spiritrt.extras import install

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Place = Literal["best", "lower right", "upper right", "upper left"]
# blue to red, distinguishable without colour vision by lightness
COLOURS = ("#2166ac", "#e08214", "#1b7837", "#b2182b", "#762a83", "#4d4d4d", "#01665e", "#8c510a")
STAGE_COLOURS = {"hear": "#92c5de", "encode": "#2166ac", "prefill": "#1b7837", "decode": "#e08214", "vocode": "#b2182b"}
MEASURED = (
    ("end_of_turn_to_audio", "end of turn decided \N{RIGHTWARDS ARROW} first audio"),
    ("barge_in_to_silence", "barge-in decided \N{RIGHTWARDS ARROW} silence"),
    ("resume", "false alarm decided \N{RIGHTWARDS ARROW} sounds again"),
)


def latencies(records: Sequence[dict], goals: Goals, title: str) -> bytes:
    """Share of the occurrences that took at most so long, a line for each number of sessions. A PNG."""
    figure, axes = _figure(1, 3, 13, 4)
    limits: dict[str, tuple[tuple[str, float], ...]] = {
        "end_of_turn_to_audio": (("goal, p50", goals.first_audio_p50), ("goal, p99", goals.first_audio_p99)),
        "barge_in_to_silence": (("goal, p99", goals.silence_p99),),
    }
    for axis, (name, what) in zip(axes, MEASURED, strict=True):
        for number, record in enumerate(records):
            _shares(axis, record["values_ms"][name], COLOURS[number % len(COLOURS)], _sessions(record))
        for style, (label, limit) in zip(("--", ":"), limits.get(name, ()), strict=False):
            axis.axvline(limit, color="black", linewidth=1, linestyle=style, label=label)
        axis.set(title=what, xlabel="ms", ylim=(0, 1.02))
        axis.set_xlim(left=0)
        _legend(axis, "lower right")
    axes[0].set_ylabel("share of the occurrences")
    return _png(figure, title)


def sound_and_time(records: Sequence[dict]) -> bytes:
    """What was left to hear when a packet came, and where the engine thread's time goes. A PNG."""
    figure, (left, right) = _figure(1, 2, 13, 4)
    for number, record in enumerate(records):
        missed = record["deadline_misses"]
        label = f"{_sessions(record)}: {missed} missed" if missed else _sessions(record)
        _shares(left, record["values_ms"]["lead"], COLOURS[number % len(COLOURS)], label)
    left.set(title="sound still there when a packet came", xlabel="ms", ylabel="share of the packets", ylim=(0, 1.02))
    left.set_xlim(left=0)
    _legend(left, "upper left")
    places = range(len(records))
    below = [0.0] * len(records)
    for stage, colour in STAGE_COLOURS.items():
        shares = [record["stages"].get(stage, 0.0) for record in records]
        right.bar(places, shares, 0.6, bottom=below, color=colour, label=stage)
        below = [a + b for a, b in zip(below, shares, strict=True)]
    right.axhline(1.0, color="black", linewidth=1, linestyle="--")
    right.set_xticks(list(places), [str(record["sessions"]) for record in records])
    right.set(title="the engine thread's time", xlabel="sessions", ylabel="share of the time")
    right.set_xlim(-0.7, max(len(records), 4) - 0.3)
    _legend(right, "upper right")
    return _png(figure)


def limit(records: Sequence[dict], goals: Goals) -> bytes:
    """Latencies and misses over the number of sessions. A PNG."""
    figure, (left, right) = _figure(1, 2, 13, 4)
    at = [record["sessions"] for record in records]
    for number, (name, label) in enumerate(
        (("end_of_turn_to_audio_ms", "first audio"), ("barge_in_to_silence_ms", "silence"), ("resume_ms", "resume"))
    ):
        for part, style in (("p50", "--"), ("p99", "-")):
            left.plot(
                at, [record[name][part] for record in records], style, marker="o", markersize=4,
                color=COLOURS[number], label=f"{label} {part}",
            )  # fmt: skip
    left.axhline(goals.first_audio_p99, color="black", linewidth=1, linestyle=":", label="goal, first audio p99")
    left.set(title="latencies", xlabel="sessions", ylabel="ms", yscale="log")
    _legend(left, "best")
    right.plot(at, [record["busy"] for record in records], marker="o", color=COLOURS[0], label="engine thread busy")
    right.axhline(1.0, color="black", linewidth=1, linestyle="--")
    right.set(title="what breaks", xlabel="sessions", ylabel="share of the time")
    right.set_ylim(bottom=0)
    misses = right.twinx()
    misses.bar(at, [record["deadline_misses"] for record in records], 0.4, color=COLOURS[3], alpha=0.6)
    misses.set_ylabel("deadline misses", color=COLOURS[3])
    misses.set_ylim(0, max(1, *(record["deadline_misses"] for record in records)))
    misses.locator_params(axis="y", integer=True)
    _legend(right, "upper left")
    return _png(figure)


def soak(result: dict) -> bytes:
    """Memory, pages and calls over the time. A PNG."""
    figure, (left, right) = _figure(1, 2, 13, 4)
    samples = result["samples"]
    minutes = [sample["at_s"] / 60 for sample in samples]
    left.plot(minutes, [sample["rss_mb"] for sample in samples], color=COLOURS[0])
    left.set(title="memory of the process", xlabel="minutes", ylabel="MB")
    left.set_ylim(bottom=0)
    right.plot(minutes, [sample["free_pages"] for sample in samples], color=COLOURS[2], label="pages free")
    right.axhline(result["pages"]["before"], color="black", linewidth=1, linestyle=":", label="before")
    right.set(title="pages of the cache, and misses", xlabel="minutes", ylabel="pages")
    right.set_ylim(bottom=0)
    misses = right.twinx()
    misses.step(minutes, [sample["misses"] for sample in samples], where="post", color=COLOURS[3])
    misses.set_ylabel("deadline misses so far", color=COLOURS[3])
    misses.set_ylim(0, max(1, *(sample["misses"] for sample in samples)))
    misses.locator_params(axis="y", integer=True)
    _legend(right, "lower right")
    return _png(figure)


def _figure(rows: int, columns: int, width: float, height: float) -> "tuple[Figure, list[Axes]]":
    try:
        import matplotlib
    except ImportError as error:
        raise ValueError(f"pictures need matplotlib: {install('bench')}") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(rows, columns, figsize=(width, height), squeeze=False)
    flat = [axis for row in axes for axis in row]
    for axis in flat:
        axis.grid(alpha=0.3)
    return figure, flat


def _shares(axis: "Axes", values: Sequence[float], colour: str, label: str) -> None:
    """The distribution of the values as a rising line."""
    ordered = sorted(values)
    if not ordered:
        return
    axis.step(
        [0.0, *ordered], [n / len(ordered) for n in range(len(ordered) + 1)], where="post", color=colour, label=label
    )


def _legend(axis: "Axes", place: Place) -> None:
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8, loc=place)


def _sessions(record: dict) -> str:
    return counted(record["sessions"], "session")


def _png(figure: "Figure", title: str = "") -> bytes:
    from matplotlib import pyplot

    if title:
        figure.suptitle(title)
    figure.tight_layout()
    file = io.BytesIO()
    figure.savefig(file, dpi=100)
    pyplot.close(figure)
    return file.getvalue()
