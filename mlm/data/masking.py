"""Choose the tokens to predict and corrupt them (Devlin et al. 2019, section 3.1), as a pure function.

Every choice is a hash of (seed, epoch, row, position): masks change with each epoch (Liu et al. 2019, section 4.1), and
do not depend on the batch size or the number of processes.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from configs import Config

SPAN_START_PROBABILITY = 0.2
LONGEST_SPAN_WORDS = 10

# Independent streams of random bits for a row.
_ORDER, _SPAN, _CORRUPTION, _REPLACEMENT = range(4)


class Masking(Config):
    """The choice of tokens to predict, and their replacement in the model's input."""

    unit: Literal["token", "word", "span"] = "token"
    """The unit of choice: single tokens, whole words, or spans of words (geometric lengths with p = 0.2, cut at 10
    words; after Joshi et al. 2020, section 3.1)."""
    rate: float = Field(0.15, gt=0, lt=1)
    """Share of each row's tokens that are predicted, at the start of training."""
    final_rate: float | None = Field(None, gt=0, lt=1)
    """Share at the end of training, reached linearly; null keeps `rate`."""
    mask_share: float = Field(0.8, ge=0, le=1)
    """Share of the predicted tokens that are replaced by [MASK]."""
    random_share: float = Field(0.1, ge=0, le=1)
    """Share of the predicted tokens that are replaced by a random token; the rest is kept."""
    static: bool | Annotated[int, Field(ge=1)] = False
    """Draw each row's masks once and take them in every epoch, for comparison; a number draws so many and takes them in
    turn: BERT's preprocessing drew 10 and saw each 4 times (Liu et al. 2019, section 4.1)."""

    @model_validator(mode="after")
    def _shares_fit(self) -> "Masking":
        if self.mask_share + self.random_share > 1:
            raise ValueError(f"mask_share + random_share is {self.mask_share + self.random_share:g}, over 1")
        return self

    def rate_at(self, fraction: float) -> float:
        """Return the rate in force at `fraction` of the budget, from 0 to 1."""
        return self.rate + (((self.final_rate or self.rate) - self.rate) * fraction)

    @property
    def mean_rate(self) -> float:
        """Mean of the rate over the whole of training."""
        return self.rate_at(0.5)

    def slots(self, row_length: int, rate: float | None = None) -> int:
        """Return the largest number of predicted tokens in a row, at a rate or over the whole of training."""
        return _count(rate or max(self.rate, self.final_rate or 0.0), np.array(row_length)).item()


@dataclass(frozen=True)
class UnmaskedRows:
    """Rows before any of their tokens are hidden."""

    ids_BL: NDArray[np.int64]
    """Token ids."""
    segments_BL: NDArray[np.int32]
    """Number of each position's segment within its row, from 1; 0 is padding."""
    positions_BL: NDArray[np.int64]
    """Position within the segment."""
    maskable_BL: NDArray[np.bool_]
    """True at positions that may be chosen: neither padding nor special tokens."""
    word_starts_BL: NDArray[np.bool_]
    """True at the first token of each word of the tokenizer; a segment's first token begins one."""


@dataclass(frozen=True)
class MaskedRows:
    """Rows as the model sees them, and the positions to predict. M is a fixed number of slots per row."""

    ids_BL: NDArray[np.int64]
    """The corrupted rows."""
    predicted_BM: NDArray[np.int64]
    """Places in the row of the tokens to predict, in no order; 0 in a slot that is not filled."""
    filled_BM: NDArray[np.bool_]
    """True if a slot holds a prediction."""


def row_keys(seed: int, epochs_B: NDArray[np.int64], rows_B: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return the hashes, (B,), from which all random choices of a row in an epoch derive."""
    with np.errstate(over="ignore"):
        seeds_B = splitmix64(np.full(len(rows_B), seed, np.uint64))
        return splitmix64(splitmix64(seeds_B + epochs_B.astype(np.uint64)) + rows_B.astype(np.uint64))


def corrupt(
    whole: UnmaskedRows,
    keys_B: NDArray[np.uint64],
    masking: Masking,
    *,
    rate: float,
    ordinary_ids: NDArray[np.int64],
    mask_id: int,
) -> MaskedRows:
    """Choose `rate` of each row's maskable tokens and corrupt them.

    A row of n maskable tokens gets exactly round(rate * n) predictions. Whole words and spans get fewer, by less than
    one word: the last span is truncated at the end of a word. A word with more tokens than its row has predictions is
    split: each of its tokens counts as a word. `keys_B` are the row's `row_keys`; `rate` is at most the
    largest rate of `masking`; a random replacement is one of `ordinary_ids`.
    """
    slots = masking.slots(whole.ids_BL.shape[1])
    taken_B = _count(rate, whole.maskable_BL.sum(axis=1))
    by_token = masking.unit == "token"
    words_BL = whole.word_starts_BL | whole.maskable_BL if by_token else _word_starts(whole, taken_B)
    starts_BL = _span_starts(words_BL, whole.segments_BL, keys_B) if masking.unit == "span" else words_BL
    order_BL = _shuffled_positions(whole.maskable_BL, starts_BL, keys_B)[:, : slots + 1]
    # Mask whole words: lower the count to the last word border that does not exceed it.
    borders = np.take_along_axis(words_BL | ~whole.maskable_BL, order_BL, axis=1)
    borders = np.pad(borders, ((0, 0), (0, 1)), constant_values=True)  # a row may be taken to its end
    borders &= np.arange(borders.shape[1]) <= taken_B[:, None]
    taken_B = borders.shape[1] - 1 - borders[:, ::-1].argmax(axis=1)
    filled_BM = np.arange(slots) < taken_B[:, None]
    predicted_BM = np.where(filled_BM, order_BL[:, :slots], 0)

    draw_BM = _uniform(_bits(keys_B, _CORRUPTION, predicted_BM))
    random_BM = _bits(keys_B, _REPLACEMENT, predicted_BM) % np.uint64(len(ordinary_ids))
    original_BM = np.take_along_axis(whole.ids_BL, predicted_BM, axis=1)
    changed_BM = draw_BM < masking.mask_share + masking.random_share
    seen_BM = np.where(changed_BM, ordinary_ids[random_BM], original_BM)
    seen_BM = np.where(draw_BM < masking.mask_share, mask_id, seen_BM)
    corrupted_BL = whole.ids_BL.copy()
    rows, columns = np.nonzero(filled_BM)
    corrupted_BL[rows, predicted_BM[rows, columns]] = seen_BM[rows, columns]
    return MaskedRows(corrupted_BL, predicted_BM, filled_BM)


def _count(rate: float, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    counts: NDArray[np.int64] = np.floor(rate * tokens + 0.5).astype(np.int64)
    return counts


def _word_starts(whole: UnmaskedRows, most_B: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return where words start, (B, L); a word of more than `most_B` tokens is split into its tokens."""
    borders = whole.word_starts_BL | ~whole.maskable_BL
    borders[:, 0] = True
    lengths = np.diff(np.flatnonzero(borders), append=borders.size)
    lengths_BL = lengths.repeat(lengths).reshape(borders.shape)
    return whole.word_starts_BL | (whole.maskable_BL & (lengths_BL > most_B[:, None]))


def _span_starts(
    words_BL: NDArray[np.bool_], segments_BL: NDArray[np.int32], keys_B: NDArray[np.uint64]
) -> NDArray[np.bool_]:
    """Return those of the word starts, (B, L), that begin a span."""
    starts_BL = words_BL & (_uniform(_bits(keys_B, _SPAN, np.arange(words_BL.shape[1]))) < SPAN_START_PROBABILITY)
    starts_BL |= np.diff(segments_BL, axis=1, prepend=-1) != 0  # no span reaches into the row's next text
    numbers_BL = words_BL.cumsum(axis=1)
    numbers_at_start_BL = np.maximum.accumulate(np.where(starts_BL, numbers_BL, 0), axis=1)
    starts_BL |= words_BL & ((numbers_BL - numbers_at_start_BL) % LONGEST_SPAN_WORDS == 0)
    return starts_BL


def _shuffled_positions(
    maskable_BL: NDArray[np.bool_], starts_BL: NDArray[np.bool_], keys_B: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """Return each row's positions: units, by their starts, in random order; then those that may not be chosen."""
    positions_L = np.arange(maskable_BL.shape[1])
    units_BL = np.maximum.accumulate(np.where(starts_BL, positions_L, 0), axis=1)
    # One number per token, for a plain sort of numbers: a bit that is set if the token may not be chosen, 31 random
    # bits of its unit, the unit and the position, 16 bits each.
    bits_BL = _bits(keys_B, _ORDER, units_BL) >> np.uint64(33) | (~maskable_BL).astype(np.uint64) << np.uint64(31)
    sort_BL = bits_BL << np.uint64(32) | (units_BL << 16 | positions_L).astype(np.uint64)
    sort_BL.sort(axis=1)
    return (sort_BL & np.uint64(0xFFFF)).astype(np.int64)


def splitmix64(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64 bits (the output function of SplitMix64: Steele et al. 2014)."""
    numbers = (numbers ^ numbers >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ numbers >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return numbers ^ numbers >> np.uint64(31)


def _bits(keys_B: NDArray[np.uint64], stream: int, positions: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return 64 random bits for each position of each row in one of the streams."""
    counters = (positions.astype(np.uint64) << np.uint64(2)) + np.uint64(stream + 1)
    return splitmix64(keys_B[:, None] + counters * np.uint64(0x9E3779B97F4A7C15))


def _uniform(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Turn random bits into numbers from 0 up to, not including, 1."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
