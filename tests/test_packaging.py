"""What a plain install holds: modules of every folder, the shipped weights and the recordings."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from spiritrt.extras import install

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
    for folder, target in (
        ("models/nano", "weights/nano"),
        ("models/nano-expressive", "weights/nano-expressive"),
        ("runtime/duplex/recordings", "duplex/recordings"),
    ):
        shipped = {path.name for path in (REPOSITORY / folder).iterdir()}
        assert shipped and shipped == {path.name for path in (package / target).iterdir()}


def test_extras_that_messages_ask_for_exist() -> None:
    sources = [
        source for folder in ("runtime", "bench", "evaluation") for source in (REPOSITORY / folder).rglob("*.py")
    ]
    asked = {extra for source in sources for extra in re.findall(r"\binstall\([\"'](\w+)", source.read_text())}
    assert asked >= {"eval", "pitch"} and asked <= set(metadata.metadata("spiritrt").get_all("Provides-Extra"))
    assert install("eval").startswith("pip install 'spiritrt[eval]' (in a clone: ")
