"""Move and replace tokens of a row, as a pure function (Shuffle + Random of Yamaguchi et al. 2021)."""

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from configs import Config
from mlm.data.masking import UnmaskedRows, bits, uniform

KEPT, MOVED, FOREIGN = range(3)
"""Classes of a token: the text's own, one that changed places with its neighbour, one from elsewhere in the row."""

# Independent streams of random bits for a row, in which no token is hidden.
_SWAP, _REPLACE, _PLACE = range(3)


class MovedTokens(Config):
    """Rows in which no token is hidden: some change places, some are foreign, and a head tells them from the others."""

    row_share: float = Field(0.5, gt=0, lt=1)
    """Share of the rows of a step that are of this kind."""
    begin: float = Field(0.0, ge=0, lt=1)
    """Share of the budget after which there are such rows."""
    swaps: float = Field(0.05, ge=0, lt=1)
    """Share of their tokens that change places with the next one."""
    foreign: float = Field(0.08, ge=0, lt=1)
    """Share of their other tokens that are replaced by one from elsewhere in the row."""
    weight: float = Field(1.0, gt=0)
    """Weight of a token's loss, beside that of a hidden token."""


def move(
    whole: UnmaskedRows, keys_B: NDArray[np.uint64], moved: MovedTokens
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows with tokens moved and replaced, and the class of the token at each position, both (B, L).

    No token leaves its segment. Special tokens, unknown ones and padding stay. `keys_B` are the row's `row_keys`.
    """
    inside_BL, ids_BL = whole.maskable_BL, whole.ids_BL.copy()
    places_L = np.arange(ids_BL.shape[1])
    swaps_BL = inside_BL & (uniform(bits(keys_B, _SWAP, places_L)) < moved.swaps)
    swaps_BL[:, :-1] &= inside_BL[:, 1:] & (np.diff(whole.segments_BL, axis=1) == 0)
    swaps_BL[:, -1] = False
    swaps_BL[:, 1:] &= ~swaps_BL[:, :-1]  # no token moves twice
    rows, left = np.nonzero(swaps_BL)
    ids_BL[rows, left], ids_BL[rows, left + 1] = whole.ids_BL[rows, left + 1], whole.ids_BL[rows, left]
    classes_BL = np.where(ids_BL != whole.ids_BL, MOVED, KEPT)
    apart_BL = inside_BL & ~(swaps_BL | np.roll(swaps_BL, 1, axis=1))
    rows, columns = np.nonzero(apart_BL & (uniform(bits(keys_B, _REPLACE, places_L)) < moved.foreign))
    sources = bits(keys_B, _PLACE, places_L)[rows, columns] % np.uint64(len(places_L))
    usable = inside_BL[rows, sources]  # else the token stays
    rows, columns, sources = rows[usable], columns[usable], sources[usable]
    ids_BL[rows, columns] = whole.ids_BL[rows, sources]
    classes_BL[rows, columns] = np.where(ids_BL[rows, columns] != whole.ids_BL[rows, columns], FOREIGN, KEPT)
    return ids_BL, classes_BL
