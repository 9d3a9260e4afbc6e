import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mlm.data.detection import KEPT, RANDOM, SWAPPED, Detection, swap_and_replace
from mlm.data.masking import UnmaskedRows, row_keys
from tests.mlm.data.test_masking import text_of


def rows_of(B: int, L: int, seed: int = 0) -> UnmaskedRows:
    """Return random rows of segments of different length, with special tokens and padding."""
    text = text_of(B, L, seed)
    lengths_BL = np.random.default_rng(seed).random((B, L)) < 0.2
    segments_BL = (lengths_BL.cumsum(axis=1) + 1).astype(np.int32)
    return UnmaskedRows(text.ids_BL, segments_BL, np.zeros_like(text.ids_BL), text.maskable_BL, text.word_starts_BL)


def distinct(B: int, L: int) -> UnmaskedRows:
    """Return full rows of one segment each, in which no token occurs twice."""
    everywhere = np.ones((B, L), np.bool_)
    ids_BL = np.arange(B * L).reshape(B, L)
    return UnmaskedRows(ids_BL, everywhere.astype(np.int32), ids_BL, everywhere, everywhere)


def changed(
    rows: UnmaskedRows, settings: Detection, *, epoch: int = 0, first: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    numbers_B = first + np.arange(len(rows.ids_BL))
    return swap_and_replace(rows, row_keys(0, np.full(len(numbers_B), epoch), numbers_B), settings)


@given(st.integers(1, 6), st.integers(2, 40), st.integers(0, 99), st.floats(0, 0.5), st.floats(0.01, 1))
def test_each_class_is_that_of_its_token(B: int, L: int, seed: int, swapped: float, replaced: float) -> None:
    rows = rows_of(B, L, seed)
    ids_BL, classes_BL = changed(rows, Detection(swapped_share=swapped, random_share=replaced), epoch=seed)
    changed_BL = ids_BL != rows.ids_BL
    assert np.array_equal(changed_BL, classes_BL != KEPT)
    assert not changed_BL[~rows.maskable_BL].any()
    for row, column in np.argwhere(classes_BL == RANDOM).tolist():
        assert ids_BL[row, column] in rows.ids_BL[row, rows.maskable_BL[row]]
    for row in range(B):
        columns = np.flatnonzero(classes_BL[row] == SWAPPED)
        assert len(columns) % 2 == 0  # two tokens change places with each other
        for left, right in columns.reshape(-1, 2).tolist():
            assert right == left + 1
            assert ids_BL[row, [left, right]].tolist() == rows.ids_BL[row, [right, left]].tolist()
            assert rows.segments_BL[row, left] == rows.segments_BL[row, right]


@pytest.mark.parametrize(
    "settings", [Detection(), Detection(swapped_share=0.2, random_share=1e-9), Detection(random_share=0.5)]
)
def test_the_classes_have_their_shares(settings: Detection) -> None:
    B, L = 400, 100
    _, classes_BL = changed(distinct(B, L), settings)
    # A swap begins where one is drawn and none was drawn for the token before; the last token of a row begins none.
    begins = settings.swapped_share * (1 + (1 - settings.swapped_share) * (L - 2)) / L
    expected = {SWAPPED: 2 * begins, RANDOM: (1 - 2 * begins) * settings.random_share * (1 - 1 / L)}
    for kind, share in expected.items():
        deviation = (2 * share * (1 - share) / (B * L)) ** 0.5  # two tokens of a swap are one draw
        assert np.mean(classes_BL == kind) == pytest.approx(share, abs=5 * deviation)


def test_a_row_is_a_function_of_seed_epoch_and_its_number() -> None:
    rows, settings = distinct(6, 50), Detection()
    whole, _ = changed(rows, settings)
    some = UnmaskedRows(*(array[2:4] for array in vars(rows).values()))
    part, _ = changed(some, settings, first=2)
    again, _ = changed(rows, settings, epoch=1)
    assert np.array_equal(part, whole[2:4])
    assert not np.array_equal(again, whole)
