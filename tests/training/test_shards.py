"""Shards: what was encoded comes back, spans hold every frame once, and another tokenizer's shard is refused."""

import importlib.util
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from small_shards import make_shard

from spiritrt.models.checkpoints import convert, find, save_part
from spiritrt.tokens.units import CODES_A_SECOND, merge
from spiritrt.training.corpora.manifest import read_manifest
from spiritrt.training.shards import Shard, Tokenized, tokenizer_versions, write_shard


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    sound = 0.3 * np.sin(np.cumsum(rng.uniform(0.02, 0.2, 32000)))
    soundfile.write(tmp_path / "a.wav", sound, 16000)
    words = [{"word": "so", "start_s": 0.1, "end_s": 0.5}, {"word": "be", "start_s": 0.5, "end_s": 0.9}]
    lines = [
        {"id": "a", "audio": "a.wav", "text": "So, be!", "speaker": "x", "duration_s": 1.2, "words": words},
        {"id": "short", "audio": "a.wav", "text": "Ü", "speaker": "x", "duration_s": 0.02, "words": []},
        {"id": "b", "audio": "a.wav", "text": "Ünd", "speaker": "y", "offset_s": 1.0, "duration_s": 1.0, "words": []},
    ]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


@pytest.mark.parametrize("form", ["base", "expressive"])
def test_what_was_encoded_comes_back(corpus: Path, form: str, base_lm, expressive_lm, capsys):
    if form == "expressive" and importlib.util.find_spec("torchfcpe") is None:
        pytest.skip("no torchfcpe: see README, official weights")
    family = (base_lm if form == "base" else expressive_lm).family
    counts = write_shard(corpus / "shard", corpus, read_manifest(corpus), family)
    assert counts["utterances"] == 2 and counts["words"] == 2 and "short is left out" in capsys.readouterr().err
    kinds = ("Hu",) if form == "base" else ("St", "Pi", "Hu")
    shard = Shard(corpus / "shard", tokenizer_versions(family.checkpoint, kinds))
    assert len(shard) == 2 and [shard[i].id for i in range(2)] == ["a", "b"] and shard[1].text == "Ünd"
    samples, _ = soundfile.read(corpus / "a.wav", dtype="float32")
    assert shard.units(0) == family.encode(samples[: round(1.2 * 16000)])
    assert shard[0].tokens() == tuple(merge(shard.units(0)))
    assert shard[0].words == ("So,", "be!") and shard[0].starts_s.tolist() == pytest.approx([0.1, 0.5])
    with pytest.raises(IndexError, match="utterance 2 of 2"):
        _ = shard[2]


def test_words_are_those_of_the_text_with_their_times(corpus: Path, base_lm):
    words = [{"word": w, "start_s": s, "end_s": s + 0.2} for w, s in (("no", 0.1), ("ice", 0.4), ("is", 0.7))]
    line = {"id": "a", "audio": "a.wav", "text": "No-ice is -", "speaker": "x", "duration_s": 1.2, "words": words}
    (corpus / "manifest.jsonl").write_text(json.dumps(line) + "\n")
    assert write_shard(corpus / "shard", corpus, read_manifest(corpus), base_lm.family)["words"] == 2
    (read,) = Shard(corpus / "shard")
    assert read.words == ("No-ice", "is -") and read.starts_s.tolist() == pytest.approx([0.1, 0.7])
    (corpus / "manifest.jsonl").write_text(json.dumps(line | {"text": "No 1 is"}) + "\n")
    with pytest.raises(ValueError, match="a: written word '1', timed word 'ice'"):
        write_shard(corpus / "shard", corpus, read_manifest(corpus), base_lm.family)


def test_another_tokenizer_is_refused(corpus: Path, base_lm, expressive_lm):
    write_shard(corpus / "shard", corpus, read_manifest(corpus)[:1], base_lm.family)
    versions = tokenizer_versions(base_lm.family.checkpoint, ("Hu",))
    Shard(corpus / "shard", versions)
    with pytest.raises(ValueError, match=r"made by quantizer .* the model has quantizer abc: encode"):
        Shard(corpus / "shard", versions | {"quantizer": "abc"})
    with pytest.raises(ValueError, match=r"made by pitch \(none\)"):
        Shard(corpus / "shard", versions | {"pitch": "abc"})
    with pytest.raises(ValueError, match="which the model does not have"):
        Shard(corpus / "shard", {"hubert": versions["hubert"]})
    header = json.loads((corpus / "shard" / "shard.json").read_text())
    (corpus / "shard" / "shard.json").write_text(json.dumps(header | {"format": 99}))
    with pytest.raises(ValueError, match="format 99"):
        Shard(corpus / "shard")
    with pytest.raises(FileNotFoundError, match="no shard"):
        Shard(corpus)


@pytest.mark.parametrize(
    ("name", "left"),
    [("Hu.npy", 200), ("Hu.npy", 0), ("Hu.npy", None), ("word_offsets.npy", 3), ("lines.jsonl", 30), ("shard.json", 9)],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, left: int | None):
    make_shard(tmp_path / "shard", find("nano").folder)
    file = tmp_path / "shard" / name
    content = file.read_bytes()
    file.unlink()
    if left is not None:
        file.write_bytes(content[:left])
    with pytest.raises(ValueError, match=rf"shard/{name} is .*: make the shard again"):
        Shard(tmp_path / "shard")


@pytest.mark.parametrize(
    ("name", "kinds"), [("spirit-lm-base-7b", ("Hu",)), ("spirit-lm-expressive-7b", ("St", "Pi", "Hu"))]
)
def test_versions_are_equal_in_both_layouts(official: Path, tmp_path: Path, name: str, kinds: tuple[str, ...]):
    convert(official / "spiritlm_model" / name, tmp_path / "own")
    first = tokenizer_versions(find(str(official / "spiritlm_model" / name)), kinds)
    assert len(first) == len(kinds) + 1 and first == tokenizer_versions(find(str(tmp_path / "own")), kinds)


def test_another_weight_or_setting_is_another_version(base_lm, tmp_path: Path):
    source = base_lm.family.checkpoint
    first = tokenizer_versions(source, ("Hu",))
    for name in ("hubert", "quantizer"):
        save_part(tmp_path, name, source.part(name).config, source.part(name).load())
    assert tokenizer_versions(find(str(tmp_path)), ("Hu",)) == first
    weights = source.part("quantizer").load()
    key = next(key for key, value in weights.items() if value.is_floating_point())
    save_part(tmp_path, "quantizer", source.part("quantizer").config, weights | {key: weights[key] * 1.001})
    save_part(tmp_path, "hubert", source.part("hubert").config | {"output_layer": 1}, source.part("hubert").load())
    changed = tokenizer_versions(find(str(tmp_path)), ("Hu",))
    assert changed["quantizer"] != first["quantizer"] and changed["hubert"] != first["hubert"]


codes = st.lists(st.integers(0, 4), min_size=0, max_size=60)


@given(codes, codes, codes, st.lists(st.floats(0.05, 1.0), min_size=1, max_size=6), st.data())
def test_spans_hold_every_frame_once(hubert, pitch, style, steps, data):
    starts = np.cumsum(np.array(steps, np.float32))
    frames = {"Hu": hubert, "Pi": pitch, "St": style}
    arrays = {kind: np.array(values, np.uint16) for kind, values in frames.items()}
    line = Tokenized("a", "", "x", "train", arrays, tuple("w" * len(steps)), starts)
    cuts = sorted({0, len(steps), *data.draw(st.lists(st.integers(0, len(steps)), max_size=4))})
    spans = [line.tokens(a, b) for a, b in itertools.pairwise(cuts)]
    styles = [token.code for span in spans for token in span if token.kind == "St"]
    assert styles == style
    for kind in ("Hu", "Pi"):
        # within a span runs are one token; across a cut a run may go on, which is no loss
        made = [token.code for span in spans for token in span if token.kind == kind]
        bounds = [0.0, *(float(starts[cut]) for cut in cuts[1:-1])]
        expected: list[int] = []
        for begin, end in zip(bounds, [*bounds[1:], float("inf")], strict=True):
            inside = [c for i, c in enumerate(frames[kind]) if begin - 1e-6 <= i / CODES_A_SECOND[kind] < end - 1e-6]
            expected += [c for i, c in enumerate(inside) if i == 0 or inside[i - 1] != c]
        assert made == expected
