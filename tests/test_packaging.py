"""What a plain install holds: modules of every folder, the shipped weights and the recordings."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def test_a_plain_install_has_what_talk_needs(tmp_path: Path) -> None:
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, timeout=120)
    package = tmp_path / "spiritrt"
    for folder in ("runtime", "training", "bench"):
        for source in (REPOSITORY / folder).rglob("*.py"):
            name = source.relative_to(REPOSITORY / folder)
            assert (package / ("" if folder == "runtime" else folder) / name).is_file(), name
    assert (package / "py.typed").is_file()
    for folder, target in (("models/nano", "weights/nano"), ("runtime/duplex/recordings", "duplex/recordings")):
        shipped = {path.name for path in (REPOSITORY / folder).iterdir()}
        assert shipped and shipped == {path.name for path in (package / target).iterdir()}
