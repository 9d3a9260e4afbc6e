"""Encode text as the tokenizer would, several times faster: each distinct chunk between spaces is encoded once.

The usual pre-tokenizers never join the characters before a lone space with those after it, and no model looks beyond a
pre-token. So the encoding of a text with single spaces is that of its chunks end to end. Natural text repeats few
chunks very often. Texts of a tokenizer for which this does not hold are encoded whole.
"""

import itertools
import re
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Encoding, Regex, Tokenizer, normalizers, pre_tokenizers

from tokenizer import kinds
from tokenizer.vocabulary import LONGEST_WORD, WORD

_STARTS_WORD = 1 << 31
"""Bit of a stored token that is the first of a word; no id is so large."""
_LIMIT_CHUNKS = 500_000
_LIMIT_CHARACTERS = 25_000_000
"""The table is emptied beyond either limit, so that memory stays flat (about 150 MB); it fills again in seconds."""
_ASCII_WORDS = re.compile(r"'(?:s|t|re|ve|m|ll|d)| ?[A-Za-z]+| ?[0-9]+| ?[^ A-Za-z0-9]+")
"""The tokenizer's own pattern, as far as printable ASCII of less than a longest word goes."""
_UNICODE_FORMS = (normalizers.NFC, normalizers.NFD, normalizers.NFKC, normalizers.NFKD)
"""Normalizers that leave ASCII as it is."""
_OTHER_SPACE = re.compile(r"[^\S ]")
_WORDS = pre_tokenizers.Split(Regex(WORD), "isolated")


class Encoded(NamedTuple):
    """The tokens of several texts end to end."""

    tokens: NDArray[np.uint32]
    word_starts: NDArray[np.uint8]
    """1 where a token starts one of the tokenizer's own words, else 0."""
    lengths: NDArray[np.int64]
    """Number of tokens of each text."""


def normalize_by(normalizer: normalizers.Normalizer | None) -> Callable[[str], str]:
    """Return a function that does what `normalizer` does, fast for ASCII under the usual ones; None changes nothing."""
    if normalizer is None:
        return str
    steps = [normalizer]
    if isinstance(normalizer, normalizers.Sequence):
        steps = [normalizer[place] for place in range(len(normalizer))]
    if isinstance(normalizer, normalizers.BertNormalizer):
        of_printable = str.lower if normalizer.lowercase else str
        return lambda t: of_printable(t) if t.isascii() and t.isprintable() else normalizer.normalize_str(t)
    if not all(isinstance(step, (*_UNICODE_FORMS, normalizers.Lowercase)) for step in steps):
        return normalizer.normalize_str
    of_ascii = str.lower if any(isinstance(step, normalizers.Lowercase) for step in steps) else str
    return lambda text: of_ascii(text) if text.isascii() else normalizer.normalize_str(text)


class CachedEncoder:
    """Encodes as a tokenizer does, without [CLS] and [SEP]; '[MASK]' and the like in a text are plain characters."""

    def __init__(self, tokenizer: Tokenizer, limit_chunks: int = _LIMIT_CHUNKS) -> None:
        """Copy `tokenizer`; remember about `limit_chunks` chunks at most."""
        self.normalizer = tokenizer.normalizer
        self._normalize = normalize_by(self.normalizer)
        self._whole = kinds.plain_reader(tokenizer)
        self._inside = kinds.without_prefix(self._whole)
        self._rule = _rule(self._inside)
        plain = Tokenizer.from_str(self._inside.to_str())
        plain.normalizer = None  # texts are normalized before they are split into chunks
        plain.encode_special_tokens = True
        added = [token for token in tokenizer.get_added_tokens_decoder().values() if not token.special]
        self._chunks = _Chunks(plain, self._rule, _any_of(token.content for token in added), limit_chunks)
        # The library puts no space before a text that begins with an added token.
        adds_space = self._inside is not self._whole
        uncut = [token.content for token in added if adds_space or _breaks_chunks(token, self.normalizer)]
        self._uncut = _any_of([*uncut, *map(self._normalize, uncut)])

    def encode(self, texts: Sequence[str], begins: Iterable[bool] = itertools.repeat(True)) -> Encoded:
        """Return the encoding of each of `texts`; `begins` is False for one that goes on from the one before it."""
        self._chunks.limit()
        encoded = list(map(self._encoded, texts, begins))
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded)) // np.dtype(np.uint32).itemsize
        marked = np.frombuffer(b"".join(encoded), np.uint32)
        starts = marked >= _STARTS_WORD
        return Encoded(marked - starts * np.uint32(_STARTS_WORD), starts.view(np.uint8), lengths)

    def _encoded(self, text: str, begins: bool) -> bytes:
        read, encoder = self._normalize(text), self._whole if begins else self._inside
        if self._rule.cut is None or (self._uncut and (self._uncut.search(text) or self._uncut.search(read))):
            return _stored(encoder.encode(text, add_special_tokens=False), text, self._rule)
        if encoder is not self._inside and read and not read.startswith(" "):
            read = f" {read}"  # as PREFIX_SPACE does
        return b"".join(map(self._chunks.__getitem__, self._rule.cut(read)))


class _Rule(NamedTuple):
    """The properties of a pre-tokenizer."""

    cut: Callable[[str], list[str]] | None
    """Cuts a normalized text into chunks whose encodings, end to end, are that of the text; None: there is no way."""
    finds_words: bool
    """True if its pre-tokens are words and punctuation; else those of our own pattern are taken."""
    has_ascii_words: bool
    """True if `_ASCII_WORDS` are its pre-tokens."""


class _Chunks(dict[str, bytes]):
    """The tokens of every chunk seen so far, as uint32 bytes, the first of each word marked."""

    def __init__(self, tokenizer: Tokenizer, rule: _Rule, added: re.Pattern[str] | None, limit_chunks: int) -> None:
        self._tokenizer, self._rule, self._added = tokenizer, rule, added
        self._limit_chunks = limit_chunks
        self._characters = 0

    def __missing__(self, chunk: str) -> bytes:
        is_plain = chunk.isascii() and chunk.isprintable() and len(chunk) <= LONGEST_WORD and self._rule.has_ascii_words
        words = _ASCII_WORDS.findall(chunk) if is_plain and not (self._added and self._added.search(chunk)) else []
        has_words = len(words) > 1 and "".join(words) == chunk
        stored = b"".join(map(self.__getitem__, words)) if has_words else self._encoded(chunk)
        self[chunk] = stored
        self._characters += len(chunk)
        return stored

    def _encoded(self, chunk: str) -> bytes:
        return _stored(self._tokenizer.encode(chunk, add_special_tokens=False), chunk, self._rule) if chunk else b""

    def limit(self) -> None:
        """Forget all chunks if there are too many."""
        if len(self) > self._limit_chunks or self._characters > _LIMIT_CHARACTERS:
            self.clear()
            self._characters = 0


def _rule(tokenizer: Tokenizer) -> _Rule:
    """Return what holds for the pre-tokenizer of `tokenizer`."""
    match kinds.steps(tokenizer):
        case [{"type": "BertPreTokenizer"}]:
            return _Rule(_between_spaces, finds_words=True, has_ascii_words=False)
        case [{"type": "WhitespaceSplit"}, {"type": "Metaspace", "prepend_scheme": "always" | "never", "split": True}]:
            return _Rule(_between_spaces, finds_words=False, has_ascii_words=False)
        case [{"type": "Metaspace", "split": True}]:
            return _Rule(_before_spaces, finds_words=False, has_ascii_words=False)
        case [{"type": "ByteLevel", "use_regex": True, "add_prefix_space": adds_space}]:
            return _Rule(_before_spaces, finds_words=True, has_ascii_words=not adds_space)
        case [{"type": "Split", "pattern": {"Regex": pattern}}, {"type": "ByteLevel", "use_regex": False}] if (
            pattern == WORD
        ):
            return _Rule(_before_spaces, finds_words=True, has_ascii_words=True)
    return _Rule(None, finds_words=False, has_ascii_words=False)


def _stored(encoding: Encoding, text: str, rule: _Rule) -> bytes:
    """Return the tokens of a text as uint32 bytes, the first of each word marked."""
    tokens, words = encoding.ids, encoding.word_ids
    if not rule.finds_words:
        # A word of ours begins with the space before it, as a token does; "▁" is the space of SentencePiece.
        borders = [first for _, (first, _) in _WORDS.pre_tokenize_str(text.replace("▁", " "))]
        words = [bisect_right(borders, first) for first, _ in encoding.offsets]
    if tokens:
        tokens[0] |= _STARTS_WORD
        for place, (before, word) in enumerate(pairwise(words), start=1):
            tokens[place] |= _STARTS_WORD * (word != before)
    return array("I", tokens).tobytes()  # takes a third of the time of a NumPy array


def _any_of(contents: Iterable[str]) -> re.Pattern[str] | None:
    """Return a pattern that finds any of `contents`; None if there is none."""
    return re.compile("|".join(map(re.escape, found))) if (found := sorted({*contents})) else None


def _breaks_chunks(token: AddedToken, normalizer: normalizers.Normalizer | None) -> bool:
    """Return True for an added token that takes in spaces, or is looked for before the text is normalized."""
    takes_space = token.lstrip or token.rstrip or any(map(str.isspace, token.content))
    return takes_space or not (token.normalized or normalizer is None)


def _before_spaces(text: str) -> list[str]:
    """Split before every space; a text with other white space, or runs of it, stays whole, as the rule needs."""
    if "  " in text or (not text.isprintable() and _OTHER_SPACE.search(text)):
        return [text]
    return text.replace(" ", "\n ").split("\n")  # a line break is other white space: the text has none


def _between_spaces(text: str) -> list[str]:
    """Return what stands between spaces, of which no token holds any."""
    return text.split(" ")
