"""The two streams as the README shows them: what is written there runs, and does what it says."""

import re
from itertools import groupby
from pathlib import Path

import pytest
import torch
from torch import Tensor

import spiritrt
from spiritrt.models.hubert import encode_units
from spiritrt.models.vocoder import vocode_units

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def snippets() -> list[str]:
    section = README.read_text(encoding="utf-8").split("\n## Streams\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def test_readme_streams_run_in_ten_lines_each(
    snippets: list[str], nano: spiritrt.SpiritLM, speech: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    hearing, speaking = snippets
    assert all(len([line for line in snippet.splitlines() if line.strip()]) <= 10 for snippet in snippets)

    names: dict = {"spiritrt": spiritrt, "microphone": speech.split(320)}
    exec(hearing, names)
    offline = encode_units(nano.family.hubert, nano.family.quantizer, speech).tolist()
    printed = capsys.readouterr().out.splitlines()
    units = [int(unit) for line in printed for unit in line.split("[")[1].rstrip("]").split(", ")]
    while names["stream"].ready():
        units += [unit for packet in names["stream"].step() for unit in packet.units]
    assert len(units) == len(offline) and sum(a == b for a, b in zip(units, offline, strict=True)) > len(units) / 2

    kept = [unit for unit, _ in groupby(offline)]
    heard: list[Tensor] = []
    names |= {"deduplicated_units": kept, "loudspeaker": lambda samples: heard.append(torch.from_numpy(samples))}
    exec(speaking, names)
    assert sum(map(len, heard)) > 16000  # most of it came before the end
    while names["vocoder"].ready():
        heard += [packet.samples for packet in names["vocoder"].step()]
    expected = vocode_units(nano.family.vocoder, torch.tensor(kept), speaker=1)
    torch.testing.assert_close(torch.cat(heard), expected, atol=1e-5, rtol=0)
