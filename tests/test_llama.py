import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spiritrt.models.llama import Llama, LlamaConfig, rotary_frequencies

WORDS = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
SHAPES: dict[str, dict[str, object]] = {
    "multi-head": {},
    "grouped": {"num_key_value_heads": 2},
    "multi-query": {"num_key_value_heads": 1},
    "wide heads": {"head_dim": 12, "num_key_value_heads": 2},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "linear": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama3": {"rope_scaling": LLAMA3},
    "llama3, as transformers 5 writes it": {"rope_parameters": LLAMA3 | {"rope_theta": 10000.0}},
}


def random_llama(words: dict[str, object], seed: int = 0) -> Llama:
    """A Llama whose norms and biases matter."""
    torch.manual_seed(seed)
    llama = Llama(LlamaConfig.from_official(WORDS | words)).eval()
    with torch.no_grad():
        for parameter in llama.parameters():
            parameter.normal_(std=0.3)
    return llama


def some_ids(length: int, batch: int = 1) -> Tensor:
    return torch.randint(0, 40, (batch, length), generator=torch.Generator().manual_seed(length))


@pytest.fixture(scope="module", params=SHAPES)
def llama(request) -> Llama:
    return random_llama(SHAPES[request.param]).requires_grad_(False)


@pytest.fixture(scope="module")
def grouped() -> Llama:
    return random_llama(SHAPES["grouped"]).requires_grad_(False)


class TestAgainstTransformers:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_logits(self, shape):
        transformers = pytest.importorskip("transformers", reason="transformers is not installed")
        llama = random_llama(SHAPES[shape])
        words = {key: value for key, value in (WORDS | SHAPES[shape]).items() if not key.startswith("rope")}
        rope = SHAPES[shape].get("rope_parameters") or SHAPES[shape].get("rope_scaling") or {"rope_type": "default"}
        rope = {"rope_theta": WORDS["rope_theta"]} | {"rope_type" if k == "type" else k: v for k, v in rope.items()}
        other = transformers.LlamaForCausalLM(transformers.LlamaConfig(**words, rope_parameters=rope)).eval()
        missing = other.load_state_dict(llama.state_dict(), strict=False)
        assert not missing.missing_keys and not missing.unexpected_keys
        ids = some_ids(50, batch=3)
        with torch.no_grad():
            torch.testing.assert_close(llama(ids), other(ids).logits, rtol=1e-4, atol=1e-4)

    def test_position_scaling(self):
        plain, linear, llama3 = (
            rotary_frequencies(LlamaConfig.from_official(WORDS | {"rope_scaling": scaling}))
            for scaling in (None, {"type": "linear", "factor": 4.0}, LLAMA3 | {"original_max_position_embeddings": 64})
        )
        torch.testing.assert_close(linear, plain / 4)
        assert llama3[0] == plain[0] and llama3[-1] == plain[-1] / 8  # over 4 turns in 64 positions; under 1

    def test_rows_of_a_batch_are_what_they_are_alone(self, llama):
        ids = some_ids(9, batch=4)
        together = llama(ids)
        for row, logits in zip(ids, together, strict=True):
            torch.testing.assert_close(llama(row[None])[0], logits, rtol=1e-5, atol=1e-5)


class TestCache:
    @settings(max_examples=15)
    @given(cuts=st.lists(st.integers(1, 19), max_size=6, unique=True).map(sorted))
    def test_any_chunking_equals_the_full_pass(self, llama, cuts):
        ids = some_ids(20)
        cache = llama.new_cache(20)
        parts = [llama(ids[:, a:b], cache) for a, b in zip([0, *cuts], [*cuts, 20], strict=True)]
        torch.testing.assert_close(torch.cat(parts, dim=1), llama(ids), rtol=1e-4, atol=1e-5)

    def test_token_by_token(self, llama):
        ids, cache = some_ids(17), llama.new_cache()
        parts = [llama(ids[:, i : i + 1], cache) for i in range(17)]
        torch.testing.assert_close(torch.cat(parts, dim=1), llama(ids), rtol=1e-4, atol=1e-5)
        assert (cache.length, cache.capacity) == (17, 64)

    @pytest.mark.parametrize(("kept", "again"), [(0, 5), (1, 1), (7, 6), (12, 1), (13, 3)])
    def test_truncate_and_append_equals_fresh(self, grouped, kept, again):
        first, second = some_ids(13), some_ids(13 + again)[:, 13:]
        cache = grouped.new_cache(32)
        grouped(first, cache)
        cache.truncate(kept)
        fresh = grouped.new_cache(32)
        if kept:
            grouped(first[:, :kept], fresh)
        torch.testing.assert_close(grouped(second, cache), grouped(second, fresh), rtol=1e-4, atol=1e-5)

    def test_truncate_beyond_what_is_held(self, grouped):
        cache = grouped.new_cache(8)
        grouped(some_ids(3), cache)
        for length in (4, -1):
            with pytest.raises(ValueError, match=f"cannot truncate to {length} tokens: the cache holds 3"):
                cache.truncate(length)

    def test_overflow_is_an_error_and_changes_nothing(self, grouped):
        cache = grouped.new_cache(8)
        grouped(some_ids(5), cache)
        with pytest.raises(ValueError, match="5 cached and 4 new tokens exceed the cache's 8"):
            grouped(some_ids(4), cache)
        assert grouped(some_ids(3), cache).shape == (1, 3, 40) and cache.length == 8

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_takes_the_dtype_of_the_model(self, dtype):
        llama = random_llama({}).to(dtype)
        cache = llama.new_cache(4)
        with torch.no_grad():
            assert llama(some_ids(3), cache).dtype == cache.keys.dtype == cache.values.dtype == dtype

    def test_last_only(self, llama):
        torch.testing.assert_close(llama(some_ids(6), last_only=True), llama(some_ids(6))[:, -1:], rtol=1e-5, atol=1e-5)


class TestTraining:
    def test_a_mask_replaces_the_causal_one(self, grouped):
        """Two documents packed into one row, each blind to the other, are what they are alone."""
        first, second = some_ids(6), some_ids(5)
        document = torch.tensor([0] * 6 + [1] * 5)
        mask = (document[:, None] == document[None]).tril()[None, None]
        positions = torch.cat([torch.arange(6), torch.arange(5)])[None]
        packed = grouped(torch.cat([first, second], dim=1), mask=mask, positions=positions)
        alone = torch.cat([grouped(first), grouped(second)], dim=1)
        torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("shape", ["grouped", "tied", "biases"])
    def test_gradients_reach_every_weight(self, shape):
        llama = random_llama(SHAPES[shape])
        llama(torch.arange(40)[None]).logsumexp(-1).sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in llama.parameters())

    def test_a_tied_head_is_one_weight(self):
        llama = random_llama({"tie_word_embeddings": True})
        assert llama.lm_head.weight is llama.model.embed_tokens.weight


class TestConfig:
    def test_defaults_are_those_of_hugging_face(self):
        needed = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        config = LlamaConfig.from_official({key: WORDS[key] for key in needed})
        assert (config.num_key_value_heads, config.head_dim) == (4, 8)
        assert (config.rope_theta, config.rope_type, config.rms_norm_eps) == (10000.0, "default", 1e-6)
        assert (config.max_position_embeddings, config.tie_word_embeddings) == (2048, False)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"model_type": "gpt2"}, "model_type must be 'llama', got 'gpt2'"),
            ({"hidden_act": "gelu"}, "hidden_act must be 'silu', got 'gelu'"),
            ({"num_key_value_heads": 3}, r"num_attention_heads \(4\) must be a multiple of num_key_value_heads \(3\)"),
            ({"head_dim": 7}, "head_dim must be even for rotary embeddings, got 7"),
            ({"num_hidden_layers": 0}, "num_hidden_layers must be at least 1, got 0"),
            ({"rope_scaling": {"rope_type": "yarn"}}, "rope_type must be default, linear or llama3, got 'yarn'"),
        ],
    )
    def test_what_is_no_llama_is_named(self, change, message):
        with pytest.raises(ValueError, match=message):
            LlamaConfig.from_official(WORDS | change)

    def test_missing_words_are_named(self):
        for word in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
            with pytest.raises(ValueError, match=f"config has no '{word}'"):
                LlamaConfig.from_official({key: value for key, value in WORDS.items() if key != word})

    @pytest.mark.parametrize(("word", "value"), [("hidden_size", "32"), ("tie_word_embeddings", 1), ("head_dim", 8.0)])
    def test_words_of_another_type(self, word, value):
        with pytest.raises(ValueError, match=f"config '{word}' must be of type .*, got {value!r}"):
            LlamaConfig.from_official(WORDS | {word: value})
