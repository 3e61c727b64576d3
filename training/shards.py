"""A corpus as speech units on disk, memory-mapped: raw frames of every kind, where each word begins, and the texts.

    python -m spiritrt.training.shards --corpus CORPUS --model nano --out build/shards/mine

A shard is a folder: `shard.json` (the version of every tokenizer that made it, counts), `Hu.npy` and in Expressive
`Pi.npy`, `St.npy` (all frames, uint16), their `offsets.npy`, `words.npy` (the time at which each word begins, s),
`word_offsets.npy`, `lines.jsonl` with `line_offsets.npy`. Frames are stored, not tokens: spans are cut and deduplicated
when a document is drawn. Reading with tokenizers of another version is an error.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from spiritrt.models.checkpoints import Checkpoint, find
from spiritrt.models.family import Family
from spiritrt.tokens.units import CODES_A_SECOND, Units
from spiritrt.tokens.vocabulary import SpeechToken
from spiritrt.training.arguments import launch
from spiritrt.training.corpora.manifest import Utterance, cut_utterances, match_words, read_manifest

FORMAT = 1
PARTS_OF = {"Hu": ("hubert", "quantizer"), "Pi": ("pitch",), "St": ("style",)}
Frames = NDArray[np.uint16]


def tokenizer_versions(checkpoint: Checkpoint, kinds: Iterable[str]) -> dict[str, str]:
    """A fingerprint of every speech tokenizer of a family: equal for equal configuration and weights, in any layout."""
    versions = {}
    for kind in kinds:
        for name in PARTS_OF[kind]:
            part = checkpoint.part(name)
            digest = hashlib.sha256(json.dumps(part.config, sort_keys=True, default=str).encode())
            for tensor_name, tensor in sorted(part.load().items()):
                digest.update(f"{tensor_name} {tuple(tensor.shape)}".encode())
                values = tensor.float() if tensor.is_floating_point() else tensor
                digest.update(values.contiguous().numpy().tobytes())
            versions[name] = digest.hexdigest()[:16]
    return versions


@dataclass(frozen=True, slots=True)
class Tokenized:
    """One utterance of a shard: frames by kind, the words as written, and when each begins, in seconds."""

    id: str
    text: str
    speaker: str
    split: str
    frames: dict[str, Frames]
    words: tuple[str, ...]
    starts_s: NDArray[np.float32]

    def tokens(self, first: int = 0, last: int | None = None) -> tuple[SpeechToken, ...]:
        """Speech tokens of words `first` to `last` (exclusive; by default all), in order of time.

        A frame belongs to the span in which it begins; what sounds before the first word belongs to it, and the pause
        after a word to that word. Consecutive equal HuBERT and pitch codes of the span are one token, styles all stay.
        Spans that follow each other hold every frame once.
        """
        begin = 0.0 if first == 0 else float(self.starts_s[first])
        end = float("inf") if last is None or last >= len(self.words) else float(self.starts_s[last])
        timed: list[tuple[float, int, SpeechToken]] = []
        for order, (kind, rate) in enumerate(CODES_A_SECOND.items()):
            before = None
            codes = self.frames.get(kind, ())
            for index in range(int(np.ceil(begin * rate - 1e-6)), min(len(codes), _first_at(end, rate))):
                code = int(codes[index])
                if kind == "St" or code != before:
                    timed.append((index / rate, order, SpeechToken(kind, code)))
                before = code
        return tuple(token for _, _, token in sorted(timed, key=lambda entry: entry[:2]))

    def sounding(self, first: int, last: int) -> int:
        """The end of words `first` to `last` (exclusive) without those at their end in which no frame begins."""
        while last > first and not self.tokens(last - 1, last):
            last -= 1
        return last


def _first_at(time_s: float, rate: float) -> int:
    """Index of the first frame that begins at `time_s` or later."""
    return sys.maxsize if time_s == float("inf") else int(np.ceil(time_s * rate - 1e-6))


def write_shard(out: Path, corpus: Path, utterances: Sequence[Utterance], family: Family) -> dict[str, int]:
    """Encode utterances of a corpus and write them as a shard; returns its counts. What was at `out` is replaced.

    Sound that is too short for the encoder is left out. Words are those of the text, as written. Raises ValueError,
    before anything is encoded, where an utterance's text and its timed words differ (see `match_words`).
    """
    written = {u.id: _written_words(u) for u in utterances}
    kinds = ("St", "Pi", "Hu") if family.expressive else ("Hu",)
    frames: dict[str, list[Frames]] = {kind: [] for kind in kinds}
    ends: dict[str, list[int]] = {kind: [0] for kind in kinds}
    starts: list[float] = []
    word_ends, lines = [0], []
    for u, samples in tqdm(cut_utterances(corpus, utterances), total=len(utterances), desc="encoding", file=sys.stderr):
        try:
            units = family.encode(samples)
        except ValueError as error:
            print(f"{u.id} is left out: {error}", file=sys.stderr)
            continue
        codes = {"Hu": units.hubert, "Pi": units.pitch, "St": units.style}
        for kind in kinds:
            frames[kind].append(np.array(codes[kind] or (), np.uint16))
            ends[kind].append(ends[kind][-1] + len(frames[kind][-1]))
        starts += [start_s for _, start_s in written[u.id]]
        word_ends.append(len(starts))
        line = {"id": u.id, "text": u.text, "speaker": u.speaker, "split": u.split}
        lines.append(line | {"words": [word for word, _ in written[u.id]]})
    if not lines:
        raise ValueError(f"nothing of the {len(utterances)} utterances of {corpus} could be encoded")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for kind in kinds:
        np.save(partial / f"{kind}.npy", np.concatenate(frames[kind]))
        np.save(partial / f"{kind}_offsets.npy", np.array(ends[kind], np.int64))
    np.save(partial / "words.npy", np.array(starts, np.float32))
    np.save(partial / "word_offsets.npy", np.array(word_ends, np.int64))
    texts = [json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines]
    (partial / "lines.jsonl").write_bytes(b"".join(texts))
    np.save(partial / "line_offsets.npy", np.cumsum([0, *map(len, texts)]))
    counts = {"utterances": len(lines), "words": len(starts)} | {kind: ends[kind][-1] for kind in kinds}
    header = {
        "format": FORMAT, "model": family.name, "tokenizers": tokenizer_versions(family.checkpoint, kinds), **counts,
    }  # fmt: skip
    (partial / "shard.json").write_text(json.dumps(header, indent=1), encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
    return counts


def _written_words(u: Utterance) -> list[tuple[str, float]]:
    """Words as written, and when each begins, in seconds; none where no word is timed."""
    matched = match_words(u.text, [word.word for word in u.words], u.id) if u.words else []
    return [(written, u.words[first].start_s) for written, first, _ in matched]


class Shard:
    """A shard, memory-mapped: `shard[i]` is an utterance. Nothing is read before it is asked for."""

    def __init__(self, folder: Path, tokenizers: dict[str, str] | None = None) -> None:
        """Opens the shard in `folder`; with `tokenizers` (see `tokenizer_versions`) they must be those that made it.

        Raises FileNotFoundError where there is none, ValueError for another format or another version, and where a
        file is missing, cut short or damaged.
        """
        path = folder / "shard.json"
        if not path.is_file():
            raise FileNotFoundError(f"no shard at {folder}: `python -m spiritrt.training.shards` makes one")
        try:
            self.header = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}): make the shard again") from error
        if self.header.get("format") != FORMAT:
            raise ValueError(f"{folder} has format {self.header.get('format')}, this reads {FORMAT}: make it again")
        made_by = self.header["tokenizers"]
        for name, version in (tokenizers or {}).items():
            if made_by.get(name) != version:
                raise ValueError(
                    f"{folder} was made by {name} {made_by.get(name, '(none)')}, the model has {name} {version}: "
                    "encode the corpus again with this model"
                )
        if tokenizers is not None and (other := set(made_by) - set(tokenizers)):
            raise ValueError(f"{folder} holds units of {', '.join(sorted(other))}, which the model does not have")
        self._frames = {kind: _mapped(folder / f"{kind}.npy") for kind in CODES_A_SECOND if kind in self.header}
        self._ends = {kind: _mapped(folder / f"{kind}_offsets.npy") for kind in self._frames}
        self._starts = _mapped(folder / "words.npy") if self.header["words"] else np.zeros(0, np.float32)
        self._word_ends = _mapped(folder / "word_offsets.npy")
        self._lines = _mapped(folder / "lines.jsonl")
        self._line_ends = _mapped(folder / "line_offsets.npy")
        if len(self._lines) < self._line_ends[-1]:
            raise ValueError(f"{folder / 'lines.jsonl'} is cut short: make the shard again")

    def __len__(self) -> int:
        return int(self.header["utterances"])

    def __getitem__(self, index: int) -> Tokenized:
        if not 0 <= index < len(self):
            raise IndexError(f"utterance {index} of {len(self)}")
        line = json.loads(bytes(self._lines[self._line_ends[index] : self._line_ends[index + 1]]))
        frames = {
            kind: np.array(all_of[self._ends[kind][index] : self._ends[kind][index + 1]])
            for kind, all_of in self._frames.items()
        }
        starts = np.array(self._starts[self._word_ends[index] : self._word_ends[index + 1]])
        return Tokenized(line["id"], line["text"], line["speaker"], line["split"], frames, tuple(line["words"]), starts)

    def has_words(self, index: int) -> bool:
        """Whether an utterance has word times."""
        return bool(self._word_ends[index + 1] > self._word_ends[index])

    def with_words(self) -> NDArray[np.int64]:
        """Indices of the utterances that have word times."""
        return np.flatnonzero(np.diff(self._word_ends))

    def units(self, index: int) -> Units:
        """Raw frames of an utterance, as the encoder gave them."""
        codes = {kind: codes.tolist() for kind, codes in self[index].frames.items()}
        return Units(codes["Hu"], codes.get("Pi"), codes.get("St"))


def _mapped(path: Path) -> np.ndarray:
    try:
        return np.memmap(path, mode="r") if path.suffix == ".jsonl" else np.load(path, mmap_mode="r")
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is missing, cut short or damaged ({error}): make the shard again") from error


def main() -> None:
    parser = argparse.ArgumentParser(description="Encode a corpus into a memory-mapped shard of speech units.")
    parser.add_argument("--corpus", type=Path, required=True, help="folder with manifest.jsonl")
    parser.add_argument("--model", default="nano", help="family whose tokenizers encode")
    parser.add_argument("--out", type=Path, required=True, help="folder of the shard")
    parser.add_argument("--split", default="train", help="train, test, test_voice, or all")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    utterances = [u for u in read_manifest(args.corpus) if args.split in ("all", u.split)]
    if not utterances:
        raise SystemExit(f"{args.corpus} has no utterances of split {args.split!r}")
    print(json.dumps(write_shard(args.out, args.corpus, utterances, Family(find(args.model), args.device))))


if __name__ == "__main__":
    launch(main)
