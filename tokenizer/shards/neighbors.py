"""Vectors of tokens from counts of their neighbors.

They are factors of the positive pointwise mutual information of tokens and neighbors (Levy & Goldberg 2014, section
4.2), with near neighbors counted for more, smoothed contexts, and singular values to the power 1/2 (Levy, Goldberg &
Dagan 2015, section 3).
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.sparse import csr_array

SMOOTHING = 0.75
"""Power of the counts of contexts."""
FEWEST = 5
"""Occurrences that a token needs, for its neighbors to say anything."""
VERSION = 1
"""Raise it whenever the same text would give other vectors: those in caches are then counted anew."""


def count(
    tokens_T: NDArray[np.int64], firsts: NDArray[np.int64], size: int, window: int, width: int
) -> dict[str, NDArray[np.float32]]:
    """Return `embeddings`, (V, E), and `output_bias`, (V,), of a text with a vocabulary of `size` tokens.

    Embeddings have length 1, or 0 where a token is rare or has no neighbors. The biases are the logarithms of the
    tokens' shares, one more counted of each. `firsts` are the places of the segments' first tokens; neighbors are at
    most `window` tokens apart.
    """
    counts_V = np.bincount(tokens_T, minlength=size)
    embeddings_VE = factors(mutual_information(neighbors(tokens_T, firsts, size, window)), width)
    embeddings_VE[counts_V < FEWEST] = 0.0
    bias_V = np.log((counts_V + 1) / (counts_V + 1).sum())
    return {"embeddings": embeddings_VE, "output_bias": bias_V.astype(np.float32)}


def neighbors(tokens_T: NDArray[np.int64], firsts: NDArray[np.int64], size: int, window: int) -> "csr_array":
    """Return how often tokens are neighbors within a segment, (V, V), a pair at distance d counted 1/d.

    `firsts` are the places of the segments' first tokens.
    """
    from scipy.sparse import coo_array, csr_array  # takes a tenth of a second

    begins_T = np.zeros(len(tokens_T), np.int64)
    begins_T[firsts] = 1
    segments_T = begins_T.cumsum()
    ahead_VV = csr_array((size, size))
    for distance in range(1, window + 1):
        together = segments_T[distance:] == segments_T[:-distance]
        if not together.any():  # no segment is longer
            break
        pairs = tokens_T[:-distance][together], tokens_T[distance:][together]
        ahead_VV += coo_array((np.full(len(pairs[0]), 1 / distance), pairs), (size, size)).tocsr()
    return ahead_VV + ahead_VV.T


def mutual_information(weights_VV: "csr_array") -> "csr_array":
    """Return the positive pointwise mutual information, max(0, log(p(w, c) / (p(w) p(c)))), with smoothed p(c)."""
    pairs = weights_VV.tocoo()
    words_V = np.asarray(weights_VV.sum(axis=1))
    contexts_V = words_V**SMOOTHING
    row, column = pairs.coords
    information = np.log(pairs.data / words_V[row] / contexts_V[column] * contexts_V.sum())
    positive = information > 0
    return type(weights_VV)((information[positive], (row[positive], column[positive])), weights_VV.shape)


def factors(matrix_VV: "csr_array", width: int) -> NDArray[np.float32]:
    """Return the rows of US^(1/2) of the truncated singular value decomposition USV^T, of length 1 and rotated, (V, E).

    A row of zeros stays one. The first singular vectors are long; the rotation, which keeps all angles, spreads them
    over all coordinates.
    """
    from sklearn.utils.extmath import randomized_svd  # takes a second

    single = matrix_VV.astype(np.float32)  # twice as fast
    rank = min(width, single.shape[0])
    left_VX, values_X, _ = randomized_svd(single, rank, n_iter=2, power_iteration_normalizer="QR", random_state=0)
    turned_XE = np.linalg.qr(np.random.default_rng(0).standard_normal((width, width)))[0][:rank]
    rows_VE: NDArray[np.float32] = left_VX * values_X**0.5 @ turned_XE.astype(np.float32)
    rows_VE[np.asarray(single.sum(axis=1)) == 0] = 0.0  # it may be rounding alone
    lengths_V1 = np.linalg.norm(rows_VE, axis=1, keepdims=True)
    rows_VE /= np.where(lengths_V1 > 0, lengths_V1, 1.0)
    return rows_VE
