"""Encode text as the tokenizer would, several times faster: each distinct chunk between spaces is encoded once.

The byte-level pre-tokenizer (Radford et al. 2019) never joins the characters before a lone space with those after it,
and byte-pair encoding never looks beyond a pre-token. So the encoding of a text with single spaces is that of its
chunks end to end, each with the space before it. Natural text repeats few chunks very often.
"""

import re
from array import array
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, normalizers

from tokenizer.vocabulary import LONGEST_WORD

_STARTS_WORD = 1 << 31
"""Bit of a stored token that is the first of a word; no id is so large."""
_LIMIT_CHUNKS = 500_000
_LIMIT_CHARACTERS = 25_000_000
"""The table is emptied beyond either limit, so that memory stays flat (about 150 MB); it fills again in seconds."""
_ASCII_WORDS = re.compile(r"'(?:s|t|re|ve|m|ll|d)| ?[A-Za-z]+| ?[0-9]+| ?[^ A-Za-z0-9]+")
"""The tokenizer's own pattern, as far as printable ASCII of less than a longest word goes."""
_UNICODE_FORMS = (normalizers.NFC, normalizers.NFD, normalizers.NFKC, normalizers.NFKD)
"""Normalisers that leave ASCII as it is."""
_OTHER_SPACE = re.compile(r"[^\S ]")


class Encoded(NamedTuple):
    """The tokens of several texts end to end."""

    tokens: NDArray[np.uint32]
    word_starts: NDArray[np.uint8]
    """1 where a token starts one of the tokenizer's own words, else 0."""
    lengths: NDArray[np.int64]
    """Number of tokens of each text."""


def normalise_by(normalizer: normalizers.Normalizer | None) -> Callable[[str], str]:
    """Return a function that does what `normalizer` does, fast for ASCII under the usual ones; None changes nothing."""
    if normalizer is None:
        return str
    steps = [normalizer]
    if isinstance(normalizer, normalizers.Sequence):
        steps = [normalizer[place] for place in range(len(normalizer))]
    if not all(isinstance(step, (*_UNICODE_FORMS, normalizers.Lowercase)) for step in steps):
        return normalizer.normalize_str
    of_ascii = str.lower if any(isinstance(step, normalizers.Lowercase) for step in steps) else str
    return lambda text: of_ascii(text) if text.isascii() else normalizer.normalize_str(text)


class CachedEncoder:
    """Encodes as a tokenizer does, without [CLS] and [SEP]; '[MASK]' and the like in a text are plain characters."""

    def __init__(self, tokenizer: Tokenizer, limit_chunks: int = _LIMIT_CHUNKS) -> None:
        """Copy the merges and the normaliser of `tokenizer`; remember about `limit_chunks` chunks at most."""
        self.normalizer = tokenizer.normalizer
        self._normalise = normalise_by(self.normalizer)
        plain = Tokenizer.from_str(tokenizer.to_str())
        plain.normalizer = None  # texts are normalised before they are split into chunks
        plain.encode_special_tokens = True
        self._chunks = _Chunks(plain, limit_chunks)

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Return the encoding of each of `texts`."""
        self._chunks.limit()
        texts = list(map(self._normalise, texts))
        tokens_of = self._chunks.__getitem__
        encoded = [b"".join(map(tokens_of, _cut(text))) for text in texts]
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded)) // np.dtype(np.uint32).itemsize
        marked = np.frombuffer(b"".join(encoded), np.uint32)
        starts = marked >= _STARTS_WORD
        return Encoded(marked - starts * np.uint32(_STARTS_WORD), starts.view(np.uint8), lengths)


class _Chunks(dict[str, bytes]):
    """The tokens of every chunk seen so far, as uint32 bytes, the first of each word marked."""

    def __init__(self, tokenizer: Tokenizer, limit_chunks: int) -> None:
        self._tokenizer = tokenizer
        self._limit_chunks = limit_chunks
        self._characters = 0

    def __missing__(self, chunk: str) -> bytes:
        is_plain = chunk.isascii() and chunk.isprintable() and len(chunk) <= LONGEST_WORD
        words = _ASCII_WORDS.findall(chunk) if is_plain else []
        has_words = len(words) > 1 and "".join(words) == chunk
        stored = b"".join(map(self.__getitem__, words)) if has_words else self._encoded(chunk)
        self[chunk] = stored
        self._characters += len(chunk)
        return stored

    def _encoded(self, chunk: str) -> bytes:
        encoding = self._tokenizer.encode(chunk, add_special_tokens=False)
        tokens, words = encoding.ids, encoding.word_ids
        if tokens:
            tokens[0] |= _STARTS_WORD
            for place, (before, word) in enumerate(pairwise(words), start=1):
                tokens[place] |= _STARTS_WORD * (word != before)
        return array("I", tokens).tobytes()  # takes a third of the time of a NumPy array

    def limit(self) -> None:
        """Forget all chunks if there are too many."""
        if len(self) > self._limit_chunks or self._characters > _LIMIT_CHARACTERS:
            self.clear()
            self._characters = 0


def _cut(text: str) -> list[str]:
    """Split before every space; a text with other white space, or runs of it, stays whole, as the rule needs."""
    if "  " in text or (not text.isprintable() and _OTHER_SPACE.search(text)):
        return [text]
    return text.replace(" ", "\n ").split("\n")  # a line break is other white space: the text has none
