"""The language model's data and trainer, on a made-up corpus of eight utterances and a Llama of two thin layers."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_shards import make_shard

from spiritrt.models.checkpoints import find, save_part
from spiritrt.models.llama import Llama, LlamaConfig
from spiritrt.tokens.text import Tokenizer
from spiritrt.training import tokenizer
from spiritrt.training.batches import BatchStream, group_by_length, make_batch
from spiritrt.training.corpora.pronounce import find_lexicons, phonemise, split_phones
from spiritrt.training.corpora.text import sentence
from spiritrt.training.interleave import BOS, EOS, deduplicate, speech_of, text_of
from spiritrt.training.lm import Plan, Start, Trainer, loss_of, main, run
from spiritrt.training.lm_data import MIXES, Documents, Mix, load_documents
from spiritrt.training.muon import Muon, orthogonalise
from spiritrt.training.packing import Packed
from spiritrt.training.unit_synthesis import Noise, align, edit_distance, medoid, read_units, spoken_line

pytestmark = pytest.mark.skipif(
    find_lexicons() is None, reason="no pronouncing lexicon: pip install --no-deps misaki==0.9.4"
)
TEXTS = (
    ("d0u", "user", "What day is right after Monday?"), ("d0a", "assistant", "That would be Tuesday, of course."),
    ("d1u", "user", "Which color is the big zebra, Joyce?"), ("d1a", "assistant", "A zebra is black and white, child."),
    ("s0", "single", "Vague voices thought through just one garage, how cool."),
    ("s1", "single", "Put your foot on the yellow book and measure it."),
    ("s2", "single", "Her kitten sings, she chose the hot jar, otter and captain."),
    ("t0", "single", "The cow likes my boy, they go now."),
)  # fmt: skip
TINY = Plan(width=32, layers=2, heads=2, inner=48, batch_tokens=512, warmup_steps=2, steps=6)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A units file with an inventory of 500 units, its tokenizer beside it."""
    folder = tmp_path_factory.mktemp("nano")
    phones = sorted("AIOWYæɑɐəɛɜɪᵻiɔʊuʌᵊptkbdɡɾʔfvθðszʃʒhʧʤmnŋlɹwj")
    inventory = ["SIL"] * 6 + [phone for at in range(494) for phone in [phones[at * len(phones) // 494]]]
    by_phone: dict[str, list[int]] = {}
    for unit, phone in enumerate(inventory):
        by_phone.setdefault(phone, []).append(unit)
    rng = random.Random(0)
    lines = []
    for utterance, role, text in TEXTS:
        units, phones_s, words, at = [0, 1], [], [], 0.08
        for token, said in phonemise(text):
            if not said:
                phones_s.append([token, at, at])
                continue
            if words:
                phones_s.append([" ", at, at])
            begin = at
            for phone in split_phones(said):
                units += [rng.choice(by_phone[phone.lstrip("ˈˌ")])] * 2
                phones_s.append([phone, at, at + 0.08])
                at += 0.08
            words.append({"word": token, "start_s": begin, "end_s": at})
        lines.append({
            "id": utterance, "text": text, "speaker": "af_heart" if role == "assistant" else "bm_lewis",
            "split": "test" if utterance == "t0" else "train", "role": role,
            "dialogue": utterance[:2] if role != "single" else None, "units": [*units, 2], "words": words,
            "phones": phones_s,
        })  # fmt: skip
    (folder / "units.jsonl").write_text("\n".join(json.dumps(line) for line in lines), "utf-8")
    (folder / "inventory.json").write_text(json.dumps(inventory), "utf-8")
    tokenizer.train(tokenizer.training_lines(folder / "units.jsonl", 3000, 500, 0), folder)
    return folder


@pytest.fixture(scope="module")
def documents(corpus) -> Documents:
    return load_documents(corpus / "units.jsonl", tokenizer.NanoTokenizer(corpus), Mix(context=256), seed=3)


def test_alignment_gives_every_frame_of_a_word_to_it(corpus):
    inventory = json.loads((corpus / "inventory.json").read_text("utf-8"))
    for entry in read_units(corpus / "units.jsonl"):
        alignment = align(entry["units"], entry["phones"], inventory)
        spoken = spoken_line(entry, alignment)
        assert text_of(spoken.words) == entry["text"]
        assert [u for word in spoken.words for u in word.units] == entry["units"]
        for (start, end), word in zip(alignment.words, entry["words"], strict=True):
            # half a frame off at most: the made-up phones last two frames each
            assert (start, end) == (round(word["start_s"] / 0.04), round(word["end_s"] / 0.04))


def test_new_text_is_spoken_in_units_of_its_phones(documents):
    bank = documents.bank
    for assistant in (True, False):
        words = bank.speak("Is Tuesday the right color, child?", random.Random(1), assistant)
        assert text_of(words) == "Is Tuesday the right color, child?"
        said = [bank.inventory[unit] for unit in speech_of(words)]
        wanted = [p.lstrip("ˈˌ") for _, phones in phonemise(text_of(words)) for p in split_phones(phones)]
        assert list(deduplicate_words(said)) == list(deduplicate_words(wanted))
    first = bank.speak("The yellow zebra.", random.Random(1), assistant=True)
    assert speech_of(first) == speech_of(bank.speak("The yellow zebra.", random.Random(1), assistant=True))


def deduplicate_words(phones: list[str]) -> tuple[str, ...]:
    kept: list[str] = []
    for phone in phones:
        if phone != "SIL" and (not kept or kept[-1] != phone):
            kept.append(phone)
    return tuple(kept)


def test_noise_changes_units_but_keeps_phones_where_it_should(documents):
    units = tuple(range(6, 200))
    same = documents.bank.disturb(units, Noise(1.0, 0, 0, 0), random.Random(0))
    inventory = documents.bank.inventory
    assert same != units
    assert deduplicate_words([inventory[u] for u in same]) == deduplicate_words([inventory[u] for u in units])
    assert documents.bank.disturb(units, Noise(0, 0, 0, 0), random.Random(0)) == units
    assert documents.bank.disturb((7,), Noise(0, 0, 1.0, 0), random.Random(0)) == (7,)
    with pytest.raises(ValueError, match="at most 1"):
        Noise(0.9, 0.9)


def test_held_out_lines_never_enter(corpus, documents):
    assert {line.id for line in documents.bank.lines} == {utterance for utterance, _, _ in TEXTS} - {"t0"}
    assert "The cow likes my boy, they go now." in documents.held_out
    reader = Tokenizer(corpus, tokenizer.ROWS)
    for index in range(150):
        assert "cow likes my boy" not in reader.decode(documents.document(0, index)[0])


def test_held_out_replies_and_sentences_never_enter(corpus, documents):
    reader, encoder = Tokenizer(corpus, tokenizer.ROWS), tokenizer.NanoTokenizer(corpus)
    sentences = frozenset(sentence(3, index) for index in range(60))

    def replies_of(held_out: frozenset[str]) -> set[str]:
        mix = Mix(shares={"typed": 1.0}, real_dialogues=0.0)
        made = Documents(documents.bank, encoder, mix, 3, held_out)
        texts = [reader.decode(made.document(0, index)[0]) for index in range(120)]
        return {text.split(" A: ")[1].split("[Speech]")[0] for text in texts}

    some = frozenset(sorted(replies_of(frozenset()))[::2])
    assert len(some) > 20 and not some & replies_of(some)
    texts = Documents(documents.bank, encoder, Mix(shares={"text": 1.0}), 3, sentences)
    assert not any(s in reader.decode(texts.document(0, i)[0]) for i in range(120) for s in sentences)


def test_what_has_to_be_worked_out_is_asked_more_often(corpus, documents):
    reader, encoder = Tokenizer(corpus, tokenizer.ROWS), tokenizer.NanoTokenizer(corpus)

    def subtractions(**shares: float) -> int:
        made = Documents(documents.bank, encoder, Mix(shares={"text": 1.0}, **shares), 3, frozenset())
        texts = [reader.decode(made.document(0, index)[0]).lower() for index in range(300)]
        return sum(" minus " in text or "if i take" in text for text in texts)

    assert subtractions(hard_text=0.0) < 25 and subtractions(hard_text=1.0) > 50
    assert subtractions(hard_text=0.0, hard_spoken=1.0) < 25  # of what is spoken only


def test_prose_is_read_and_spoken_in_its_share(corpus, tmp_path):
    held_out, kept = "The cow likes my boy, they go now.", "A fox ran across the frozen lake."
    file = tmp_path / "prose.txt"
    file.write_text(f"{held_out}\n{kept}\n\nSee page 9 of it.\n", "utf-8")
    encoder, reader = tokenizer.NanoTokenizer(corpus), Tokenizer(corpus, tokenizer.ROWS)
    mix = Mix(shares={"asr": 0.5, "tts": 0.5}, fragments=0.0, lower_case=0.0, prose=0.5)
    made = load_documents(corpus / "units.jsonl", encoder, mix, seed=3, prose=file)
    texts = [reader.decode(made.document(0, index)[0]) for index in range(200)]
    assert made.prose == [kept]
    # one line a document in the most: half of them are the prose
    assert 0.4 < sum(kept in text for text in texts) / len(texts) < 0.75
    assert not any("page" in text or "cow likes" in text for text in texts)
    file.write_text("See page 9.\n", "utf-8")
    with pytest.raises(ValueError, match="no sentence that can be spoken"):
        load_documents(corpus / "units.jsonl", encoder, mix, seed=3, prose=file)


def test_shares_of_tokens_give_each_kind_its_share(corpus, documents):
    encoder = tokenizer.NanoTokenizer(corpus)
    shares = {"pairs": 1 / 3, "speech": 1 / 3, "text": 1 / 3}
    made = Documents(documents.bank, encoder, Mix(shares=shares, exchanges=True, by_tokens=True), 3, frozenset())
    tokens: dict[tuple[bool, bool], int] = {}
    for index in range(400):
        ids, _ = made.document(0, index)
        kind = (encoder.text_marker in ids, encoder.speech_marker in ids)
        tokens[kind] = tokens.get(kind, 0) + len(ids)
    assert len(tokens) == 3
    for count in tokens.values():
        assert count / sum(tokens.values()) == pytest.approx(1 / 3, abs=0.08)


def test_documents_are_reproducible_bounded_and_read_by_the_runtime(corpus, documents):
    reader = Tokenizer(corpus, tokenizer.ROWS)
    again = load_documents(corpus / "units.jsonl", tokenizer.NanoTokenizer(corpus), Mix(context=256), seed=3)
    kinds = set()
    for index in range(60):
        ids, weights = documents.document(1, index)
        assert (ids, weights) == again.document(1, index)
        assert len(ids) == len(weights) <= 256 and ids[0] == BOS
        turns = [at for at, token in enumerate(ids) if token == EOS]
        first = ids[1 : turns[0]] if turns else ids[1:]
        string = reader.decode(first)
        assert reader.encode(string) == [BOS, *first]
        kinds.add((string.startswith("[Speech]"), "<START Transcript>" in string, " A: " in string))
    assert len(kinds) >= 4
    assert documents.document(1, 0) != documents.document(2, 0)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=80), st.integers(300, 2000), st.integers(0, 1000))
def test_groups_hold_every_document_once_and_fit(lengths, tokens, seed):
    groups = group_by_length(lengths, tokens, random.Random(seed))
    assert sorted(position for group in groups for position in group) == list(range(len(lengths)))
    assert all(len(group) * max(lengths[position] for position in group) <= tokens for group in groups)


def test_a_row_holds_one_document_and_padding_weighs_nothing():
    batch = make_batch([([1, 5, 6], [0.0, 1.0, 0.5]), ([1, 7], [0.0, 1.0])])
    assert batch.ids.tolist() == [[1, 5, 6], [1, 7, EOS]]
    assert batch.weights.tolist() == [[0.0, 1.0, 0.5], [0.0, 1.0, 0.0]]


def test_padding_does_not_change_the_loss():
    torch.manual_seed(0)
    model = Llama(LlamaConfig(64, 16, 24, 1, 2, 2, 8, 64))
    document = ([1, 5, 6, 9], [0.0, 1.0, 0.5, 1.0])
    longer = ([1, 7, 8, 9, 10, 11], [0.0] * 6)
    alone, padded = loss_of(model, make_batch([document])), loss_of(model, make_batch([document, longer]))
    torch.testing.assert_close(alone, padded)


def test_training_lowers_the_loss_and_exports_what_the_runtime_loads(corpus, documents, tmp_path):
    torch.set_num_threads(1)
    plan = Plan(
        width=32,
        layers=2,
        heads=2,
        inner=48,
        batch_tokens=512,
        steps=40,
        warmup_steps=2,
        matrix_rate=1e-2,
        other_rate=1e-2,
    )
    trainer = Trainer(plan, stream_of(documents))
    batch = make_batch([documents.document(99, index) for index in range(8)])
    before = loss_of(trainer.model, batch).item()
    run(trainer, tmp_path, tmp_path / "family", export_minutes=100)
    after = loss_of(trainer.model, batch).item()
    assert after < before - 0.5
    part = find(tmp_path / "family").part("lm")
    model = Llama(LlamaConfig.from_official(part.config))
    model.load_state_dict({name: tensor.float() for name, tensor in part.load().items()}, strict=True)
    assert loss_of(model, batch).item() == pytest.approx(after, abs=0.05)


def stream_of(documents: Documents) -> BatchStream:
    return BatchStream(documents, 512, window=32)


def test_a_resumed_run_repeats_an_unbroken_one(documents, tmp_path):
    torch.set_num_threads(1)
    whole = Trainer(TINY, stream_of(documents))
    losses = [whole.step() for _ in range(6)]
    first = Trainer(TINY, stream_of(documents))
    begun = [first.step() for _ in range(4)]
    first.save(tmp_path / "lm.pt")
    second = Trainer(TINY, stream_of(documents))
    second.load(tmp_path / "lm.pt")
    assert begun + [second.step() for _ in range(2)] == losses
    assert second.tokens == whole.tokens
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, second.model.state_dict()[name]), name
    other = Trainer(Plan(width=48, layers=2, heads=2, inner=48, steps=6), stream_of(documents))
    with pytest.raises(ValueError, match="hidden_size 32 there and 48 here"):
        other.load(tmp_path / "lm.pt")


def test_a_step_of_two_batches_has_the_mean_of_their_gradients(documents):
    torch.set_num_threads(1)
    alone, both = (Trainer(replace(TINY, accumulate=many), stream_of(documents)) for many in (1, 2))
    batches = [both.stream.next() for _ in range(2)]
    weight = alone.model.lm_head.weight
    gradients = [torch.autograd.grad(loss_of(alone.model, batch), weight)[0] for batch in batches]
    both.stream.state = (0, 0)
    seen = []
    both.model.lm_head.weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    loss = both.step()
    torch.testing.assert_close(seen[-1], (gradients[0] + gradients[1]) / 2)
    assert loss == pytest.approx(sum(loss_of(alone.model, b).item() for b in batches) / 2, rel=1e-5)
    assert both.tokens == sum(batch.tokens for batch in batches) and both.steps_done == 1


def test_bf16_learns_the_same_losses_within_its_precision(documents):
    torch.set_num_threads(1)
    exact, rough = (Trainer(replace(TINY, precision=name), stream_of(documents)) for name in ("fp32", "bf16"))
    losses = [[trainer.step() for _ in range(4)] for trainer in (exact, rough)]
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.02)
    assert all(p.dtype == torch.float32 for p in rough.model.parameters())


def test_training_begins_with_the_language_model_of_another_family(corpus, documents, tmp_path):
    torch.set_num_threads(1)
    first = Trainer(TINY, stream_of(documents))
    first.step()
    shutil.copytree(corpus, tmp_path / "family")
    first.export(tmp_path / "family", tmp_path / "lm.pt")
    start = Start.of_units(find(tmp_path / "family"), corpus, TINY)
    second = Trainer(TINY, stream_of(documents), start)
    for name, weight in first.model.state_dict().items():
        torch.testing.assert_close(second.model.state_dict()[name], weight, rtol=0.01, atol=1e-4)
    assert second.steps_done == 0 and second.reply == "chain"
    save_part(tmp_path / "speech", "quantizer", {}, {"x": torch.zeros(1)})
    with pytest.raises(ValueError, match="has no language model to begin from"):
        Start.of_units(find(tmp_path / "speech"), corpus, TINY)
    (tmp_path / "family" / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ValueError, match="different tokenizers"):
        Start.of_units(find(tmp_path / "family"), corpus, TINY)


@pytest.mark.parametrize(
    "changes", [{"packed": True}, {"tokens": 256}, {"tokens": 1024}, {"window": 16}, {"mix": Mix(context=128)}]
)
def test_batches_of_another_shape_begin_with_the_next_window(documents, tmp_path, changes: dict[str, object]):
    first = Trainer(TINY, stream_of(documents))
    first.stream.next()
    first.stream.next()
    first.save(tmp_path / "lm.pt")
    settings = {"tokens": 512, "window": 32, "mix": documents.mix} | changes
    made = Documents(documents.bank, documents.encoder, settings.pop("mix"), 3, documents.held_out)
    stream = BatchStream(made, **settings)
    second = Trainer(TINY, stream)
    second.load(tmp_path / "lm.pt")
    assert stream.state == (1, 0)
    second.step()


def test_a_state_that_does_not_say_its_shape_goes_on_where_it_was(documents, tmp_path):
    first = Trainer(TINY, stream_of(documents))
    first.stream.next()
    first.save(tmp_path / "lm.pt")
    state = torch.load(tmp_path / "lm.pt", weights_only=True)
    del state["stream_shape"]
    torch.save(state, tmp_path / "lm.pt")
    second = Trainer(TINY, stream_of(documents))
    second.load(tmp_path / "lm.pt")
    assert second.stream.state == (0, 1)
    assert torch.equal(second.stream.next().ids, first.stream.next().ids)


def test_a_position_behind_the_last_batch_is_the_next_window(documents):
    """As one in another mix may be."""
    first, second = stream_of(documents), stream_of(documents)
    first.state, second.state = (0, 1000), (1, 0)
    assert torch.equal(first.next().ids, second.next().ids) and first.state == second.state == (1, 1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--context", "512"], "--context: no effect without --shards"),
        (["--text", "a", "--text-words", "3", "10"], "--text, --text-words: no effect without --shards"),
        (["--speech-words", "3", "8"], "--speech-words: no effect without --shards"),
        (["--shares", "speech=1"], "--shares: no effect without --shards"),
        (["--shards", "a", "--mix", "nano"], "--mix: no effect with --shards"),
        (["--shards", "a", "--prose", "b"], "--prose: no effect with --shards"),
        (["--shards", "a", "--units", "b", "--heard", "c"], "--units, --heard: no effect with --shards"),
    ],
)
def test_options_without_effect_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: list[str], message: str
):
    monkeypatch.setattr("sys.argv", ["lm", *given])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["speech=much"], "write kind=number, such as speech=0.5, not 'speech=much'"),
        (["speech"], "not 'speech'"),
        (["speech=1", "text=1", "speech=2"], "one share a kind, got speech, text, speech"),
    ],
)
def test_shares_that_cannot_be_read_are_usage_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: list[str], message: str
):
    monkeypatch.setattr("sys.argv", ["lm", "--shards", "a", "--shares", *given])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_shares_of_shards_are_those_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(find("nano").folder, tmp_path / "family")
    make_shard(tmp_path / "shard", find("nano").folder)
    (tmp_path / "a.txt").write_text("Once upon a time.")
    arguments = ["--shards", tmp_path / "shard", "--out", tmp_path / "family", "--work", tmp_path / "work"]
    arguments += ["--steps", "1"]
    made: list[dict[str, float]] = []

    def stop(trainer: Trainer, *others: object) -> None:
        made.append(trainer.stream.documents.mix.shares)

    def command(*more: object) -> None:
        monkeypatch.setattr("sys.argv", ["lm", *map(str, [*arguments, *more])])
        main()

    monkeypatch.setattr("spiritrt.training.lm.run", stop)
    command()
    command("--text", tmp_path / "a.txt")
    command("--shares", "pairs=2", "transcribed=0.5")
    third = 1 / 3
    assert made == [
        {"speech": 0.5, "interleaved": 0.5},
        {"speech": third, "interleaved": third, "text": third},
        {"pairs": 2.0, "transcribed": 0.5},
    ]
    with pytest.raises(ValueError, match=r"unknown kinds \['song'\]"):
        command("--shares", "song=1")
    with pytest.raises(ValueError, match="text: there is a share and nothing to make it of"):
        command("--shares", "speech=1", "text=1")


def test_the_command_makes_the_default_mix(corpus, tmp_path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "lm.yaml").write_text("lm:\n  width: 32\n  layers: 1\n  heads: 2\n  inner: 48\n  mix: nano\n")
    arguments = ["--config", tmp_path / "lm.yaml", "--units", corpus / "units.jsonl", "--work", tmp_path]
    arguments += ["--out", corpus, "--steps", "1", "--batch-tokens", "512"]
    monkeypatch.setattr("sys.argv", ["lm", *map(str, arguments)])
    made: list[Mix] = []

    def stop(trainer: Trainer, *others: object) -> None:
        made.append(trainer.stream.documents.mix)

    monkeypatch.setattr("spiritrt.training.lm.run", stop)
    main()
    monkeypatch.setattr("sys.argv", ["lm", *map(str, arguments[2:])])
    main()
    assert made == [MIXES["nano"], MIXES["nano"]]


def test_the_command_says_what_it_wrote_and_that_the_budget_was_spent(
    corpus, tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    shape = "--width 32 --layers 1 --heads 2 --inner 48 --batch-tokens 512 --steps 2".split()  # noqa: SIM905
    shutil.copytree(corpus, tmp_path / "family")
    places = ["--units", corpus / "units.jsonl", "--work", tmp_path / "work", "--out", tmp_path / "family"]
    monkeypatch.setattr("sys.argv", ["lm", *map(str, places), *shape])
    main()
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith(f"{tmp_path / 'family'}: language model after 2 steps") and "2 steps in this run" in said
    assert said.endswith(f"its state and log are in {tmp_path / 'work'}")
    (line,) = (tmp_path / "work" / "lm.log").read_text().splitlines()
    assert json.loads(line)["step"] == 2
    main()
    assert "the budget of 2 steps was spent before: give more --steps" in capsys.readouterr().out
    assert len((tmp_path / "work" / "lm.log").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("tokenizer.model", r"no tokenizer\.model in .*: run `python -m spiritrt\.training\.tokenizer --out"),
        ("units.jsonl", r"no units\.jsonl in .*training\.units"),
        ("inventory.json", r"no inventory\.json in .*training\.units"),
    ],
)
def test_a_missing_file_is_named_with_what_makes_it(corpus, tmp_path, missing: str, message: str):
    shutil.copytree(corpus, tmp_path / "family")
    (tmp_path / "family" / missing).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        load_documents(tmp_path / "family" / "units.jsonl", tokenizer.NanoTokenizer(tmp_path / "family"), Mix(), seed=3)


def test_a_tokenizer_without_its_units_or_damaged_is_named(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["tokenizer", "--units", str(tmp_path / "u.jsonl"), "--out", str(tmp_path / "new")])
    with pytest.raises(FileNotFoundError, match=r"no u\.jsonl in .*training\.units"):
        tokenizer.main()
    assert not (tmp_path / "new").exists()
    (tmp_path / "tokenizer.model").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"tokenizer\.model: not a SentencePiece model"):
        tokenizer.NanoTokenizer(tmp_path)


@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 6, 17), (3, 17, 6), (1, 1, 5)])
def test_orthogonalise_moves_singular_values_to_one(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape), steps=12))
    assert values.min() > 0.6 and values.max() < 1.3


def test_orthogonalise_in_bf16_is_that_of_float32_within_its_precision():
    torch.manual_seed(0)
    matrices = torch.randn(2, 24, 40)
    exact, rough = orthogonalise(matrices), orthogonalise(matrices, dtype=torch.bfloat16)
    assert rough.dtype == torch.float32 and not torch.equal(exact, rough)
    assert (exact - rough).norm() < 0.05 * exact.norm()


def test_muon_refuses_vectors():
    with pytest.raises(ValueError, match=r"\(3,\)"):
        Muon([torch.nn.Parameter(torch.zeros(3))], lr=0.1)


def test_edit_distance_and_medoid():
    assert edit_distance((1, 2, 3), (1, 3, 4)) == 2
    assert edit_distance((), (1, 2)) == 2
    assert medoid([(1, 2, 3), (1, 2, 3), (1, 9, 3), (7, 8, 9)]) == (1, 2, 3)


def test_bad_plans_are_refused(corpus, documents):
    with pytest.raises(ValueError, match="heads"):
        Plan(width=30, heads=4)
    for bad in ({"precision": "int4"}, {"accumulate": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Plan(**bad)
    with pytest.raises(ValueError, match="poem"):
        Mix(shares={"poem": 1.0})
    with pytest.raises(ValueError, match="100"):
        BatchStream(documents, 100)
    (corpus / "broken.jsonl").write_text('{"id": "x", "units": [], "phones": []}\n', "utf-8")
    with pytest.raises(ValueError, match="1 utterances have no units or no phones, such as 'x'"):
        read_units(corpus / "broken.jsonl")
    (corpus / "broken.jsonl").write_text('{"id": "x", "units": [1]}\n{"id": "y', "utf-8")
    with pytest.raises(ValueError, match=r"broken\.jsonl, line 2: not JSON"):
        read_units(corpus / "broken.jsonl")
    (corpus / "broken.jsonl").write_text('{"id": "x", "units": 1}\n', "utf-8")
    with pytest.raises(ValueError, match="line 1: no id or no list of units"):
        read_units(corpus / "broken.jsonl")
    assert deduplicate([]) == ()


@pytest.mark.parametrize("name", sorted(MIXES))
def test_every_mix_makes_documents_of_its_kinds(corpus, name):
    mix = replace(MIXES[name], context=256)
    documents = load_documents(corpus / "units.jsonl", tokenizer.NanoTokenizer(corpus), mix, seed=3)
    encoder = tokenizer.NanoTokenizer(corpus)
    switches = []
    for index in range(12):
        ids, weights = documents.document(0, index)
        assert documents.document(0, index) == (ids, weights) and len(ids) == len(weights) <= 256
        switches.append(sum(i in (encoder.text_marker, encoder.speech_marker) for i in ids))
    if name == "unaligned":
        assert set(switches) == {1}
    if name == "pairs":
        assert set(switches) == {1, 2}
    if name == "transcribed":
        assert max(switches) > 6


def test_packed_batches_resume_where_they_were(corpus):
    mix = Mix(context=256)
    documents = load_documents(corpus / "units.jsonl", tokenizer.NanoTokenizer(corpus), mix, seed=3)
    stream = BatchStream(documents, 512, window=24, packed=True)
    batches = [stream.next() for _ in range(4)]
    assert all(isinstance(batch, Packed) and batch.ids.shape[0] <= 2 for batch in batches)
    assert sum(batch.share for batch in batches[:2]) / 2 > 0.7
    again = BatchStream(documents, 512, window=24, packed=True)
    again.next()
    other = BatchStream(documents, 512, window=24, packed=True)
    other.state = again.state
    assert torch.equal(other.next().ids, batches[1].ids)
