import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlm.data.batches import IGNORED, Batch
from mlm.data.masking import Masking
from tests.mlm.samples import ROW_LENGTH, VOCABULARY, packed, sentences, split_of
from tokenizer.shards.format import ShardArrays
from tokenizer.shards.packing import Rows, pack
from tokenizer.special_tokens import SpecialTokens
from tokenizer.vocabulary import CLS, MASK, PAD, SEP, SPECIAL_TOKENS


def assembled_in_a_loop(
    split: ShardArrays, rows: Rows, row: int, row_length: int, cls_sep: bool
) -> list[tuple[int, int, int, bool, bool]]:
    """Return id, segment, position, maskable and word start of each slot of a row, one token after the other."""
    slots: list[tuple[int, int, int, bool, bool]] = []
    for number, run in enumerate(range(rows.borders[row], rows.borders[row + 1]), start=1):
        tokens = range(rows.starts[run], rows.starts[run] + rows.lengths[run])
        inside = [(int(split.tokens[i]), True, i == tokens[0] or bool(split.word_starts[i])) for i in tokens]
        if cls_sep:
            inside = [(CLS, False, False), *inside, (SEP, False, False)]
        slots += [(token, number, place, maskable, start) for place, (token, maskable, start) in enumerate(inside)]
    return slots + [(PAD, 0, 0, False, False)] * (row_length - len(slots))


@given(
    st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=5), min_size=1, max_size=8),
    st.booleans(),
    st.booleans(),
    st.data(),
)
def test_rows_are_assembled_as_by_a_plain_loop(
    documents: list[list[int]], cls_sep: bool, alone: bool, data: st.DataObject
) -> None:
    split = split_of(documents)
    rows = packed(split, 12, cls_sep=cls_sep, alone=alone)
    expected = pack(split.sentences, np.arange(len(split.sentences)) if alone else split.documents, 12, 2 * cls_sep)
    rows_B = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=6)))
    whole = rows.assemble(rows_B)
    for b, row in enumerate(rows_B.tolist()):
        arrays = (whole.ids_BL, whole.segments_BL, whole.positions_BL, whole.maskable_BL, whole.word_starts_BL)
        slots = list(zip(*(array[b].tolist() for array in arrays), strict=True))
        assert slots == assembled_in_a_loop(split, expected, row, 12, cls_sep)
    document_of = np.repeat(np.arange(len(documents)), [sum(document) for document in documents])
    runs = [run for row in rows_B for run in range(expected.borders[row], expected.borders[row + 1])]
    numbers = sorted({int(document_of[expected.starts[run]]) for run in runs})
    assert rows.documents(rows_B) == f"{', '.join(map(str, numbers))} in memory"


@pytest.mark.parametrize("cls_sep", [False, True])
def test_tokens_are_the_slots_that_are_not_padding(cls_sep: bool) -> None:
    rows = packed(split_of([[5, 9], [30], [3]]), cls_sep=cls_sep)
    whole = rows.assemble(np.arange(len(rows)))
    assert rows.tokens_per_row * len(rows) == pytest.approx((whole.segments_BL > 0).sum())
    assert whole.ids_BL.shape == (len(rows), ROW_LENGTH)


@pytest.mark.parametrize("cls_sep", [False, True])
@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_the_labels_of_a_masked_batch_are_the_original_tokens(unit: str, cls_sep: bool) -> None:
    rows = packed(split_of([[7, 9, 4], [30], [3, 8]] * 4), cls_sep=cls_sep)
    masking, rows_B = Masking.model_validate({"unit": unit, "rate": 0.4}), np.arange(len(rows))[::-1].copy()
    whole = rows.assemble(rows_B)
    batch = rows.masked(rows_B, np.full_like(rows_B, 3), masking, 0.4, seed=1)
    B, slots = len(rows), masking.slots(ROW_LENGTH)
    assert batch.ids_BL.shape == batch.segments_BL.shape == batch.positions_BL.shape == (B, ROW_LENGTH)
    assert batch.predicted_BM.shape == batch.labels_BM.shape == (B, slots)
    assert torch.equal(batch.segments_BL, torch.from_numpy(whole.segments_BL))
    assert torch.equal(batch.positions_BL, torch.from_numpy(whole.positions_BL))
    assert batch.tokens == (whole.segments_BL > 0).sum()

    lines, columns = np.nonzero(batch.labels_BM.numpy() != IGNORED)
    assert batch.targets == len(lines) > 0
    predicted = batch.predicted_BM.numpy()[lines, columns] + lines * ROW_LENGTH
    assert len(set(predicted.tolist())) == len(predicted)
    assert (batch.labels_BM.numpy()[lines, columns] == whole.ids_BL.reshape(-1)[predicted]).all()
    assert whole.maskable_BL.reshape(-1)[predicted].all()
    unpredicted = np.setdiff1d(np.arange(B * ROW_LENGTH), predicted)
    seen = batch.ids_BL.numpy().reshape(-1)
    assert (seen[unpredicted] == whole.ids_BL.reshape(-1)[unpredicted]).all()
    assert np.isin(seen[predicted], [MASK, *range(len(SPECIAL_TOKENS), VOCABULARY)]).all()


def test_special_ids_anywhere_are_neither_predicted_nor_drawn() -> None:
    special = SpecialTokens(7, 30, 12, 3, 39, True, between=(39,), ids=(3, 7, 12, 20, 30, 39))
    rows = packed(split_of([[9, 4, 11], [22]] * 30), special=special)
    rows_B = np.arange(len(rows))
    whole = rows.assemble(rows_B)
    tokens = set(np.unique(whole.ids_BL).tolist())
    assert {3, 7, 39, 12} <= tokens
    assert (whole.ids_BL[whole.segments_BL == 0] == 7).all()
    first = whole.positions_BL == 0
    assert (whole.ids_BL[first & (whole.segments_BL > 0)] == 3).all()
    assert not whole.maskable_BL[whole.ids_BL == 12].any()  # the unknown token tells nothing to learn from
    masking = Masking(rate=0.5, mask_share=0.1, random_share=0.9)
    batches = [rows.masked(rows_B, np.full_like(rows_B, epoch), masking, 0.5, seed=1) for epoch in range(20)]
    seen = torch.cat([b.ids_BL.gather(1, b.predicted_BM)[b.labels_BM != IGNORED] for b in batches])
    assert set(seen.tolist()) == {30, *(set(range(VOCABULARY)) - set(special.ids))}
    assert 12 not in torch.cat([b.labels_BM for b in batches])


def equal(one: Batch, other: Batch) -> bool:
    return all(
        torch.equal(value, vars(other)[name]) if isinstance(value, torch.Tensor) else value == vars(other)[name]
        for name, value in vars(one).items()
    )


@pytest.mark.parametrize("unit", ["token", "word", "span"])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_rows_are_masked_alike_in_every_batch(unit: str, size: int) -> None:
    rows, masking = sentences(60), Masking.model_validate({"unit": unit})
    rows_B, epochs_B = np.random.default_rng(0).permutation(len(rows))[:14], np.arange(14) % 2
    whole = rows.masked(rows_B, epochs_B, masking, 0.15, seed=5)
    for cut in (slice(start, start + size) for start in range(0, 14, size)):
        part = rows.masked(rows_B[cut], epochs_B[cut], masking, 0.15, seed=5)
        assert torch.equal(part.ids_BL, whole.ids_BL[cut])
        assert torch.equal(part.labels_BM, whole.labels_BM[cut])
        assert torch.equal(part.predicted_BM, whole.predicted_BM[cut])


def test_masks_are_new_in_each_epoch_unless_they_are_static() -> None:
    rows, rows_B = sentences(60), np.arange(8)

    def masked(epoch: int, static: bool | int) -> Batch:
        return rows.masked(rows_B, np.full(8, epoch), Masking(static=static), 0.15, seed=5)

    assert not equal(masked(0, static=False), masked(1, static=False))
    assert equal(masked(0, static=True), masked(1, static=True))
    assert equal(masked(0, static=True), masked(0, static=False))
    for epoch in range(6):
        assert equal(masked(epoch, static=3), masked(epoch % 3, static=False))
