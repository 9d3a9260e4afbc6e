"""First embeddings from counts, so that tokens with the same neighbours begin alike.

A rare token is seldom read or predicted, so training its random embedding takes long. Its neighbours are counted in
seconds.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from configs import Config
from mlm.data.batches import PackedRows
from mlm.data.corpus import Corpus
from tokenizer.shards.neighbours import factors, mutual_information, neighbours
from tokenizer.shards.rows import source_of
from tokenizer.sources import hash_texts

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
    """Largest number of training tokens that are counted, in rows drawn at random; of a mixture, by its shares."""

    def key(self, corpus: Corpus, width: int) -> str:
        """Return a hash of all that the counted embeddings depend on."""
        rows = corpus.train
        text = [*map(source_of, corpus.shards), str(rows.order), str(rows.row_length)]
        return hash_texts(str(_VERSION), self.model_dump_json(), str(width), *text)

    def count(self, rows: PackedRows, width: int) -> dict[str, NDArray[np.float32]]:
        """Return `embeddings`, (V, E), and `output_bias`, (V,), of the text in rows.

        Embeddings have length 1, or 0 where a token is rare or has no neighbours. The biases are the logarithms of the
        tokens' shares, one more counted of each.
        """
        tokens_T, firsts = rows.sample(self.most_tokens)
        counts_V = np.bincount(tokens_T, minlength=rows.vocabulary_size)
        weights_VV = neighbours(tokens_T, firsts, rows.vocabulary_size, self.window)
        embeddings_VE = factors(mutual_information(weights_VV), width)
        embeddings_VE[counts_V < FEWEST] = 0.0
        bias_V = np.log((counts_V + 1) / (counts_V + 1).sum())
        return {"embeddings": embeddings_VE, "output_bias": bias_V.astype(np.float32)}
