"""Packed rows hold every document once, and teach what the documents teach one by one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spiritrt.models.llama import Llama, LlamaConfig
from spiritrt.training.batches import make_batch
from spiritrt.training.lm import loss_of
from spiritrt.training.packing import PADDING, pack, pack_batch


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(40, 100))
def test_every_document_once_and_no_row_too_long(lengths: list[int], context: int):
    rows = pack(lengths, context)
    assert sorted(position for row in rows for position in row) == list(range(len(lengths)))
    totals = [sum(lengths[position] for position in row) for row in rows]
    assert all(total <= context for total in totals)
    # first fit: two rows that could be one would have been
    assert all(a + b > context for a, b in zip(sorted(totals), sorted(totals)[1:], strict=False))


def test_a_document_longer_than_a_row():
    with pytest.raises(ValueError, match="document 1 has 9 tokens"):
        pack([3, 9], 8)


def documents(seed: int, lengths: tuple[int, ...]) -> list[tuple[list[int], list[float]]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randint(0, 50, (n,), generator=generator).tolist(),
            [0.0, *torch.rand(n - 1, generator=generator).tolist()],
        )
        for n in lengths
    ]


def test_a_packed_batch_has_the_loss_of_its_documents():
    torch.manual_seed(0)
    model = Llama(LlamaConfig(50, 32, 48, 2, 2, 2, 16, 64)).eval()
    made = documents(1, (5, 9, 3, 7))
    packed = pack_batch([[made[0], made[1]], [made[2], made[3]]])
    assert packed.ids.shape == (2, 14) and packed.share == pytest.approx(24 / 28)
    assert packed.positions[0].tolist() == [*range(5), *range(9)]
    assert packed.documents[1].tolist() == [0] * 3 + [1] * 7 + [PADDING] * 4
    with torch.inference_mode():
        assert float(loss_of(model, packed)) == pytest.approx(float(loss_of(model, make_batch(made))), rel=1e-5)


def test_documents_of_a_row_do_not_see_each_other():
    torch.manual_seed(0)
    model = Llama(LlamaConfig(50, 32, 48, 2, 2, 2, 16, 64)).eval()
    first, second = documents(2, (6, 8))
    other = documents(3, (6,))[0]
    with torch.inference_mode():
        logits = [
            model(batch.ids, mask=batch.mask(), positions=batch.positions)[0]
            for batch in (pack_batch([[first, second]]), pack_batch([[other, second]]))
        ]
    torch.testing.assert_close(logits[0][6:], logits[1][6:])
    assert not torch.allclose(logits[0][:6], logits[1][:6])


def test_the_first_token_of_a_document_is_not_predicted_from_the_one_before():
    packed = pack_batch([[([1, 4], [1.0, 1.0]), ([1, 5], [1.0, 1.0])]])
    assert packed.weights.tolist() == [[0.0, 1.0, 0.0, 1.0]] and packed.tokens == 2
