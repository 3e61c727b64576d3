"""spiritrt: Spirit LM that listens and speaks at once, in real time.

`load` gives a `SpiritLM` that continues, transcribes, speaks and scores prompts of `Text` and `Speech`.
"""

from spiritrt.generate import SpiritLM, load
from spiritrt.items import Classification, LogProbs, Output, Speech, Text
from spiritrt.models.checkpoints import CheckpointError
from spiritrt.sampling import GREEDY, Sampling
from spiritrt.stopping import Stop
from spiritrt.tokens.units import Units

__all__ = [
    "GREEDY",
    "CheckpointError",
    "Classification",
    "LogProbs",
    "Output",
    "Sampling",
    "Speech",
    "SpiritLM",
    "Stop",
    "Text",
    "Units",
    "load",
]
__version__ = "0.1.0"
