"""What is shown to users runs as it stands."""

import subprocess
import sys
from pathlib import Path

import numpy as np

import spiritrt

REPOSITORY = Path(__file__).parents[1]


def test_a_call_over_files(tmp_path: Path) -> None:
    question, answer = REPOSITORY / "runtime/duplex/recordings/question.flac", tmp_path / "answer.wav"
    command = [sys.executable, str(REPOSITORY / "examples/call.py"), str(question), str(answer)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("SpeechStopped(") and lines[1].startswith("heard: ") and lines[-1] == f"wrote {answer}"
    assert any(line.startswith("reply: ") for line in lines) and any("ReplyEnded(" in line for line in lines)
    assert np.abs(spiritrt.audio.load(answer)).max() > 0.05
