"""Recordings in LibriSpeech's folders."""

from pathlib import Path

import pytest
from stand_ins import tone


@pytest.fixture
def librispeech(tmp_path: Path) -> Path:
    """Five utterances of two speakers in LibriSpeech's folders."""
    for speaker, count in (("84", 3), ("1272", 2)):
        chapter = tmp_path / "test-clean" / speaker / "7"
        lines = []
        for number in range(count):
            name = f"{speaker}-7-{number:04d}"
            tone(chapter / f"{name}.flac", 100 + 40 * number, 0.4)
            lines.append(f"{name} {' '.join(['GOOD'] * (number + 1))}\n")
        (chapter / f"{speaker}-7.trans.txt").write_text("".join(lines))
    return tmp_path
