"""All checks of kernels and engine on a CUDA machine, then the benches, in under 9 minutes: `make gpu-check`.

    python -m spiritrt.bench.gpu_check [--minutes 8.5] [--out bench/results]

Every check runs, whatever the one before it found; what failed is named at the end, and the exit status is 1. Results
go to `<out>/<gpu>/`: `check.json`, `kernels.jsonl`, `roofline.png`, `decode.json`, `duplex.json`. It needs torch,
Triton, pytest, hypothesis and the package itself, installed in the repository (`pip install --no-build-isolation
--no-deps -e .`, and `soundfile` and `soxr` where they are missing). `--device cpu --shape tiny` tries the check itself
on a CPU, with few ops.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spiritrt.bench.environment import environment
from spiritrt.bench.shapes import preset
from spiritrt.engine.engine import Engine
from spiritrt.engine.forward import OPS
from spiritrt.engine.steps import Row
from spiritrt.engine.weights import ModelWeights, pack, random_tensors, unpack
from spiritrt.kernels import registry
from spiritrt.models.llama import LlamaConfig
from spiritrt.sampling import Sampling

REPOSITORY = Path(__file__).resolve().parents[1]
GOLDEN = REPOSITORY / "tests" / "data" / "golden" / "checkpoints" / "spiritlm_model"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TESTS = tuple(REPOSITORY / "tests" / name for name in ("kernels", "engine", "duplex/test_step_graphs.py"))
TESTS_SECONDS = 180  # of the budget, at most
KERNELS_SHARE, DECODE_SHARE = 0.3, 0.6  # of what is left then, each; conversations have the rest
LOADING_SECONDS = 40  # of a language model and its graphs
ENDING_SECONDS = 20  # to start a bench, and to write its results
OTHERS = 31
GREEDY_TOKENS, STEPS = 32, 16

Drawn = list[tuple[int, float]]  # ids and log-probabilities


@dataclass(frozen=True, slots=True)
class Outcome:
    """One check: `failure` says what is wrong, and is None where nothing is; `note` is worth knowing all the same."""

    name: str
    seconds: float
    failure: str | None
    note: str = ""


class Failure(Exception):
    """A check has found something."""


@dataclass(frozen=True, slots=True)
class Check:
    """Where to check and for how long."""

    device: str
    shape: str
    out: Path
    minutes: float
    tests: tuple[Path, ...]

    def __post_init__(self) -> None:
        if self.minutes <= 0:
            raise ValueError(f"minutes must be above 0, got {self.minutes}")

    @property
    def cuda(self) -> bool:
        return self.device.startswith("cuda")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs everything; 0 where nothing failed."""
    parser = argparse.ArgumentParser(prog="python -m spiritrt.bench.gpu_check", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the check itself")
    parser.add_argument("--shape", default="7b", help="of the weights of checks and benches: 7b, nano, tiny")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "bench" / "results")
    parser.add_argument("--minutes", type=float, default=8.5, help="for all of it")
    parser.add_argument("--tests", type=Path, nargs="*", default=TESTS, help="what pytest is to run on the device")
    given = parser.parse_args(arguments)
    if given.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"device {given.device!r} cannot be used: torch sees no CUDA device")
    name = registry.gpu_name() if given.device != "cpu" else "cpu"
    check = Check(given.device, given.shape, given.out / name, given.minutes, tuple(given.tests))
    began = time.monotonic()
    outcomes = run(check, began)
    check.out.mkdir(parents=True, exist_ok=True)
    report = {
        "environment": environment(torch.device(check.device)), "shape": check.shape,
        "seconds": round(time.monotonic() - began, 1), "checks": [asdict(outcome) for outcome in outcomes],
    }  # fmt: skip
    (check.out / "check.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    failed = [outcome for outcome in outcomes if outcome.failure is not None]
    for outcome in failed:
        print(f"FAILED {outcome.name}: {outcome.failure}")
    print(f"{len(outcomes) - len(failed)} of {len(outcomes)} checks passed in {report['seconds']} s; see {check.out}")
    return 1 if failed else 0


def run(check: Check, began: float) -> list[Outcome]:
    """All checks, one after the other."""
    until = began + 60 * check.minutes
    torch.set_num_threads(1 if check.device == "cpu" else torch.get_num_threads())
    config = replace(preset(check.shape).config, num_hidden_layers=2, max_position_embeddings=512)
    steps: list[tuple[str, Callable[[], str | None]]] = [
        ("kernels and engine against their references (pytest)", lambda: tests(check)),
        *((f"greedy as on the CPU: {folder.name}", partial(greedy, check, folder)) for folder in golden_models()),
    ]
    for weights, cache in formats(check):
        steps.append((f"graph as eager: {weights}, cache {cache}", partial(graph, check, config, weights, cache)))
        steps.append(
            (f"same bits beside others: {weights}, cache {cache}", partial(alone, check, config, weights, cache))
        )
    steps.append(("bench kernels", lambda: kernels(check, until)))
    steps.append(("bench decode", lambda: decode(check, until)))
    steps.append(("bench duplex", lambda: duplex(check, until)))
    outcomes = []
    for name, step in steps:
        print(f"... {name}", flush=True)
        started, failure, note = time.monotonic(), None, None
        try:
            note = step()
        except Failure as error:
            failure = str(error)
        except Exception as error:  # a check that breaks has failed, and the rest still says something
            failure = f"{type(error).__name__}: {error}"
        outcomes.append(Outcome(name, round(time.monotonic() - started, 1), failure, note or ""))
        print(
            f"{'ok' if failure is None else 'FAILED'}  {name}  {outcomes[-1].seconds} s  {failure or note or ''}",
            flush=True,
        )
    return outcomes


def tests(check: Check) -> str:
    """The repository's own tests, whose kernels run on the device where there is one, and not in the interpreter."""
    seconds = min(TESTS_SECONDS, 60 * check.minutes * 0.4)
    # kernels compile where they are first launched: in as many processes as there are, where there are many cores
    spread = ["-n", "8"] if check.cuda and importlib.util.find_spec("xdist") is not None else []
    command = [sys.executable, "-m", "pytest", "--tb=line", "-p", "no:cacheprovider", *spread, *map(str, check.tests)]
    return next(line for line in reversed(subprocess_output(command, seconds).splitlines()) if " passed" in line)


def golden_models() -> list[Path]:
    """Folders of golden language models."""
    return sorted(folder for folder in GOLDEN.iterdir() if (folder / "weights.npz").is_file())


def golden_tensors(folder: Path) -> dict[str, Tensor]:
    """The bf16 weights that `tests/data/shrink_golden.py` stored; embedding rows left out are random, head rows 0."""
    arrays = dict(np.load(folder / "weights.npz"))
    rows = torch.from_numpy(arrays.pop("rows"))
    head_rows = arrays.pop("head_rows", None)
    tensors: dict[str, Tensor] = {}
    for name, planes in arrays.items():
        raw = np.ascontiguousarray(np.moveaxis(planes, 0, -1))
        tensors[name] = torch.from_numpy(raw).view(torch.bfloat16).squeeze(-1)
    if head_rows is not None:
        whole = torch.zeros(int(head_rows[-1]) + 1, tensors[HEAD].shape[1], dtype=torch.bfloat16)
        whole[torch.from_numpy(head_rows)] = tensors[HEAD]
        tensors[HEAD] = whole
    embedding = torch.randn(tensors[HEAD].shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    embedding[rows] = tensors[EMBEDDING]
    return tensors | {EMBEDDING: embedding}


def golden_weights(folder: Path, device: str) -> ModelWeights:
    """A golden language model in float32."""
    config = LlamaConfig.from_official(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    tensors = {name: tensor.float() for name, tensor in golden_tensors(folder).items()}
    return unpack(config, pack(config, tensors.items(), "fp32", device), torch.float32)


def greedy(check: Check, folder: Path) -> str:
    """Greedy tokens of the device's engine against those of plain torch on the CPU, both in float32."""
    plain = Engine(golden_weights(folder, "cpu"), 1, 512, kernels=dict.fromkeys(OPS, "torch"), progress=False)
    prompt = tuple(
        torch.randint(3, plain.config.vocab_size, (40,), generator=torch.Generator().manual_seed(3)).tolist()
    )
    expected = draw(plain, prompt, Sampling(0.0), GREEDY_TOKENS)
    engine = Engine(golden_weights(folder, check.device), 1, 512, progress=False)
    found = draw(engine, prompt, Sampling(0.0), GREEDY_TOKENS)
    same = [a[0] == b[0] for a, b in zip(found, expected, strict=True)]
    if not all(same):
        raise Failure(f"token {same.index(False)} of {len(same)} is another: {found[same.index(False)]}")
    off = max(abs(a[1] - b[1]) for a, b in zip(found, expected, strict=True))
    return f"{len(same)} tokens, log-probabilities within {off:.1e}; {variants_of(engine)}"


def formats(check: Check) -> list[tuple[str, str]]:
    """Weights and cache that are checked."""
    if not check.cuda:
        return [("fp32", "fp32"), ("int8", "bf16")]
    fp8 = torch.cuda.get_device_capability(check.device) >= (8, 9)
    return [("bf16", "bf16"), ("int8", "bf16"), *([("fp8", "fp8")] if fp8 else [])]


def random_engine(check: Check, config: LlamaConfig, weights: str, cache: str, graphs: bool) -> Engine:
    """Two layers of the shape with random weights, for 32 rows."""
    dtype = torch.bfloat16 if check.cuda else torch.float32
    packed = pack(config, random_tensors(config, dtype, check.device), weights, check.device)
    return Engine(
        unpack(config, packed, dtype), OTHERS + 1, (OTHERS + 1) * 512, cache=cache, graphs=graphs,
        buckets=(1, OTHERS + 1) if graphs else (), progress=False,
    )  # fmt: skip


def graph(check: Check, config: LlamaConfig, weights: str, cache: str) -> str:
    """A sampled sequence with graphs and without: the same ids and the same bits."""
    if not check.cuda:
        return "not checked: a CPU has no graphs"
    prompt = tuple(range(5, 75))
    eager, replayed = (
        draw(random_engine(check, config, weights, cache, graphs), prompt, Sampling(seed=7), STEPS)
        for graphs in (False, True)
    )
    return equal(eager, replayed)


def alone(check: Check, config: LlamaConfig, weights: str, cache: str) -> str:
    """A sampled sequence alone and among 31 others of other lengths: the same ids and the same bits."""
    engine = random_engine(check, config, weights, cache, check.cuda)
    prompt = tuple(range(5, 75))
    by_itself = draw(engine, prompt, Sampling(seed=7), STEPS)
    others = [tuple(range(9, 10 + (3 * n) % 97)) for n in range(OTHERS)]
    return f"{equal(by_itself, draw(engine, prompt, Sampling(seed=7), STEPS, others))}; {variants_of(engine)}"


def draw(
    engine: Engine, prompt: tuple[int, ...], sampling: Sampling, count: int, others: Sequence[tuple[int, ...]] = ()
) -> Drawn:
    """`count` tokens after the prompt, with log-probabilities over the whole vocabulary; `others` go beside it."""
    prompts = [*others[: len(others) // 2], prompt, *others[len(others) // 2 :]]
    mine = len(others) // 2
    slots = [engine.open() for _ in prompts]
    for place, slot in enumerate(slots):
        engine.set_sampling(slot, sampling if place == mine else replace(sampling, seed=place), 0, full_logprobs=True)
    drawn: Drawn = []
    rows = [Row(slot, ids) for slot, ids in zip(slots, prompts, strict=True)]
    for _ in range(count):
        step = engine.step(rows)
        drawn.append((step.ids[mine], step.logprobs[mine]))
        rows = [Row(slot) for slot in slots]
    for slot in slots:
        engine.close(slot)
    return drawn


def equal(first: Drawn, second: Drawn) -> str:
    """Raises Failure where ids or bits differ."""
    for position, (a, b) in enumerate(zip(first, second, strict=True)):
        if a != b:
            raise Failure(f"token {position}: id {a[0]} at {a[1]!r} and id {b[0]} at {b[1]!r}")
    return f"{len(first)} tokens"


def kernels(check: Check, until: float) -> str:
    """`spiritrt bench kernels`; a variant that is wrong fails the check."""
    seconds = KERNELS_SHARE * (until - time.monotonic() - ENDING_SECONDS)
    file = check.out / "kernels.jsonl"
    files = ["--json", str(file), "--plot", str(check.out / "roofline.png")]
    few = [] if check.cuda else ["--op", "rms_norm", "--op", "sampling", "--repeats", "5"]
    spiritrt(check, ["kernels", "--preset", check.shape, *files, *few], seconds, until)
    head, *results = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return f"{len(results)} variants and shapes; {len(head['not_measured'])} shapes not measured"


def decode(check: Check, until: float) -> str:
    """`spiritrt bench decode`; what does not fit in memory is no failure."""
    seconds = DECODE_SHARE * (until - time.monotonic() - ENDING_SECONDS)
    file = check.out / "decode.json"
    arguments = ["decode", "--shape", check.shape, "--json", str(file)]
    spiritrt(check, arguments if check.cuda else [*arguments, "--no-compare"], seconds, until)
    report = json.loads(file.read_text(encoding="utf-8"))
    timed = sum("p50" in cell for cell in report["cells"])
    return f"{timed} of {len(report['cells']) + len(report['not_measured'])} cells timed"


def duplex(check: Check, until: float) -> str:
    """`spiritrt bench duplex`: conversations with random weights of the shape; how many are held is no failure."""
    left = until - time.monotonic() - ENDING_SECONDS
    counts = ["1", "32", "64", "128"] if check.cuda else ["1"]
    seconds = max(5.0, (left - LOADING_SECONDS) / len(counts)) if check.cuda else 4.0
    file = check.out / "duplex.json"
    talk = ["--sessions", ",".join(counts), "--seconds", f"{seconds:.0f}", "--activity", "energy"]
    room = ["--context", "1024" if check.cuda else "400", "--max-reply", "6", *([] if check.cuda else ["--simulated"])]
    spiritrt(check, ["duplex", "--shape", check.shape, *talk, *room, "--json", str(file)], left, until)
    report = json.loads(file.read_text(encoding="utf-8"))
    first = report["summary"]["end_of_turn_to_audio_ms"]
    return f"{report['summary']['sessions_held']} of {counts[-1]} sessions held, first audio p50 {first['p50']} ms"


def spiritrt(check: Check, arguments: Sequence[str], seconds: float, until: float) -> None:
    """Runs a bench that has so many seconds, in a process of its own, which must end a little after them."""
    if seconds <= 0:
        raise Failure("no time was left")
    command = [sys.executable, "-W", "ignore", "-c", "from spiritrt.cli import main; main()", "bench", *arguments]
    timing = ["--device", check.device, "--minutes", f"{seconds / 60:.3f}"]
    output = subprocess_output([*command, *timing], max(until - time.monotonic(), seconds) + ENDING_SECONDS)
    print(output, flush=True)


def subprocess_output(command: Sequence[str], seconds: float) -> str:
    """Standard output of a command. Raises Failure with the end of it where it fails or takes longer."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, env=environment, cwd=REPOSITORY, check=False
        )
    except subprocess.TimeoutExpired as error:
        shown = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else error.stdout or ""
        raise Failure(f"not done after {seconds:.0f} s; the end of its output: {shown[-2000:]}") from error
    if done.returncode:
        raise Failure(f"exit status {done.returncode}; the end of its output: {(done.stdout + done.stderr)[-4000:]}")
    return done.stdout


def variants_of(engine: Engine) -> str:
    """Which variant runs each op."""
    return ", ".join(f"{op} {name}" for op, name in engine.kernels.names.items())


if __name__ == "__main__":
    sys.exit(main())
