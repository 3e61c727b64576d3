"""Measures the nano language model on held-out utterances: what it hears, what it answers, what its speech units spell.

    python -m spiritrt.training.lm_report --heard build/nano/encoder_units.jsonl --speech 40

Decoding is greedy. `asr`: word error rate from the units of held-out utterances. `replies`: to held-out spoken
questions of the corpus and to fresh ones of the grammar (spoken by joined snippets, or typed); a reply is right where
its `answer_key` is the reference's. `tts`: phone error rate of units made for held-out lines, and with `--speech` their
word error rate through the vocoder and a recogniser, beside that of the real units.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from spiritrt.evaluation.recognition import ErrorRates, Recognizer
from spiritrt.models.checkpoints import find
from spiritrt.models.llama import Llama, LlamaConfig
from spiritrt.models.vocoder import vocode_units, vocoder_from_official
from spiritrt.tokens.text import Tokenizer
from spiritrt.training.arguments import launch
from spiritrt.training.corpora.manifest import unit_lines
from spiritrt.training.corpora.pronounce import phonemise, split_phones, words_of
from spiritrt.training.corpora.text import CHECKABLE, answer_key, exchange
from spiritrt.training.interleave import BOS, EOS, deduplicate, speech_of
from spiritrt.training.tokenizer import ROWS, TEXT_SIZE
from spiritrt.training.unit_synthesis import SILENCE, UnitBank, bare, edit_distance, read_units

TEXT_MARKER, SPEECH_MARKER, FIRST_UNIT = TEXT_SIZE, TEXT_SIZE + 1, TEXT_SIZE + 2
FRESH_SEED = 10**6


@dataclass(frozen=True, slots=True)
class Reader:
    """A trained model with its tokenizer."""

    model: Llama
    tokenizer: Tokenizer

    @classmethod
    def load(cls, family: str) -> Reader:
        """The `lm` part of a family (name or folder), in float32."""
        checkpoint = find(family)
        part = checkpoint.part("lm")
        model = Llama(LlamaConfig.from_official(part.config))
        model.load_state_dict({name: tensor.float() for name, tensor in part.load().items()})
        return cls(model.eval(), Tokenizer(checkpoint.folder, ROWS))

    @torch.inference_mode()
    def continue_greedily(self, prompt: Sequence[int], stops: Sequence[int], most: int) -> list[int]:
        """Likeliest ids after `prompt`, up to and without one of `stops`, `most` at the longest."""
        cache = self.model.new_cache(len(prompt) + most + 1)
        logits = self.model(torch.tensor([list(prompt)]), cache, last_only=True)
        made: list[int] = []
        while len(made) < most:
            token = int(logits[0, -1, : FIRST_UNIT + 501].argmax())
            if token in stops:
                break
            made.append(token)
            logits = self.model(torch.tensor([[token]]), cache, last_only=True)
        return made

    def transcribe(self, units: Sequence[int]) -> str:
        """Text that the ASR prompt brings forth for units."""
        prompt = [BOS, SPEECH_MARKER, *(FIRST_UNIT + unit for unit in deduplicate(units)), TEXT_MARKER]
        prompt += self.tokenizer.encode("<START Transcript>", bos=False)
        text = self.tokenizer.decode(self.continue_greedily(prompt, (EOS, TEXT_MARKER, SPEECH_MARKER), 60))
        return text.partition("<END>")[0]

    def reply(self, heard: Sequence[int] | str) -> tuple[str, str]:
        """What the model took the user's units to say (or was given as text), and its reply, both as text."""
        if isinstance(heard, str):
            prompt = [BOS, TEXT_MARKER, *self.tokenizer.encode(f"{heard} A:", bos=False)]
        else:
            prompt = [BOS, SPEECH_MARKER, *(FIRST_UNIT + unit for unit in deduplicate(heard)), TEXT_MARKER]
        made = self.tokenizer.decode(self.continue_greedily(prompt, (EOS, TEXT_MARKER, SPEECH_MARKER), 80))
        if isinstance(heard, str):
            return heard, made.strip()
        words, _, reply = made.partition(" A: ")
        return words.strip(), reply.strip()

    def say(self, text: str) -> list[int]:
        """Units for a text."""
        prompt = [BOS, TEXT_MARKER, *self.tokenizer.encode(text, bos=False), SPEECH_MARKER]
        made = self.continue_greedily(prompt, (EOS, TEXT_MARKER, SPEECH_MARKER), 300)
        return [token - FIRST_UNIT for token in made if token >= FIRST_UNIT]


def plain(text: str) -> str:
    """Lower-case words only."""
    return " ".join(word.lower() for word in words_of(text))


def word_error_rate(pairs: Sequence[tuple[str, str]]) -> float:
    """Errors a reference word over (reference, guess) pairs, lower case, no marks."""
    errors = sum(edit_distance(plain(truth).split(), plain(guess).split()) for truth, guess in pairs)
    return errors / max(1, sum(len(plain(truth).split()) for truth, _ in pairs))


def phone_error_rate(pairs: Sequence[tuple[str, Sequence[int]]], inventory: Sequence[str]) -> float:
    """Errors a phone of (text, units) pairs: runs of one phone count once, silence not at all."""
    errors = total = 0
    for text, units in pairs:
        said = deduplicated([inventory[unit] for unit in units])
        wanted = deduplicated([bare(phone) for _, phones in phonemise(text) for phone in split_phones(phones)])
        errors += edit_distance(said, wanted)
        total += len(wanted)
    return errors / max(1, total)


def deduplicated(phones: Sequence[str]) -> list[str]:
    kept: list[str] = []
    for phone in phones:
        if phone != SILENCE and (not kept or kept[-1] != phone):
            kept.append(phone)
    return kept


def right_share(results: Sequence[tuple[str, str, str, str]]) -> dict[str, float]:
    """Share of right replies over (kind, user, reference, reply) of checkable kinds, and their count."""
    right = [answer_key(kind, user, truth) == answer_key(kind, user, reply) for kind, user, truth, reply in results]
    return {"right": round(sum(right) / max(1, len(right)), 3), "count": len(right)}


def measure(
    reader: Reader,
    entries: list[dict],
    bank: UnitBank,
    heard: dict[str, list[int]],
    fresh: int,
    speech: int,
    model: str,
) -> tuple[dict[str, object], list[dict[str, str]]]:
    """The figures, and one line a reply for reading."""
    report: dict[str, object] = {}
    lines: list[dict[str, str]] = []
    units_of = {entry["id"]: heard.get(entry["id"], entry["units"]) for entry in entries}
    for split in ("test", "test_voice"):
        chosen = [entry for entry in entries if entry["split"] == split]
        for name, wanted in (("dialogue", True), ("single", False)):
            group = [entry for entry in chosen if bool(entry["dialogue"]) == wanted]
            pairs = [(entry["text"], reader.transcribe(units_of[entry["id"]])) for entry in bar(group, f"asr {split}")]
            report[f"asr_wer_{split}_{name}_lines"] = round(word_error_rate(pairs), 4)
            lines += [{"task": f"asr {split}", "reference": truth, "got": guess} for truth, guess in pairs]
    by_dialogue: dict[str, dict[str, dict]] = {}
    for entry in entries:
        if entry["split"] != "train" and entry["dialogue"]:
            by_dialogue.setdefault(entry["dialogue"], {})[entry["role"]] = entry
    spoken = []
    understood = []
    for pair in bar([p for p in by_dialogue.values() if len(p) == 2], "replies"):
        user, truth = pair["user"], pair["assistant"]
        words, reply = reader.reply(units_of[user["id"]])
        understood.append((user["text"], words))
        kind = user.get("kind") or ""
        if kind in CHECKABLE:
            spoken.append((kind, user["text"], truth["text"], reply))
        lines.append(
            {"task": f"reply {kind}", "reference": f"{user['text']} | {truth['text']}", "got": f"{words} | {reply}"}
        )
    report["dialogue_heard_wer"] = round(word_error_rate(understood), 4)
    report["replies_held_out_speech"] = right_share(spoken)
    rng = random.Random(FRESH_SEED)
    fresh_pairs = [exchange(FRESH_SEED, index, CHECKABLE) for index in range(fresh)]
    joined, typed = [], []
    for item in bar(fresh_pairs, "fresh replies"):
        _, reply = reader.reply(speech_of(bank.speak(item.user, rng, assistant=False)))
        joined.append((item.kind, item.user, item.assistant, reply))
        typed.append((item.kind, item.user, item.assistant, reader.reply(item.user)[1]))
        lines.append({"task": f"fresh {item.kind}", "reference": f"{item.user} | {item.assistant}", "got": reply})
    report["replies_fresh_joined_units"] = right_share(joined)
    report["replies_fresh_typed"] = right_share(typed)
    for kind in CHECKABLE:
        report[f"typed_{kind}"] = right_share([result for result in typed if result[0] == kind])["right"]
    said = [entry for entry in entries if entry["split"] != "train" and entry["role"] == "assistant"]
    made = [(entry["text"], reader.say(entry["text"])) for entry in bar(said, "tts")]
    report["tts_phone_error_rate"] = round(phone_error_rate(made, bank.inventory), 4)
    if speech:
        part = find(model).part("vocoder")
        vocoder = vocoder_from_official(part.config, part.load())
        recognize = Recognizer(torch.get_num_threads())
        real = [(entry["text"], list(deduplicate(entry["units"]))) for entry in said]
        for name, spoken_units in (("tts", made), ("real_units", real)):
            errors = ErrorRates()
            for text, units in bar(spoken_units[:speech], "recognising"):
                got = recognize(vocode_units(vocoder, torch.tensor(units)).numpy()) if units else ""
                errors.add(text, got)
                lines.append({"task": name, "reference": text, "got": got})
            report[f"{name}_wer_by_recogniser"] = {"wer": round(errors.rate, 4), "count": len(made[:speech])}
    return report, lines


def bar(items: Sequence, name: str) -> tqdm:
    return tqdm(items, desc=name, file=sys.stderr, leave=False)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the nano language model on held-out utterances.")
    parser.add_argument("--model", default="models/nano")
    parser.add_argument("--units", type=Path, default=Path("build/nano/units.jsonl"))
    parser.add_argument("--heard", type=Path, help="JSON lines of the units that the trained encoder emits")
    parser.add_argument("--corpus", type=Path, default=Path("../shared/corpus"), help="manifest with the kinds")
    parser.add_argument("--fresh", type=int, default=150, help="questions of the grammar to ask")
    parser.add_argument("--speech", type=int, default=0, help="held-out replies to vocode and recognise")
    parser.add_argument("--lines", type=Path, help="write references and results here, as JSON lines")
    args = parser.parse_args()
    torch.set_num_threads(1)
    entries = read_units(args.units)
    manifest = (args.corpus / "manifest.jsonl").read_text("utf-8").splitlines()
    kinds = {item["id"]: item["kind"] for item in map(json.loads, manifest)}
    entries = [entry | {"kind": kinds.get(entry["id"], "")} for entry in entries]
    inventory = json.loads((args.units.parent / "inventory.json").read_text("utf-8"))
    heard = {e["id"]: e["units"] for e in unit_lines(args.heard)} if args.heard else {}
    bank = UnitBank(entries, inventory, heard)
    report, lines = measure(Reader.load(args.model), entries, bank, heard, args.fresh, args.speech, args.model)
    if args.lines:
        args.lines.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n", "utf-8")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    launch(main)
