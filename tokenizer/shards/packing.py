"""Pack whole segments into rows of a fixed length, with almost no padding.

Packing changes nothing but speed: the model's attention never crosses from one segment to the next.
Unlike packing by histogram (Krell et al. 2021), it may cut a document's run of sentences between any two sentences.
So rows are full even if segments are nearly as long as a row.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROW_LENGTHS = range(8, 65_537)
"""The slots that a row may have."""
WINDOW_SENTENCES = 2**17
"""Sentences that are packed together: enough to offer every length, few enough to keep memory flat."""


@dataclass(frozen=True)
class Rows:
    """The runs of tokens in each row: row r holds runs `borders[r]` to `borders[r + 1]`."""

    starts: NDArray[np.int64]
    """Offset of each run among the tokens of the split."""
    lengths: NDArray[np.int32]
    """Tokens of each run, without the special tokens around it."""
    borders: NDArray[np.int64]
    """First run of each row, and the end of the last row's runs."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.borders) - 1


def windows(
    documents: Sequence[int] | NDArray[np.int64], window_sentences: int = WINDOW_SENTENCES
) -> Iterator[tuple[int, int]]:
    """Yield the first document of each window, and the one after its last: whole documents of about so many sentences.

    `documents` is the offset of each document among the sentences, and the end of the last. Of a mapped file few pages
    are read.
    """
    first, end = 0, len(documents) - 1
    while first < end:
        last = min(bisect_left(documents, documents[first] + window_sentences), end)
        yield first, last
        first = last


def pack(
    sentences: NDArray[np.int64], documents: NDArray[np.int64], row_length: int, specials_per_segment: int = 0
) -> Rows:
    """Pack runs of consecutive sentences of a window's documents into rows.

    `sentences` is the offset of each sentence among the tokens, and the end of the last; `documents` the offset of each
    document among the sentences of the whole side, and the end of the last: the first is that of `sentences[0]`. If
    every sentence is a document, each segment is one sentence. A sentence that is longer than a row is cut into chunks
    of a row's length.
    """
    return _fill_rows(
        *_chunks(sentences, documents, row_length - specials_per_segment), row_length, specials_per_segment
    )


def _chunks(
    sentences: NDArray[np.int64], documents: NDArray[np.int64], capacity: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut sentences into chunks that fit a row; return the chunks' offsets and the end of each document among them."""
    lengths = np.diff(sentences)
    counts = -(-lengths // capacity)
    ends = np.cumsum(counts)
    within = np.arange(ends[-1]) - np.repeat(ends - counts, counts)
    offsets = np.append(np.repeat(sentences[:-1], counts) + within * capacity, sentences[-1])
    return offsets, ends[documents[1:] - documents[0] - 1]


def _fill_rows(offsets_array: NDArray[np.int64], ends_array: NDArray[np.int64], row_length: int, specials: int) -> Rows:
    """Fill one row at a time.

    Repeatedly take the document whose next sentence is the longest that fits, and add as many of its following
    sentences as fit, or one fewer if that leaves less padding once the longest waiting sentence that fits is added.
    """
    offsets, ends = offsets_array.tolist(), ends_array.tolist()
    cursors = [0, *ends[:-1]]
    waiting: list[list[int]] = [[] for _ in range(row_length + 1)]  # documents by their next sentence's length
    lengths_waiting = 0  # bit n is set if waiting[n] holds a document
    for document in reversed(range(len(ends))):
        if cursors[document] == ends[document]:  # the tokenizer reads nothing of it
            continue
        length = offsets[cursors[document] + 1] - offsets[cursors[document]]
        waiting[length].append(document)
        lengths_waiting |= 1 << length
    begins, stops, borders = [], [], [0]
    while lengths_waiting:
        gap = row_length
        while gap > specials and (fitting := lengths_waiting & ((2 << (gap - specials)) - 1)):
            length = fitting.bit_length() - 1
            document = waiting[length].pop()
            if not waiting[length]:
                lengths_waiting ^= 1 << length
            begin, end = cursors[document], ends[document]
            longest = bisect_right(offsets, offsets[begin] + gap - specials, begin + 1, end + 1) - 1
            shorter = max(longest - 1, begin + 1)  # one sentence fewer may leave room for a better one
            slots = [offsets[stop] - offsets[begin] + specials for stop in (longest, shorter)]
            unfilled = [_unfilled(gap - used, lengths_waiting, specials) for used in slots]
            stop = longest if unfilled[0] <= unfilled[1] else shorter
            begins.append(begin)
            stops.append(stop)
            gap -= offsets[stop] - offsets[begin] + specials
            if stop < end:
                cursors[document] = stop
                length = offsets[stop + 1] - offsets[stop]
                waiting[length].append(document)
                lengths_waiting |= 1 << length
        borders.append(len(begins))
    starts = offsets_array[begins]
    return Rows(starts, (offsets_array[stops] - starts).astype(np.int32), np.array(borders, np.int64))


def _unfilled(room: int, lengths_waiting: int, specials: int) -> int:
    """Return the slots of `room` that the longest waiting sentence that fits would leave empty."""
    if room <= specials:
        return room
    longest = (lengths_waiting & ((2 << (room - specials)) - 1)).bit_length() - 1
    return room - longest - specials if longest > 0 else room
