"""Encode text as the tokenizer would, many times faster: every distinct chunk between spaces goes through it once.

The byte-level pre-tokenizer (Radford et al. 2019) never joins what stands before a lone space with what follows it,
and byte-pair encoding never looks beyond a pre-token. So the encoding of a text with single spaces is that of its
chunks, each with the space before it, laid end to end; natural text repeats few chunks very often.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

_LIMIT_CHUNKS = 1_000_000
_LIMIT_CHARACTERS = 50_000_000
"""Beyond either the table is emptied, so that memory stays flat (about 300 MB); it fills again within seconds."""


class Encoded(NamedTuple):
    """The tokens of several texts end to end."""

    tokens: NDArray[np.uint32]
    word_starts: NDArray[np.uint8]
    """1 where a token starts one of the tokenizer's own words, else 0."""
    lengths: NDArray[np.int64]
    """Number of tokens of each text."""


class _Indices(dict[str, int]):
    """Numbers chunks in the order in which they are first asked for."""

    def __missing__(self, chunk: str) -> int:
        self[chunk] = index = len(self)
        return index


class Lookup:
    """A table of chunks and their tokens that grows with the text it encodes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Encode as `tokenizer` does, without [CLS] and [SEP]; '[MASK]' and the like in the text are plain text."""
        self._normalizer = tokenizer.normalizer
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.normalizer = None  # texts are normalised before they are cut
        self._tokenizer.encode_special_tokens = True
        self._clear()

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Return the encoding of each of `texts`, which must not be empty."""
        if len(self._indices) > _LIMIT_CHUNKS or self._characters > _LIMIT_CHARACTERS:
            self._clear()
        if self._normalizer is not None:
            texts = [self._normalizer.normalize_str(text) for text in texts]
        chunks = [_chunks(text) for text in texts]
        counts = np.fromiter(map(len, chunks), np.int64, len(chunks))
        flat = itertools.chain.from_iterable(chunks)
        indices = np.fromiter(map(self._indices.__getitem__, flat), np.int64, int(counts.sum()))
        self._learn_new()
        lengths = self._lengths[indices]
        ends = np.cumsum(lengths)
        places = np.arange(ends[-1]) + np.repeat(self._starts[indices] - (ends - lengths), lengths)
        return Encoded(
            self._tokens[places],
            self._word_starts[places],
            np.add.reduceat(lengths, np.cumsum(counts) - counts),
        )

    def _clear(self) -> None:
        self._indices = _Indices()
        self._characters = 0
        self._tokens = np.zeros(0, np.uint32)
        self._word_starts = np.zeros(0, np.uint8)
        self._starts = np.zeros(0, np.int64)
        self._lengths = np.zeros(0, np.int64)

    def _learn_new(self) -> None:
        """Encode the chunks that have a number but no tokens yet."""
        new = list(itertools.islice(reversed(self._indices), len(self._indices) - len(self._lengths)))[::-1]
        encodings = self._tokenizer.encode_batch(new, add_special_tokens=False)
        ids = [encoding.ids for encoding in encodings]
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        total = int(lengths.sum())
        starts = np.cumsum(lengths) - lengths
        words = np.fromiter(itertools.chain.from_iterable(e.word_ids for e in encodings), np.int64, total)
        word_starts = np.ones(total, np.uint8)
        word_starts[1:] = words[1:] != words[:-1]
        word_starts[starts] = 1
        self._starts = np.concatenate([self._starts, len(self._tokens) + starts])
        self._lengths = np.concatenate([self._lengths, lengths])
        self._tokens = np.concatenate([self._tokens, np.fromiter(itertools.chain.from_iterable(ids), np.uint32, total)])
        self._word_starts = np.concatenate([self._word_starts, word_starts])
        self._characters += sum(map(len, new))


def _chunks(text: str) -> list[str]:
    """Cut before every space; a text with other white space, or runs of it, stays whole: there it would not hold."""
    if "  " in text or not text.isprintable():
        return [text]
    return text.replace(" ", "\n ").split("\n")
