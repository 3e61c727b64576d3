"""Voice activity by silero-vad's small network, with the weights that its package bundles, on onnxruntime.

github.com/snakers4/silero-vad (MIT). Its Python code is not used: that imports torchaudio in places where the network
itself needs none. A window of 32 ms takes 0.2 ms on one core.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from spiritrt.audio import RATE_HZ, Samples
from spiritrt.duplex.turns import Activity

WINDOW = 512
CONTEXT = 64  # samples before a window that the network sees
INSTALL = "pip install onnxruntime && pip install --no-deps silero-vad"


class SileroActivity:
    """See `ActivityDetector`; the network is shared, its state is this session's."""

    window_samples = WINDOW

    def __init__(self, network: "Network") -> None:
        self._network = network
        self._state = np.zeros((2, 1, 128), np.float32)
        self._sound = np.zeros((1, CONTEXT + WINDOW), np.float32)

    def accept(self, window: Samples) -> float:
        """See `ActivityDetector`."""
        self._sound[0, :CONTEXT] = self._sound[0, -CONTEXT:]
        self._sound[0, CONTEXT:] = window
        probability, self._state = self._network(self._sound, self._state)
        return probability


class Network:
    """The loaded network."""

    def __init__(self, file: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._rate = np.array(RATE_HZ, np.int64)

    def __call__(self, sound: np.ndarray, state: np.ndarray) -> tuple[float, np.ndarray]:
        probabilities, state = self._session.run(None, {"input": sound, "state": state, "sr": self._rate})
        return float(probabilities[0, 0]), state


@cache
def silero_activity() -> Activity:
    """Makes detectors, one a session. Raises ValueError where silero-vad or onnxruntime is not installed."""
    missing = [name for name in ("onnxruntime", "silero_vad") if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"activity 'silero' needs {' and '.join(missing)}: {INSTALL}; or choose TurnConfig(activity='energy')"
        )
    spec = find_spec("silero_vad")
    assert spec is not None and spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0]) / "data"
    for name in ("silero_vad_16k_op15.onnx", "silero_vad.onnx"):
        if (folder / name).is_file():
            network = Network(folder / name)
            return lambda: SileroActivity(network)
    raise ValueError(f"{folder} holds no silero_vad.onnx: this silero-vad is not one of version 5 or 6 ({INSTALL})")
