"""First embeddings from counts, so that tokens with the same neighbours begin alike.

A step changes the embeddings of the tokens in it, and a rare token waits long for its steps. Its neighbours in all of
the text are counted in seconds. The embeddings are factors of the positive pointwise mutual information of tokens and
neighbours (Levy & Goldberg 2014, section 5), with near neighbours counted for more, smoothed contexts, and singular
values to the power 1/2 (Levy, Goldberg & Dagan 2015, section 3).
"""

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from safetensors.numpy import save_file
from scipy import sparse

from configs import Config
from configs.files import written
from mlm.data.batches import PackedRows
from mlm.data.corpus import Corpus
from tokenizer.shards.rows import source_of
from tokenizer.sources import hash_texts

SMOOTHING = 0.75
"""Power of the counts of contexts."""
FEWEST = 5
"""Occurrences that a token needs, for its neighbours to say anything."""
_VERSION = 1
"""Part of the key of counted embeddings: raise it whenever the same text would give others."""


class RandomEmbeddings(Config):
    """Random embeddings, and an output bias of 0."""

    kind: Literal["random"] = "random"


class CooccurrenceEmbeddings(Config):
    """Embeddings by the neighbours of each token in the training text, and an output bias by its frequency."""

    kind: Literal["cooccurrence"] = "cooccurrence"
    window: int = Field(4, gt=0)
    """Largest distance of neighbours, in tokens; those at distance d count 1/d."""
    most_tokens: int = Field(20_000_000, gt=0)
    """Largest number of training tokens that are counted."""

    def find_or_count(self, corpus: Corpus, width: int) -> Path:
        """Return the file in the cache with `embeddings`, (V, D), and `output_bias`, (V,); count if it is missing.

        Embeddings have length 1, or 0 where a token is too rare. The biases are the logarithms of the tokens' shares.
        """
        rows = corpus.train
        text = [*map(source_of, corpus.shards), *map(str, rows.order.shares), str(rows.row_length)]
        key = hash_texts(str(_VERSION), self.model_dump_json(), str(width), *text)
        path = corpus.cache / f"embeddings-{key:.16}.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with written(path) as partial:
                save_file(self.count(rows, width), partial)
        return path

    def count(self, rows: PackedRows, width: int) -> dict[str, NDArray[np.float32]]:
        """Return the same tensors, counted."""
        tokens, firsts = rows.sample(self.most_tokens)
        counts_V = np.bincount(tokens, minlength=rows.vocabulary_size)
        information_VV = mutual_information(neighbours(tokens, firsts, rows.vocabulary_size, self.window))
        embeddings_VD = factors(information_VV, width) * (counts_V >= FEWEST)[:, None]
        bias_V = np.log((counts_V + 1) / (counts_V + 1).sum())
        return {"embeddings": embeddings_VD.astype(np.float32), "output_bias": bias_V.astype(np.float32)}


def neighbours(tokens: NDArray[np.int64], firsts: NDArray[np.int64], size: int, window: int) -> sparse.csr_array:
    """Return how often tokens are neighbours within a segment, (V, V), a pair at distance d counted 1/d.

    `firsts` are the places of the segments' first tokens.
    """
    begins = np.zeros(len(tokens), np.int64)
    begins[firsts] = 1
    segments = begins.cumsum()
    ahead_VV = sparse.csr_array((size, size))
    for distance in range(1, window + 1):
        together = segments[distance:] == segments[:-distance]
        pairs = tokens[:-distance][together], tokens[distance:][together]
        ahead_VV += sparse.coo_array((np.full(len(pairs[0]), 1 / distance), pairs), (size, size)).tocsr()
    return ahead_VV + ahead_VV.T


def mutual_information(weights_VV: sparse.csr_array) -> sparse.csr_array:
    """Return the positive pointwise mutual information, max(0, log(p(w, c) / (p(w) p(c)))), with smoothed p(c)."""
    pairs = weights_VV.tocoo()
    words_V = np.asarray(weights_VV.sum(axis=1))
    contexts_V = words_V**SMOOTHING
    row, column = pairs.coords
    information = np.log(pairs.data / words_V[row] / contexts_V[column] * contexts_V.sum())
    positive = information > 0
    return sparse.csr_array((information[positive], (row[positive], column[positive])), weights_VV.shape)


def factors(matrix_VV: sparse.csr_array, width: int) -> NDArray[np.float64]:
    """Return the rows of US^(1/2) of the truncated singular value decomposition USV^T, of length 1 and rotated, (V, D).

    The first singular vectors are long. The rotation, which keeps all angles, spreads them over all coordinates.
    """
    from sklearn.utils.extmath import randomized_svd  # takes a second

    rank = min(width, matrix_VV.shape[0])
    single = matrix_VV.astype(np.float32)  # twice as fast
    left_VR, values_R, _ = randomized_svd(single, rank, n_iter=2, power_iteration_normalizer="QR", random_state=0)
    turned_RD = np.linalg.qr(np.random.default_rng(0).standard_normal((width, width)))[0][:rank]
    rows_VD: NDArray[np.float64] = left_VR * values_R**0.5 @ turned_RD
    lengths_V1 = np.linalg.norm(rows_VD, axis=1, keepdims=True)
    return rows_VD / np.where(lengths_V1 > 0, lengths_V1, 1.0)
