"""Swap neighbours, and replace tokens by others of the row, to be detected (after Yamaguchi et al. 2021)."""

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from configs import Config
from mlm.data.masking import UnmaskedRows, bits, uniform

KEPT, SWAPPED, RANDOM = range(3)
"""Classes of tokens."""

# Independent streams of random bits for a row. Masks have the same numbers: a row has either.
_SWAP, _REPLACE, _PLACE = range(3)


class Detection(Config):
    """Rows in which no token is hidden: a head tells swapped and random tokens from those that were kept."""

    row_share: float = Field(0.5, gt=0, lt=1)
    """Share of the rows of a step, spread evenly; the tokens of the others are hidden and predicted."""
    begin: float = Field(0.0, ge=0, lt=1)
    """Used share of the budget from which there are such rows."""
    swapped_share: float = Field(0.05, ge=0, le=0.5)
    """Share of the places that are drawn, for the token and the next one of its segment to be swapped. Of two drawn
    places side by side the second is left."""
    random_share: float = Field(0.08, gt=0, le=1)
    """Share of the other tokens for which a place of the row is drawn, whose token replaces them. Where padding or a
    special token is drawn, they are kept."""
    weight: float = Field(1.0, gt=0)
    """Weight of the loss of each of their tokens, beside that of a hidden token. The losses are summed, and a row has
    several times as many tokens as hidden ones."""


def swap_and_replace(
    whole: UnmaskedRows, keys_B: NDArray[np.uint64], detection: Detection
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows with tokens swapped and replaced, and the class of the token at each position, both (B, L).

    Special tokens, unknown ones and padding stay. A token that is replaced by its equal is kept. `keys_B` are the row's
    `row_keys`.
    """
    inside_BL, ids_BL = whole.maskable_BL, whole.ids_BL.copy()
    places_L = np.arange(ids_BL.shape[1])
    swaps_BL = inside_BL & (uniform(bits(keys_B, _SWAP, places_L)) < detection.swapped_share)
    swaps_BL[:, :-1] &= inside_BL[:, 1:] & (np.diff(whole.segments_BL, axis=1) == 0)
    swaps_BL[:, -1] = False
    swaps_BL[:, 1:] &= ~swaps_BL[:, :-1]
    rows, left = np.nonzero(swaps_BL)
    ids_BL[rows, left], ids_BL[rows, left + 1] = whole.ids_BL[rows, left + 1], whole.ids_BL[rows, left]
    classes_BL = np.where(ids_BL != whole.ids_BL, SWAPPED, KEPT)
    others_BL = inside_BL & ~(swaps_BL | np.roll(swaps_BL, 1, axis=1))
    rows, columns = np.nonzero(others_BL & (uniform(bits(keys_B, _REPLACE, places_L)) < detection.random_share))
    sources = bits(keys_B, _PLACE, places_L)[rows, columns] % np.uint64(len(places_L))
    usable = inside_BL[rows, sources]
    rows, columns, sources = rows[usable], columns[usable], sources[usable]
    ids_BL[rows, columns] = whole.ids_BL[rows, sources]
    classes_BL[rows, columns] = np.where(ids_BL[rows, columns] != whole.ids_BL[rows, columns], RANDOM, KEPT)
    return ids_BL, classes_BL
