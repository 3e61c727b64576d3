"""Roofline of a run: what each variant reached, under what the device can do."""

import math
from collections.abc import Sequence
from pathlib import Path

from spiritrt.bench.environment import Ceilings
from spiritrt.bench.kernels.run import Result

MARKERS = "osD^vPX*<>"


def roofline(results: Sequence[Result], limits: Ceilings, device: str, file: Path) -> None:
    """Operations a second over operations a byte, a colour an op and a marker a variant. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    right = [result for result in results if result.best is not None and result.flops]
    ops = list(dict.fromkeys(result.op for result in right))
    names = list(dict.fromkeys(result.variant for result in right))
    figure, axis = pyplot.subplots(figsize=(9, 6))
    for result in right:
        assert result.best is not None
        axis.plot(
            result.flops / result.bytes, result.flops / result.best.p50 / 1e3,
            MARKERS[names.index(result.variant) % len(MARKERS)], color=f"C{ops.index(result.op) % 10}", alpha=0.6,
        )  # fmt: skip
    most = max((result.flops / result.bytes for result in right), default=1.0)
    at = [2.0**exponent for exponent in range(-3, 2 + math.ceil(math.log2(most)))]
    axis.plot(at, [min(x * limits.bandwidth, limits.flops) / 1e9 for x in at], color="black", label="measured ceiling")
    for index, op in enumerate(ops):
        axis.plot([], [], "o", color=f"C{index % 10}", label=op)
    for index, name in enumerate(names):
        axis.plot([], [], MARKERS[index % len(MARKERS)], color="grey", label=name)
    axis.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="GFLOP/s", title=device)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
