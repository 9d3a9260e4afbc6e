"""The words of a text, the tokens of each, and attention between words instead of tokens."""

import re
from bisect import bisect_right
from collections.abc import Container, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.data.cleaning import MARKS
from mlm.evaluation.fill_blanks import BLANK

TYPED_MASK = BLANK
"""Stands for a hidden word in a text that is typed."""
_MASK = re.escape(TYPED_MASK)
_WORD = re.compile(rf"{_MASK}|https?://(?:(?!{_MASK})\S)+|[@#]?\w[\w{MARKS}]*(?:['’.-]\w[\w{MARKS}]*)*|\S")
"""Every character but white space belongs to a word; a sign is a word of its own."""


@dataclass(frozen=True)
class Word:
    """A word, and its place in the text."""

    text: str
    start: int
    end: int


def split(text: str) -> list[Word]:
    """Return the words of a text."""
    return [Word(found[0], found.start(), found.end()) for found in _WORD.finditer(text)]


def owner(words: Sequence[Word], start: int) -> int:
    """Return the index of the word to which the token at `start` belongs, which may begin with the space before it."""
    return min(bisect_right(words, start, key=lambda word: word.end), len(words) - 1)


def with_masks(
    texts: Sequence[str], hidden: Container[int], mask: str
) -> tuple[list[str], list[list[Word]], list[str]]:
    """Return texts with `mask` for each hidden word, the words of each of them, and the labels of all words."""
    masked, words_of_texts, labels = list[str](), list[list[Word]](), list[str]()
    for text in texts:
        words, written, end = list[Word](), "", 0
        for word in split(text):
            is_hidden = len(labels) in hidden
            shown = mask if is_hidden else word.text
            written += text[end : word.start]
            words.append(Word(shown, len(written), len(written) + len(shown)))
            labels.append(TYPED_MASK if is_hidden else word.text)
            written, end = written + shown, word.end
        masked.append(written)
        words_of_texts.append(words)
    return masked, words_of_texts, labels


@dataclass(frozen=True)
class Reading:
    """The tokens of a text, and their units: words and special tokens."""

    ids: tuple[int, ...]
    units: tuple[int, ...]
    """The unit of each token, an index into `labels`; the units of the text's words are in the order of the words."""
    labels: tuple[str, ...]
    """A unit's text."""
    types: tuple[int, ...]
    """Token types, for an encoder that tells the texts of a pair apart; else empty."""


def reading(ids: Sequence[int], words: Sequence[int | str], texts: Sequence[str], types: Sequence[int] = ()) -> Reading:
    """Return a reading of tokens, each of which belongs to the word of an index into `texts`, or is a special token.

    A special token is given by its label. A word without a token is no unit.
    """
    labels, units = list[str](), list[int]()
    before: int | str | None = None
    for word in words:
        if isinstance(word, str) or word != before:
            labels.append(word if isinstance(word, str) else texts[word])
        units.append(len(labels) - 1)
        before = word
    return Reading(tuple(ids), tuple(units), tuple(labels), tuple(types))


def between_units(weights_HLL: Tensor, units: Sequence[int]) -> Tensor:
    """Return the weights between units, (H, U, U): summed over the keys of a unit, averaged over its queries.

    So the weights of a unit still sum to 1 (Clark et al. 2019, section 4.1).
    """
    in_unit_LU = torch.nn.functional.one_hot(torch.tensor(units)).to(weights_HLL)
    return (in_unit_LU / in_unit_LU.sum(dim=0)).T @ weights_HLL @ in_unit_LU
