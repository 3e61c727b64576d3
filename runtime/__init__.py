"""spiritrt: Spirit LM that listens and speaks at once, in real time.

`load` gives a `SpiritLM` that continues, transcribes, speaks and scores prompts of `Text` and `Speech`. A `Runtime`
talks with people, many at once.
"""

from spiritrt.duplex.config import EchoConfig, SessionConfig, TurnConfig
from spiritrt.duplex.costs import Busy
from spiritrt.duplex.runtime import Runtime
from spiritrt.generate import SpiritLM, load
from spiritrt.items import Classification, LogProbs, Output, Speech, Text
from spiritrt.models.checkpoints import CheckpointError
from spiritrt.sampling import GREEDY, Sampling
from spiritrt.stopping import Stop
from spiritrt.tokens.units import Units

__all__ = [
    "GREEDY",
    "Busy",
    "CheckpointError",
    "Classification",
    "EchoConfig",
    "LogProbs",
    "Output",
    "Runtime",
    "Sampling",
    "SessionConfig",
    "Speech",
    "SpiritLM",
    "Stop",
    "Text",
    "TurnConfig",
    "Units",
    "load",
]
__version__ = "0.1.0"
