"""The order in which rows are read: a pure function of (seed, step), of one corpus or a mixture, in constant memory."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mlm.data.masking import row_keys, splitmix64
from tokenizer.mixture import PERIOD

ROUNDS, FEWEST_BITS = 6, 8
"""Fewer rounds, or halves of fewer bits, favor some orders of a few rows."""
_STREAM = 0x6F72646572
"""Makes the keys of orders other numbers than those of masks."""


@dataclass(frozen=True)
class RowOrder:
    """The rows of each step: every corpus has its share of them, and its own epochs, each in a new order."""

    sizes: tuple[int, ...]
    """Rows of each corpus. They are numbered through all corpora, from 0."""
    shares: tuple[float, ...] = (1.0,)
    """Share of each corpus in the rows of training; their sum is 1."""

    def __len__(self) -> int:
        """Return the number of rows of all corpora."""
        return sum(self.sizes)

    def rows(self, seed: int, step: int, batch_rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows of a step, and how often the corpus of each has been read before."""
        rounds_B, turns_B = np.divmod(np.arange(step * batch_rows, (step + 1) * batch_rows), len(self._pattern[0]))
        corpora_B, earlier_B = (column[turns_B] for column in self._pattern)
        sizes, counts = np.array(self.sizes), np.bincount(self._pattern[0], minlength=len(self.sizes))
        epochs_B, places_B = np.divmod(counts[corpora_B] * rounds_B + earlier_B, sizes[corpora_B])
        keys_B = row_keys(seed ^ _STREAM, epochs_B, corpora_B)
        rows_B = np.empty(batch_rows, np.int64)
        for corpus in np.unique(corpora_B).tolist():
            mine = corpora_B == corpus
            rows_B[mine] = permuted(places_B[mine], self.sizes[corpus], keys_B[mine]) + sum(self.sizes[:corpus])
        return rows_B, epochs_B

    def first_rows(self, seed: int, most: int) -> NDArray[np.int64]:
        """Return different rows, about `most` of them: of each corpus its share, but one at least."""
        first, found = 0, []
        for size, share in zip(self.sizes, self.shares, strict=True):
            count = min(max(round(most * share), 1), size)
            found.append(RowOrder((size,)).rows(seed, 0, count)[0] + first)
            first += size
        return np.concatenate(found)

    def corpora(self, rows_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of the corpus of each row."""
        return np.searchsorted(np.cumsum(self.sizes), rows_B, side="right")

    @cached_property
    def _pattern(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The corpus of each turn of a period, evenly spread, and the number of earlier turns that read the same."""
        if len(self.sizes) == 1:
            return np.zeros(1, np.int64), np.zeros(1, np.int64)
        exact = np.array(self.shares) * PERIOD
        counts = np.floor(exact).astype(np.int64)
        counts[np.argsort(counts - exact, kind="stable")[: PERIOD - counts.sum()]] += 1  # the largest remainders
        corpora = np.repeat(np.arange(len(counts)), counts)
        earlier = np.concatenate([np.arange(count) for count in counts])
        evenly = np.argsort((earlier + 0.5) / counts[corpora], kind="stable")
        return corpora[evenly], earlier[evenly]


def permuted(places_B: NDArray[np.int64], size: int, keys_B: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the number at each of some places in a pseudo-random order of the numbers below `size`; a key is an order.

    A Feistel network permutes the numbers of as many bits as `size` needs, again and again for those that it puts at
    `size` or beyond: a cycle-walking cipher (Black & Rogaway 2002).
    """
    bits = max((size - 1).bit_length(), FEWEST_BITS)
    halves = (bits // 2, bits - bits // 2)
    numbers_B = places_B.astype(np.uint64)
    outside = np.arange(len(places_B))
    while len(outside):
        numbers_B[outside] = _feistel(numbers_B[outside], keys_B[outside], halves)
        outside = outside[numbers_B[outside] >= size]
    return numbers_B.astype(np.int64)


def _feistel(numbers: NDArray[np.uint64], keys: NDArray[np.uint64], halves: tuple[int, int]) -> NDArray[np.uint64]:
    """Permute the numbers of `sum(halves)` bits: each round scrambles one half by a hash of the other."""
    left_bits, right_bits = map(np.uint64, halves)
    one = np.uint64(1)
    with np.errstate(over="ignore"):
        for turn in range(ROUNDS):
            left, right = numbers >> right_bits, numbers & ((one << right_bits) - one)
            hashed = splitmix64(keys + np.uint64(turn * 0x9E3779B97F4A7C15 % 2**64) + right)
            numbers = right << left_bits | (left ^ hashed & ((one << left_bits) - one))
            left_bits, right_bits = right_bits, left_bits
    return numbers
