"""What is done to documents one by one, before duplicates are left out: cut into sentences, and encode these."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tokenizer.cached_encoder import CachedEncoder, Encoded
from tokenizer.cleaning import SentenceTable, TextConfig, split_documents
from tokenizer.sources import Document


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """Documents that were cut and encoded."""

    cuts: SentenceTable
    encoded: Encoded
    """The sentences of all, whichever will stay."""
    words: NDArray[np.int64]
    """White-space-separated words of each sentence."""
    text_bytes: NDArray[np.int64]
    """UTF-8 bytes of each sentence."""


class DocumentEncoder:
    """Cuts documents into sentences and encodes these."""

    def __init__(self, text: TextConfig, tokenizer: Tokenizer) -> None:
        self._text, self._lookup = text, CachedEncoder(tokenizer)

    def __call__(self, documents: Sequence[Document]) -> EncodedBatch:
        """Do it, for documents in their order."""
        sentences, cuts = split_documents(self._text, documents)
        count = len(sentences)
        return EncodedBatch(
            cuts,
            self._lookup.encode(sentences),
            # one that goes on a running text begins with its space
            np.fromiter((s.count(" ") + (not s.startswith(" ")) for s in sentences), np.int64, count),
            np.fromiter((len(s.encode()) for s in sentences), np.int64, count),
        )
