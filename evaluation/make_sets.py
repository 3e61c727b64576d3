"""Makes the small sets that nano is evaluated on, in the layouts of the public ones: `evaluation/sets`.

    python -m spiritrt.evaluation.make_sets --corpus ../shared/corpus --voices kokoro/package/voices

Recordings of `utterances` are held-out lines of the corpus; all others are spoken by Kokoro (see
`spiritrt.training.corpora.kokoro` for its packages), by voices and in words that the corpus has, of texts that it has
not. A second run makes what is missing.
"""

import argparse
import csv
import json
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from tqdm import tqdm

from spiritrt.evaluation import set_texts
from spiritrt.training.corpora.kokoro import Kokoro, joined_model, make, trimmed
from spiritrt.training.corpora.manifest import RATE_HZ, Utterance, cut_utterances, read_manifest
from spiritrt.training.corpora.orders import HELD_OUT_VOICE, STYLES, Order

SEED = 2024
SETS = Path(__file__).parent / "sets"
WORD_PAIRS, SENTENCE_PAIRS, QUESTIONS, COMMANDS, SCHOOL, SINGLES = 40, 30, 36, 8, 10, 24
PAIR_VOICE = "af_heart"
ASKING = (HELD_OUT_VOICE, "af_bella", "am_fenrir", "bf_emma")
# women first; the first of each speaks in three styles
MOOD_VOICES = ("af_bella", "bf_isabella", "am_adam", "bm_lewis")
STYLE_OF = {"positive": "lively", "neutral": "neutral", "negative": "subdued"}
MOOD_TEXTS = 4  # of each mood
Floats = NDArray[np.float32]


def write(path: Path, samples: Floats) -> None:
    """Write speech as Opus in an Ogg file, about 30 kbit/s."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, RATE_HZ, format="OGG", subtype="OPUS", compression_level=0.9)


class Maker:
    """Writes sets below `out`; recordings that are there already stay as they are."""

    def __init__(self, out: Path, kokoro: Kokoro) -> None:
        self.out, self.kokoro = out, kokoro

    def say(self, path: Path, text: str, voice: str, style: str = "neutral") -> None:
        """Speak a text into a file."""
        if not path.is_file():
            order = Order(path.stem, text, voice, style, "single", None, "", "test")
            write(path, make(order, self.kokoro)[0])

    def stop_word(self) -> None:
        """The word that ends the shots of `eval tts`, without loss."""
        path = self.out / "stop.flac"
        if not path.is_file():
            order = Order(path.stem, "Stop.", PAIR_VOICE, "neutral", "single", None, "", "test")
            soundfile.write(path, make(order, self.kokoro)[0], RATE_HZ, format="FLAC", subtype="PCM_16")

    def minimal_pairs(self) -> None:
        """sWUGGY's and sBLIMP's layouts."""
        words = self.out / "lexical" / "dev"
        rows = []
        for number, pair in enumerate(tqdm(set_texts.word_pairs(WORD_PAIRS, SEED), desc="wuggy", file=sys.stderr)):
            for correct, phones in ((1, pair.right), (0, pair.wrong)):
                name = f"w{number:03d}{'ab'[1 - correct]}"
                if not (words / f"{name}.ogg").is_file():
                    raw, _ = self.kokoro.say(phones + ".", PAIR_VOICE, STYLES["neutral"])
                    write(words / f"{name}.ogg", trimmed(raw)[0])
                rows.append([number, name, PAIR_VOICE, "", pair.word if correct else "", phones, correct])
        _gold(words, ["id", "filename", "voice", "frequency", "word", "phones", "correct"], rows)
        sentences = self.out / "syntactic" / "dev"
        rows = []
        made = set_texts.sentence_pairs(SENTENCE_PAIRS, SEED)
        for number, (kind, right, wrong) in enumerate(tqdm(made, desc="blimp", file=sys.stderr)):
            for correct, text in ((1, right), (0, wrong)):
                name = f"s{number:03d}{'ab'[1 - correct]}"
                self.say(sentences / f"{name}.ogg", text, PAIR_VOICE)
                rows.append([number, name, PAIR_VOICE, kind, kind, text, correct])
        _gold(sentences, ["id", "filename", "voice", "type", "subtype", "transcription", "correct"], rows)

    def utterances(self, corpus: Path, held_out: Sequence[Utterance]) -> dict[str, str]:
        """LibriSpeech's layout: all held-out dialogue lines and some single ones; their paths below `out` by id."""
        chosen = [u for u in held_out if u.dialogue] + [u for u in held_out if not u.dialogue][:SINGLES]
        paths = {u.id: f"utterances/{u.speaker}/0/{u.speaker}-0-{u.id}.ogg" for u in chosen}
        for u, samples in cut_utterances(corpus, chosen):
            if not (self.out / paths[u.id]).is_file():
                write(self.out / paths[u.id], samples)
        for speaker in {u.speaker for u in chosen}:
            own = sorted((u for u in chosen if u.speaker == speaker), key=lambda u: u.id)
            table = self.out / "utterances" / speaker / "0" / f"{speaker}-0.trans.txt"
            table.write_text("".join(f"{speaker}-0-{u.id} {u.text}\n" for u in own), encoding="utf-8")
        return paths

    def stories(self, held_out: Sequence[Utterance], kinds: dict[str, str], paths: dict[str, str]) -> None:
        """Topic-StoryCloze of exchanges: a user's line, its reply, and a reply of the same voice to another topic."""
        pairs: dict[str, dict[str, Utterance]] = {}
        for u in held_out:
            if u.dialogue:
                pairs.setdefault(u.dialogue, {})[u.role] = u
        whole = [pair for pair in pairs.values() if len(pair) == 2]
        rng = random.Random(SEED)
        lines = []
        for pair in whole:
            user, right = pair["user"], pair["assistant"]
            others = [
                other["assistant"] for other in whole
                if other["assistant"].speaker == right.speaker and kinds[other["assistant"].id] != kinds[right.id]
            ]  # fmt: skip
            for number, wrong in enumerate(rng.sample(others, min(2, len(others)))):
                parts = {"prompt": user, "right": right, "wrong": wrong}
                lines.append(
                    {"id": f"{right.dialogue}-{number}"}
                    | {name: {"text": u.text, "audio": f"../{paths[u.id]}"} for name, u in parts.items()}
                )
        _json_lines(self.out / "stories" / "stories.jsonl", lines)

    def questions(
        self, held_out: Sequence[Utterance], kinds: dict[str, str], paths: dict[str, str], said: set[str]
    ) -> None:
        """Spoken questions: those held out that can be checked, and fresh ones."""
        replies = {u.dialogue: u.text for u in held_out if u.role == "assistant"}
        lines = [
            {
                "id": u.id, "kind": kinds[u.id], "text": u.text, "answer": replies[u.dialogue],
                "audio": f"../{paths[u.id]}",
            }
            for u in held_out
            if u.role == "user" and kinds[u.id] in set_texts.CHECKABLE and u.dialogue in replies
        ]  # fmt: skip
        fresh = set_texts.fresh_questions(QUESTIONS, SEED, said)
        for number, (kind, text, answer) in enumerate(tqdm(fresh, desc="questions", file=sys.stderr)):
            name = f"q{number:03d}"
            self.say(self.out / "questions" / f"{name}.ogg", text, ASKING[number % len(ASKING)])
            lines.append({"id": name, "kind": kind, "text": text, "answer": answer, "audio": f"{name}.ogg"})
        _json_lines(self.out / "questions" / "questions.jsonl", lines)

    def commands(self, said: set[str]) -> None:
        """A folder a label, for intent."""
        made = set_texts.commands(COMMANDS, SEED, said)
        for number, (label, text) in enumerate(tqdm(made, desc="intent", file=sys.stderr)):
            voice = ASKING[number % len(ASKING)]
            self.say(self.out / "intent" / label / f"{voice}-{number:03d}.ogg", text, voice)

    def moods(self) -> None:
        """STSP's layout. Style and words differ on purpose in some lines; those have no place in STSP (`split` other)
        and serve SALMon. `cut_s` is the end of the word in the middle."""
        records: list[dict[str, object]] = []
        jobs = [
            (mood, text, voice, style)
            for mood, texts in set_texts.MOODS.items()
            for text in texts[:MOOD_TEXTS]
            for place, voice in enumerate(MOOD_VOICES)
            for style in (STYLE_OF.values() if place % 2 == 0 else ("neutral",))
        ]
        known = {str(r["id"]): r for r in _read_lines(self.out / "moods" / "records.jsonl")}
        for mood, text, voice, style in tqdm(jobs, desc="moods", file=sys.stderr):
            number = [t for texts in set_texts.MOODS.values() for t in texts].index(text)
            name = f"{voice}-{style}-{number:02d}"
            path = self.out / "moods" / f"{name}.ogg"
            if name in known and path.is_file():
                records.append(known[name])
                continue
            samples, line = make(Order(name, text, voice, style, "single", None, mood, "test"), self.kokoro)
            write(path, samples)
            matches = style == STYLE_OF[mood]
            # speech is judged by the first voice's and heard from the others'
            split = "other" if not matches else "test" if voice != MOOD_VOICES[0] else "train"
            words = line["words"]
            records.append(
                {
                    "id": name, "wav_path": f"{name}.ogg", "emotion": style, "split": split, "speaker": voice,
                    "text": text, "mood_of_text": mood, "cut_s": words[len(words) // 2 - 1]["end_s"],
                }
            )  # fmt: skip
            _json_lines(self.out / "moods" / "records.jsonl", records)

    def school(self) -> None:
        """MMLU's layout, in writing."""
        for subject, rows in set_texts.school_questions(SCHOOL + 5, SEED).items():
            for split, part in (("dev", rows[:5]), ("test", rows[5:])):
                path = self.out / "mmlu" / split / f"{subject}_{split}.csv"
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("w", newline="", encoding="utf-8") as file:
                    csv.writer(file).writerows(part)


def _gold(folder: Path, columns: list[str], rows: list[list[object]]) -> None:
    with (folder / "gold.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])


def _json_lines(path: Path, lines: Sequence[Mapping[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def _read_lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the small sets that nano is evaluated on.")
    parser.add_argument("--corpus", type=Path, default=Path("../shared/corpus"), help="its held-out lines are used")
    parser.add_argument("--beside", type=Path, nargs="*", default=[], help="other corpora whose texts are avoided")
    parser.add_argument("--voices", type=Path, required=True, help="package/voices of kokoro-js 1.2.1")
    parser.add_argument("--work", type=Path, default=Path("build/kokoro"), help="where the joined model is kept")
    parser.add_argument("--out", type=Path, default=SETS)
    args = parser.parse_args()
    everything = read_manifest(args.corpus)
    held_out = [u for u in everything if u.split != "train"]
    lines = map(json.loads, (args.corpus / "manifest.jsonl").read_text(encoding="utf-8").splitlines())
    kinds = {line["id"]: line["kind"] for line in lines}
    said = {u.text for u in everything} | {u.text for folder in args.beside for u in read_manifest(folder)}
    maker = Maker(args.out, Kokoro(joined_model(args.work), args.voices))
    paths = maker.utterances(args.corpus, held_out)
    maker.stories(held_out, kinds, paths)
    maker.school()
    maker.questions(held_out, kinds, paths, said)
    maker.minimal_pairs()
    maker.stop_word()
    maker.commands(said)
    maker.moods()
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(json.dumps({"sets": str(args.out), "bytes": size}))


if __name__ == "__main__":
    main()
