"""Replace words of training texts by predictions of a pretrained encoder (Kobayashi 2018, section 2)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from configs import UserError
from finetune.data.augment import MASKED, draw_count, generator
from finetune.data.cleaning import MARKS

BATCH_TEXTS = 64

_STREAM = 2
_REPLACEABLE = re.compile(rf"(?<=\s)[^\W\d_](?:[^\W\d_]|[{MARKS}])*(?=(?![{MARKS}])[^\w\s]*(?!\S))")
"""A word between white space and punctuation or white space: no number, URL, mention, hashtag or abbreviation. A word
at the start of a text or after a bracket does not match: without a space before it, many vocabularies use another token
for it."""


def is_word(text: str) -> bool:
    """Return True for letters and the marks that belong to them, and nothing else."""
    return text[:1].isalpha() and all(character.isalpha() or character in MARKS for character in text)


class Predictor(Protocol):
    """A pretrained encoder with the head that predicts masked words."""

    @property
    def words(self) -> Sequence[str | None]:
        """Each vocabulary entry as a word, without white space; None if it is special or no whole word of letters."""

    def predict(self, texts: Sequence[str]) -> list[Tensor]:
        """Return the vocabulary's scores at each text's masks, (masks, V), as far as the longest row reaches."""


@dataclass(frozen=True)
class _Blanks:
    """The words to be replaced in a text."""

    text: str
    spans: Sequence[tuple[int, int]]
    """Start and end of each word, in order."""
    draws_M: NDArray[np.float64]
    """A number in [0, 1) for each word, which chooses the replacement."""
    place: tuple[int, int, int]
    """Indices of the example, the variant and the text within the example."""

    def filled(self, words: Sequence[str]) -> str:
        """Return the text with its first blanks replaced by `words`; further blanks keep their words."""
        parts, rest = list[str](), 0
        for word, (begin, end) in zip(words, self.spans, strict=False):
            parts += self.text[rest:begin], word
            rest = end
        return "".join([*parts, self.text[rest:]])


def variants(
    texts: Sequence[tuple[str, ...]], predictor: Predictor, share: float, number: int, seed: int
) -> list[tuple[tuple[str, ...], ...]]:
    """Return `number` variants of every example, each with other words replaced by samples of the predictions.

    In a text with n replaceable words, floor(share * n + u) are masked at once, with u uniform in [0, 1). Each is
    replaced by a word drawn from the softmax over whole words, possibly the original one. Words beyond the longest row
    stay unchanged. The choices of an example do not depend on other examples. A UserError if the vocabulary has no
    whole words.
    """
    candidates = np.array([token for token, word in enumerate(predictor.words) if word is not None], np.int64)
    if not len(candidates):
        raise UserError(
            "augment.replace: this encoder's vocabulary has no whole words to choose from: set it to 0, or take "
            "an encoder with a larger vocabulary"
        )
    drawn = [[list(example) for _ in range(number)] for example in texts]
    blanks = list[_Blanks]()
    for variant in range(number):
        for index, example in enumerate(texts):
            blanks += _choose(example, share, (seed, variant, index))
    blanks.sort(key=lambda found: len(found.text))  # texts of like length need little padding
    for start in range(0, len(blanks), BATCH_TEXTS):
        batch = blanks[start : start + BATCH_TEXTS]
        masked = [found.filled([MASKED] * len(found.spans)) for found in batch]
        for found, logits_MV in zip(batch, predictor.predict(masked), strict=True):
            sampled = candidates[_sample(logits_MV[:, candidates], found.draws_M)]
            index, variant, part = found.place
            drawn[index][variant][part] = found.filled([predictor.words[token] or "" for token in sampled.tolist()])
    return [tuple(tuple(variant) for variant in example) for example in drawn]


def _choose(example: tuple[str, ...], share: float, key: tuple[int, int, int]) -> list[_Blanks]:
    """Choose the words to be replaced in an example's texts; skip texts without any."""
    rng, chosen = generator(_STREAM, key), list[_Blanks]()
    _, variant, index = key
    for part, text in enumerate(example):
        places = [match.span() for match in _REPLACEABLE.finditer(text)]
        count = draw_count(share, len(places), rng)
        blanks = sorted(rng.permutation(len(places))[:count].tolist())
        if blanks:
            spans = [places[blank] for blank in blanks]
            chosen.append(_Blanks(text, spans, rng.random(count), (index, variant, part)))
    return chosen


def _sample(logits_MW: Tensor, draws_M: NDArray[np.float64]) -> NDArray[np.int64]:
    """Draw a column for each row from the softmax of its scores; W is the number of candidate words."""
    cumulative_MW = logits_MW.double().softmax(dim=-1).cumsum(dim=-1).numpy()
    # Rounding may leave the last sum slightly below 1, and a draw above it.
    thresholds_M = draws_M[: len(cumulative_MW)] * cumulative_MW[:, -1]
    columns_M: NDArray[np.int64] = (cumulative_MW <= thresholds_M[:, None]).sum(axis=1)
    return columns_M
