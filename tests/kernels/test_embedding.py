"""Every variant of embedding, with norm and from raw unit frames: the reference's rows, and the runtime's merge."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spiritrt.kernels import Case, variants
from spiritrt.kernels.unit_frames import TICKS, FrameRow, FrameSlots, FrameTokens
from spiritrt.tokens.units import CODES_A_SECOND, TokenMerger
from spiritrt.tokens.vocabulary import Vocabulary

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASE = Case(DEVICE, torch.float32, torch.cuda.get_device_capability() if DEVICE == "cuda" else None)
EXPRESSIVE = Vocabulary(text_size=20, units=4, pitches=3, styles=2, rows=64)
BASE = Vocabulary(text_size=20, units=4, rows=64)
WIDTH, PAGE_SIZE, PAGES, SLOTS, EPS = 5, 4, 12, 3, 1e-5


def named(op: str) -> dict:
    return {variant.name: variant.fn for variant in variants(op) if variant.supports(CASE) is None}


def others(op: str) -> list[str]:
    return [name for name in named(op) if name != "reference"]


FED = [(op, name) for op in ("embedding", "embed_norm") for name in named(op)]


def test_the_variants_that_must_run_here_do():
    for op in ("embedding", "embed_norm", "embed_frames"):
        assert set(named(op)) >= {"reference", "torch", "triton"}


class TestIds:
    @pytest.mark.parametrize(("tokens", "width"), [(1, 1), (3, 17), (5, 256), (2, 1030)])
    @pytest.mark.parametrize("name", others("embed_norm"))
    def test_rows_and_their_norm(self, name, tokens, width):
        self.check(name, tokens, width, torch.float32, 1e-6)

    @pytest.mark.parametrize(("dtype", "rtol"), [(torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)])
    @pytest.mark.parametrize("name", others("embed_norm"))
    def test_tables_of_any_precision(self, name, dtype, rtol):
        self.check(name, 3, 33, dtype, rtol)

    def check(self, name: str, tokens: int, width: int, dtype: torch.dtype, rtol: float) -> None:
        rng = torch.Generator().manual_seed(width)
        table = torch.randn(37, width, generator=rng).to(DEVICE, dtype)
        # the CPU's own variant computes in float32, whatever the table is
        weight = torch.rand(width, generator=rng).to(DEVICE, torch.float32 if name == "cpu" else dtype)
        ids = torch.randint(37, (tokens,), generator=rng).to(DEVICE)
        x, normed = named("embed_norm")[name](ids, table, weight, EPS)
        expected = named("embed_norm")["reference"](ids, table, weight, EPS)
        assert torch.equal(x.float(), expected[0].float()) and x.shape == (tokens, width)
        torch.testing.assert_close(normed.float(), expected[1].float(), rtol=rtol, atol=rtol)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("name", others("embedding"))
    def test_rows_alone(self, name, dtype):
        table = torch.randn(37, 33, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
        ids = torch.tensor([36, 0, 5, 5], device=DEVICE)
        assert torch.equal(named("embedding")[name](ids, table).float(), table[ids].float())

    @pytest.mark.parametrize(("op", "name"), FED)
    def test_a_negative_id_is_the_id_drawn_last(self, op, name):
        assert self.fed(op, name, [4, -1, -1, 9], [0, 2, 0, 1]) == [4, 13, 11, 9]

    @pytest.mark.parametrize(("op", "name"), [(op, name) for op, name in FED if name != "cpu"])
    def test_a_row_that_fills_a_bucket_takes_id_0(self, op, name):
        """Its slot is negative. Buckets are for graphs, so the CPU's own variant refuses such a slot."""
        assert self.fed(op, name, [-1, 4, -1], [2, 0, -1]) == [13, 4, 0]

    def fed(self, op: str, name: str, ids: list[int], slots: list[int]) -> list[float]:
        """Ids whose rows come back, in three slots that drew 11, 12 and 13."""
        table = torch.arange(20.0, device=DEVICE)[:, None].repeat(1, 3)
        given = torch.tensor(ids, device=DEVICE)
        where = torch.tensor(slots, dtype=torch.int32, device=DEVICE)
        last_ids = torch.tensor([11, 12, 13], device=DEVICE)
        if op == "embedding":
            return named(op)[name](given, table, where, last_ids)[:, 0].tolist()
        return named(op)[name](given, table, table[0], EPS, where, last_ids)[0][:, 0].tolist()


class Merging:
    """`embed_frames` of one variant over `SLOTS` slots, with what the runtime's merger makes of the same frames."""

    def __init__(self, name: str, vocabulary: Vocabulary, capacity: int = 64) -> None:
        self.fn, self.vocabulary = named("embed_frames")[name], vocabulary
        self.kinds = ("St", "Pi", "Hu") if vocabulary.expressive else ("Hu",)
        style, pitch, hubert = (vocabulary.first(kind) if vocabulary.count(kind) else -1 for kind in ("St", "Pi", "Hu"))
        self.firsts = (style, pitch, hubert)
        self.slots = FrameSlots(SLOTS, self.firsts, capacity, DEVICE)
        self.mergers = [TokenMerger(self.kinds) for _ in range(SLOTS)]
        rng = torch.Generator().manual_seed(0)
        self.table = torch.randn(vocabulary.rows, WIDTH, generator=rng).to(DEVICE)
        self.weight = torch.rand(WIDTH, generator=rng).to(DEVICE)
        self.lengths = torch.tensor([0, 7, 3], dtype=torch.int32, device=DEVICE)
        self.page_table = torch.randperm(SLOTS * PAGES, generator=rng).view(SLOTS, PAGES).to(DEVICE, torch.int32)

    def step(self, rows: list[tuple[int, dict[str, list[int]], bool]], width: int | None = None) -> None:
        """Takes (slot, frames of each kind, final) of some slots and checks all that comes out."""
        lengths, codes, frames, expected = self.lengths.tolist(), [], [], []
        for slot, new, final in rows:
            style, pitch, hubert = (new.get(kind, []) for kind in ("St", "Pi", "Hu"))
            tokens = self.mergers[slot].accept(hubert, pitch, style) + (self.mergers[slot].flush() if final else [])
            expected.append([self.vocabulary.id_of(token) for token in tokens])
            codes += style + pitch + hubert
            frames.append(FrameRow(slot, len(style), len(pitch), len(hubert), final))
        made = self.fn(
            torch.tensor(codes, dtype=torch.int32, device=DEVICE), self.slots.plan(frames, width), self.slots.held,
            self.firsts, self.table, self.weight, EPS, self.lengths, self.page_table, PAGE_SIZE,
        )  # fmt: skip
        assert made.counts.tolist() == [len(ids) for ids in expected]
        for row, ((slot, _, _), ids) in enumerate(zip(rows, expected, strict=True)):
            self.check(made, row, ids, self.page_table[slot], lengths[slot])
            lengths[slot] += len(ids)
        assert self.lengths.tolist() == lengths

    def check(self, made: FrameTokens, row: int, ids: list[int], pages: Tensor, start: int) -> None:
        """The tokens of one row, where they go, and the padding after them."""
        width = made.ids.shape[1]
        padding = [-1] * (width - len(ids))
        positions = list(range(start, start + len(ids)))
        assert made.ids[row].tolist() == ids + padding
        assert made.positions[row].tolist() == positions + padding
        places = [int(pages[p // PAGE_SIZE]) * PAGE_SIZE + p % PAGE_SIZE if p < PAGES * PAGE_SIZE else -1
                  for p in positions]  # fmt: skip
        assert made.page_slots[row].tolist() == places + padding
        x, normed = made.x.view(-1, width, WIDTH)[row], made.normed.view(-1, width, WIDTH)[row]
        assert torch.equal(x[: len(ids)], self.table[ids]) and not x[len(ids) :].any() and not normed[len(ids) :].any()
        expected = torch.nn.functional.rms_norm(self.table[ids], (WIDTH,), self.weight, EPS)
        torch.testing.assert_close(normed[: len(ids)], expected)


def frames_of(vocabulary: Vocabulary) -> st.SearchStrategy[dict[str, list[int]]]:
    """A few frames of each stream; few codes, so that equal neighbours are common."""
    most = {"Hu": 7, "Pi": 4, "St": 2}
    return st.fixed_dictionaries(
        {
            kind: st.lists(st.integers(0, vocabulary.count(kind) - 1), max_size=most[kind])
            for kind in (("St", "Pi", "Hu") if vocabulary.expressive else ("Hu",))
        }
    )


def steps_of(vocabulary: Vocabulary) -> st.SearchStrategy:
    row = st.tuples(st.integers(0, SLOTS - 1), frames_of(vocabulary), st.integers(0, 4).map(lambda n: n == 0))
    return st.lists(st.lists(row, min_size=1, max_size=SLOTS, unique_by=lambda row: row[0]), max_size=6)


class TestFrames:
    @pytest.mark.parametrize("vocabulary", [EXPRESSIVE, BASE], ids=["expressive", "base"])
    @pytest.mark.parametrize("name", [name for name in named("embed_frames") if name != "triton" or DEVICE == "cuda"])
    @settings(max_examples=40)
    @given(data=st.data())
    def test_any_chunking_gives_the_streaming_mergers_tokens(self, name, vocabulary, data):
        merging = Merging(name, vocabulary)
        for rows in data.draw(steps_of(vocabulary)):
            merging.step(rows)

    @pytest.mark.parametrize("vocabulary", [EXPRESSIVE, BASE], ids=["expressive", "base"])
    @settings(max_examples=4)
    @given(data=st.data())
    def test_the_kernel_does_too(self, vocabulary, data):
        merging = Merging("triton", vocabulary)
        for rows in data.draw(steps_of(vocabulary)):
            merging.step(rows)

    @pytest.mark.parametrize("name", list(named("embed_frames")))
    def test_the_papers_example_in_two_halves(self, name):
        """[St7][Pi1][Hu5][Hu9][Pi2][Hu4]; codes here are smaller, and the second half comes in a wider shape."""
        merging = Merging(name, EXPRESSIVE)
        merging.step([(1, {"Hu": [0, 0, 1], "Pi": [1, 1]}, False), (0, {"Hu": [3]}, False)])
        merging.step([(1, {"Hu": [1, 1, 2], "Pi": [2], "St": [1]}, False)], width=12)
        merging.step([(1, {}, True)])
        merging.step([(1, {"Hu": [2], "St": [0]}, True)])  # a new recording: nothing is carried over

    @pytest.mark.parametrize("name", list(named("embed_frames")))
    def test_a_ring_that_wraps_around(self, name):
        merging = Merging(name, EXPRESSIVE, capacity=8)
        for step in range(6):
            merging.step(
                [(2, {"St": [0] if step % 6 == 0 else [], "Pi": [step % 2] * 2, "Hu": [1, 1, step % 3]}, False)]
            )

    @pytest.mark.parametrize("name", list(named("embed_frames")))
    def test_beyond_the_pages_is_no_place(self, name):
        merging = Merging(name, BASE)
        merging.lengths.fill_(PAGES * PAGE_SIZE - 2)
        merging.step([(0, {"Hu": [0, 1, 2, 3]}, False)])

    def test_ticks_are_the_times_of_the_runtime(self):
        """So frames come in the same order, hours into a recording too."""
        rates = [CODES_A_SECOND[kind] for kind in ("St", "Pi", "Hu")]
        for ticks, rate in zip(TICKS, rates, strict=True):
            assert Fraction(ticks, 62475) == 1 / Fraction(str(rate))
        # times that are not equal differ by a tick at least; those that are, are so in float64 or leave HuBERT the last
        for hundreds in range(1, 1000):
            assert 2499 * hundreds / 24.99 >= 1250 * hundreds / 12.5 == 100.0 * hundreds


class TestFrameSlots:
    def test_what_cannot_be_is_named_and_nothing_is_taken(self):
        slots = FrameSlots(2, (-1, 10, 20), capacity=6)
        with pytest.raises(ValueError, match="slot 0: there is no style stream, got 1 frames"):
            slots.plan([FrameRow(0, style=1)])
        with pytest.raises(ValueError, match="slot 1: 6 hubert frames would wait and 5 fit; take fewer at a time"):
            slots.plan([FrameRow(0, hubert=1), FrameRow(1, hubert=6)])
        with pytest.raises(ValueError, match="slot 1 is given twice"):
            slots.plan([FrameRow(1), FrameRow(1)])
        with pytest.raises(ValueError, match="3 tokens do not fit a width of 2"):
            slots.plan([FrameRow(0, pitch=1, hubert=3)], width=2)
        plan = slots.plan([FrameRow(0, pitch=1, hubert=3)])
        assert plan.width == 3 and plan.numbers[0].tolist()[1:10] == [0, 0, 1, 0, 0, 0, 0, 1, 3]
        with pytest.raises(ValueError, match="the number of pitch frames must not be negative"):
            FrameRow(0, pitch=-1)
        with pytest.raises(ValueError, match="the first HuBERT unit needs an id, got -1"):
            FrameSlots(1, (3, 4, -1))
        with pytest.raises(ValueError, match="slots must be at least 1 and capacity at least 2, got 0 and 64"):
            FrameSlots(0, (-1, -1, 3))

    def test_reset_begins_a_recording(self):
        slots = FrameSlots(1, (-1, -1, 3))
        first = slots.plan([FrameRow(0, hubert=4)])
        slots.reset(0)
        assert torch.equal(slots.plan([FrameRow(0, hubert=4)]).numbers, first.numbers)
