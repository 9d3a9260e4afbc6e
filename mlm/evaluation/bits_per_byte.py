"""Bits per byte of hidden words: a measure that compares models of different vocabularies.

The same words of the same text are hidden one at a time for every vocabulary. The tokens of a hidden word are scored
from left to right, with those to the right still hidden (Kauf & Ivanova 2023, "within-word left to right"). The product
of their probabilities is that of the word, given its number of tokens, which the number of [MASK]s shows. That number
tells much of a word to a small vocabulary, and nearly nothing to a large one: so its cost is measured as well. The text
is decoded from tokens: vocabularies that normalize alike are compared on the same words.
"""

import hashlib
import heapq
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Encoding, Regex, Tokenizer, pre_tokenizers
from torch import nn

from configs import UserError
from mlm.distributed.world import World
from mlm.evaluation.hidden_tokens import Copy, log_probabilities
from tokenizer.kinds import is_byte_level, plain_reader, without_prefix
from tokenizer.shards.format import ShardArrays
from tokenizer.special_tokens import SpecialTokens

SENTENCES_READ = 20_000
"""Largest number of held-out sentences read, so that choosing words takes no longer on a larger corpus."""
COUNTED_WORDS = 5_000
"""Training words whose tokens are counted, about, from sentences all over the text."""
CUT_CHARACTERS = 1000
"""Characters of a sentence without spaces that are read, so that its length does not matter either."""

_SPACE = "Ġ"
"""A byte-level token's character for a space."""

# Oniguruma's \X is an extended grapheme cluster, a character to its reader; in this mode it is a word (UAX 29).
_WORDS = pre_tokenizers.Split(Regex(r"(?y{w})\X"), "isolated")


@dataclass(frozen=True)
class HiddenWord:
    """A word in its context; `text[start:end]` is the word."""

    text: str
    start: int
    end: int


Hidden = tuple[HiddenWord, Encoding, list[int]]
"""A word, the tokens of its text, and the positions of its own."""


def choose_words(sentences: Iterator[str], words: int, window_bytes: int) -> list[HiddenWord]:
    """Choose the `words` words with the smallest hashes in the first sentences, at most one per sentence, with context.

    A word stands between white space and holds a letter or digit; in a sentence without spaces it is one of Unicode's
    default segmentation (UAX 29). Words longer than the window are skipped. A sentence that has no other ones, such as
    a line of DNA, is cut into pieces of a few characters; these are chosen where there are too few words. The text
    around a word is truncated at the border of a word, so that both have at most `window_bytes` bytes of UTF-8.
    """
    chosen = heapq.nsmallest(words, _candidates(itertools.islice(sentences, SENTENCES_READ), window_bytes))
    return [_window(split, index, window_bytes) for _, _, split, index in chosen]


def _candidates(sentences: Iterator[str], window_bytes: int) -> Iterator[tuple[bool, bytes, list[str], int]]:
    """Yield a word of each sentence: whether it is a piece of a longer one, its hash, the sentence and its index."""
    for sentence in sentences:
        words = [f" {run}" for run in sentence.split()]
        is_spaced = sentence.isascii() or _touching_letters(sentence[:window_bytes]) < 0.5
        is_piece = is_spaced and not any(_can_be_hidden(word, window_bytes) for word in words)
        if not is_spaced or is_piece:
            sentence = sentence[:CUT_CHARACTERS]
            words = [piece for run in sentence.split() for piece in _pieces(run, window_bytes)]
        hashes = [
            (hashlib.blake2b(f"{i} {sentence}".encode(), digest_size=8).digest(), i)
            for i, word in enumerate(words)
            if _can_be_hidden(word, window_bytes)
        ]
        if hashes:
            least, index = min(hashes)
            yield is_piece, least, words, index


def _can_be_hidden(word: str, window_bytes: int) -> bool:
    return any(map(str.isalnum, word)) and len(word.strip().encode()) <= window_bytes


def _pieces(run: str, window_bytes: int) -> list[str]:
    """Return the words of a text without spaces, the first with a space before it; a long one in several pieces."""
    parts = pre_tokenizers.Split(Regex(rf"\X{{1,{-(-window_bytes // 12)}}}"), "isolated")
    words = [[word] if len(word.encode()) <= window_bytes else _cut(parts, word) for word in _cut(_WORDS, run)]
    first, *others = itertools.chain.from_iterable(words)
    return [f" {first}", *others]


def _touching_letters(text: str) -> float:
    """Return the share of segments that are words right after another word, as in scripts without spaces."""
    has_letters = [any(map(str.isalpha, segment)) for segment in _cut(_WORDS, text)]
    return sum(map(all, itertools.pairwise(has_letters))) / max(len(has_letters), 1)


def _cut(borders: pre_tokenizers.Split, text: str) -> list[str]:
    return [piece for piece, _ in borders.pre_tokenize_str(text)]


def _window(words: Sequence[str], index: int, window_bytes: int) -> HiddenWord:
    """Widen the window by a word on the left, then one on the right, and so on while they fit."""

    def text(first: int, last: int) -> str:
        return "".join(words[first:last]).strip()

    def fits(first: int, last: int) -> bool:
        return first >= 0 and last <= len(words) and len(text(first, last).encode()) <= window_bytes

    first, last, widened = index, index + 1, True
    while widened:
        widened = False
        if fits(first - 1, last):
            first, widened = first - 1, True
        if fits(first, last + 1):
            last, widened = last + 1, True
    end = len(text(first, index + 1))
    return HiddenWord(text(first, last), end - len(words[index].strip()), end)


def sentences_of(splits: Sequence[ShardArrays], tokenizer: Tokenizer, most: int | None = None) -> Iterator[str]:
    """Yield the sentences of one or several folders as text, one from each in turn; of `most`, evenly from all."""
    longest = max(len(split.sentences) for split in splits) - 1
    for number in range(0, longest, 1 if most is None else max(longest * len(splits) // most, 1)):
        for split in splits:
            if number < len(split.sentences) - 1:
                first, last = split.sentences[number : number + 2]
                yield str(tokenizer.decode(split.tokens[first:last].tolist())).strip()


def check_window(tokenizer: Tokenizer, window_bytes: int, row_length: int) -> None:
    """Raise a UserError if a window of text may be longer than a row, read byte by byte."""
    longest = row_length - 2 * SpecialTokens.of(tokenizer).adds_cls_sep - (without_prefix(tokenizer) is not tokenizer)
    if window_bytes > longest:
        raise UserError(
            f"evaluation.window_bytes = {window_bytes} does not fit data.row_length = {row_length}: it may be at most"
            f" {longest} with this tokenizer (or set evaluation.words=0)"
        )


@torch.no_grad()
def bits_per_byte(
    model: nn.Module, tokenizer: Tokenizer, words: Sequence[HiddenWord], row_length: int, world: World
) -> float:
    """Return the negative log2-likelihood of the hidden words, divided by their UTF-8 bytes.

    Tokens that reach over the border of a word, in scripts without spaces, are hidden and counted whole.
    """
    reader, special = plain_reader(tokenizer), SpecialTokens.of(tokenizer)
    hidden = [_hide(word, reader) for word in words]
    assert all(len(encoding.ids) <= row_length for _, encoding, _ in hidden)
    copies = [Copy(encoding.ids, place, inside[-1] + 1) for _, encoding, inside in hidden for place in inside]
    nats = -log_probabilities(model, copies, special.mask, world).sum().item()
    return nats / math.log(2) / _hidden_bytes(tokenizer, hidden)


def token_count_bits_per_byte(
    tokenizer: Tokenizer, words: Sequence[HiddenWord], training_words: Sequence[HiddenWord], window_bytes: int
) -> float:
    """Return the bits that tell the number of tokens of each hidden word, divided by the words' UTF-8 bytes.

    A number costs -log2 of its share among `training_words`, with a half added to each possible one. Together with the
    bits of `bits_per_byte` this describes a word completely, so that no vocabulary is told more of it than another. The
    share is not that among words of the same length: who reads the description does not know the length.
    """
    reader = plain_reader(tokenizer)
    counts = Counter(len(_hide(word, reader)[2]) for word in training_words)
    hidden = [_hide(word, reader) for word in words]
    total = counts.total() + window_bytes / 2
    bits = -sum(math.log2((counts[len(inside)] + 0.5) / total) for _, _, inside in hidden)
    return bits / _hidden_bytes(tokenizer, hidden)


def _hide(word: HiddenWord, reader: Tokenizer) -> Hidden:
    encoding = reader.encode(word.text)
    # The space before a word may be part of the word's first token: so it is always hidden.
    before = word.start - (word.text[: word.start].endswith(" ") or not word.start)
    offsets = zip(encoding.offsets, encoding.special_tokens_mask, strict=True)  # [CLS] and [SEP] are at 0 to 0
    inside = [i for i, ((first, last), s) in enumerate(offsets) if not s and first < word.end and last > before]
    return word, encoding, inside


def _hidden_bytes(tokenizer: Tokenizer, hidden: Sequence[Hidden]) -> int:
    count = _bytes_of_tokens if is_byte_level(tokenizer) else _bytes_of_text
    return sum(count(*one) for one in hidden)


def _bytes_of_tokens(word: HiddenWord, encoding: Encoding, inside: list[int]) -> int:
    """Return the hidden bytes without the space before the word; byte-level tokens have a character for each.

    Their offsets cannot tell: a token may begin or end inside of a character.
    """
    tokens, is_first = [encoding.tokens[position] for position in inside], not encoding.offsets[inside[0]][0]
    has_space = word.text[: word.start].endswith(" ") or (is_first and tokens[0].startswith(_SPACE))
    return sum(map(len, tokens)) - has_space


def _bytes_of_text(word: HiddenWord, encoding: Encoding, inside: list[int]) -> int:
    """Return the bytes of the text that the hidden tokens were read from, without the space before the word."""
    first = min(encoding.offsets[position][0] for position in inside)
    last = max(encoding.offsets[position][1] for position in inside)
    return len(word.text[first:last].lstrip(" ").encode())
