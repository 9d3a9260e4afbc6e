from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.mlm.samples import offsets
from tokenizer.shards.packing import Rows, pack, windows

Documents = list[list[int]]
"""The lengths of each document's sentences."""


def packed(documents: Sequence[Sequence[int]], row_length: int, specials: int = 0) -> Rows:
    sentences = offsets([length for document in documents for length in document])
    return pack(sentences, offsets([len(document) for document in documents]), row_length, specials)


def alone(lengths: Sequence[int], row_length: int, specials: int = 0) -> Rows:
    return packed([[length] for length in lengths], row_length, specials)


def runs(rows: Rows, row: int) -> Iterator[tuple[int, int]]:
    for run in range(rows.borders[row], rows.borders[row + 1]):
        yield int(rows.starts[run]), int(rows.starts[run] + rows.lengths[run])


def check(documents: Sequence[Sequence[int]], row_length: int, specials: int, rows: Rows) -> None:
    """Check all that packing promises, whatever the lengths."""
    tokens = sum(map(sum, documents))
    seen = np.zeros(tokens, np.int64)
    document_of = np.repeat(np.arange(len(documents)), [sum(document) for document in documents])
    breaks = {0}
    for length in (length for document in documents for length in document):
        begin = max(breaks)
        breaks |= set(range(begin, begin + length, row_length - specials)) | {begin + length}
    assert rows.borders[0] == 0
    assert rows.borders[-1] == len(rows.starts) == len(rows.lengths)
    for row in range(len(rows)):
        row_runs = list(runs(rows, row))
        assert row_runs, "no row is empty"
        assert sum(end - begin + specials for begin, end in row_runs) <= row_length
        for begin, end in row_runs:
            assert begin < end
            assert {begin, end} <= breaks, "only between sentences, or every row's length in a longer one"
            assert document_of[begin] == document_of[end - 1]
            seen[begin:end] += 1
    assert (seen == 1).all()


documents_of = st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=6), min_size=1, max_size=12)


@given(documents_of, st.integers(4, 20), st.sampled_from([0, 2]))
def test_every_token_is_in_one_run_of_one_document_in_a_row_it_fits(
    documents: Documents, row_length: int, specials: int
) -> None:
    check(documents, row_length, specials, packed(documents, row_length, specials))


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30), st.integers(1, 10))
def test_windows_hold_whole_documents_up_to_the_one_that_fills_them(sizes: list[int], most: int) -> None:
    documents = offsets(sizes)
    found = list(windows(documents, most))
    assert [first for first, _ in found] == [0, *(last for _, last in found[:-1])]
    assert found[-1][1] == len(sizes)
    for first, last in found:
        assert sum(sizes[first : last - 1]) < most
        assert last == len(sizes) or sum(sizes[first:last]) >= most


def test_each_sentence_alone_is_a_run() -> None:
    rows = alone([3, 5, 8, 1], 8)
    assert sorted(zip(rows.starts.tolist(), rows.lengths.tolist(), strict=True)) == [(0, 3), (3, 5), (8, 8), (16, 1)]
    assert len(rows) == 3


def test_consecutive_sentences_of_a_document_are_one_run() -> None:
    rows = packed([[3, 2, 3], [2, 2]], 8)
    assert list(runs(rows, 0)) == [(0, 8)]
    assert list(runs(rows, 1)) == [(8, 12)]


def test_a_document_is_cut_where_a_sentence_ends_and_the_gap_filled_from_another() -> None:
    rows = packed([[4, 3, 4], [1, 6]], 8)
    assert [list(runs(rows, row)) for row in range(len(rows))] == [[(0, 7), (11, 12)], [(12, 18)], [(7, 11)]]


@pytest.mark.parametrize(
    ("row_length", "specials", "pieces"), [(4, 0, [4, 4, 2]), (5, 0, [5, 5]), (10, 0, [10]), (4, 2, [2, 2, 2, 2, 2])]
)
def test_a_sentence_longer_than_a_row_is_cut_into_chunks_of_a_rows_length(
    row_length: int, specials: int, pieces: list[int]
) -> None:
    rows = alone([10], row_length, specials)
    by_start = sorted(zip(rows.starts.tolist(), rows.lengths.tolist(), strict=True))
    assert [length for _, length in by_start] == pieces


def test_special_tokens_take_their_slots() -> None:
    assert len(alone([4, 4], 8)) == 1
    assert len(alone([4, 4], 8, specials=2)) == 2
    assert len(alone([2, 2], 8, specials=2)) == 1


@pytest.mark.parametrize("specials", [0, 2])
@pytest.mark.parametrize("row_length", [128, 512])
@pytest.mark.parametrize("kind", ["sentences", "documents"])
def test_98_percent_of_the_slots_are_filled_at_the_lengths_of_english_sentences(
    kind: str, row_length: int, specials: int
) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(3.0, 0.53, 50_000).astype(int) + 1  # 24 tokens on average, a few over 128
    borders = np.unique(rng.integers(1, len(lengths), 2000)) if kind == "documents" else np.arange(1, len(lengths))
    rows = packed([document.tolist() for document in np.split(lengths, borders)], row_length, specials)
    filled = int(rows.lengths.sum()) + specials * len(rows.lengths)
    assert filled >= 0.98 * len(rows) * row_length
