"""Bigram shift: tell sentences with two neighboring words swapped from others (Conneau et al. 2018, section 2)."""

import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import replace
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from configs import Config, UserError
from finetune.data import repeats
from finetune.data.cleaning import Cleaning, RowReader, text_keys
from finetune.data.examples import Dataset, Examples
from tokenizer.cleaning import AsRead, SeenHashes, Side, TextConfig, clean_corpora, fall_to_one_side
from tokenizer.sources.readers import TableConfig

_FEWEST_SENTENCES = 100
_POOL = 4
"""Read this many times the needed number of sentences before choosing, so that the sample does not come from the first
few documents only."""


class BigramShift(Config):
    """Sentences of the encoder's own corpus, half of them with two words swapped; the test uses held-out documents."""

    kind: Literal["bigram_shift"] = "bigram_shift"
    train_sentences: int = Field(8000, ge=_FEWEST_SENTENCES)
    """Largest number of sentences for training and validation; half of them are changed."""
    test_sentences: int = Field(2000, ge=_FEWEST_SENTENCES)
    """Largest number of test sentences."""
    minimum_words: int = Field(5, ge=4)
    """Skip sentences of fewer white-space-separated words."""
    maximum_words: int = Field(25, ge=4)
    """Skip sentences of more white-space-separated words."""
    seed: int = Field(0, ge=0)
    """Seed of the choice of sentences and words."""

    @model_validator(mode="after")
    def _lengths_leave_something(self) -> Self:
        if self.maximum_words < self.minimum_words:
            raise ValueError(f"minimum_words={self.minimum_words} is over maximum_words={self.maximum_words}")
        return self

    def title(self) -> str:
        """Return the default name of a run on this data."""
        return self.kind

    def pinned(self) -> Self:
        """Return the same: the encoder's corpus is pinned with the encoder."""
        return self

    @property
    def reader(self) -> RowReader:
        """The reader of tables at prediction, with white space collapsed as in the sentences of training."""
        return RowReader(("text",), "label", Cleaning(), TableConfig())

    def load(self, text: TextConfig, as_read: AsRead = str) -> Dataset:
        """Return sentences from `text`, the encoder's corpus; a UserError if it has too few of these lengths.

        Sides are those of pretraining, and equal texts are dropped as of labelled ones; `as_read` is the encoder's.
        """
        rng = np.random.default_rng(self.seed)
        found = self._sentences(text, as_read)
        train = self._examples("train", found["train"], self.train_sentences, rng)
        test = self._examples("heldout", found["heldout"], self.test_sentences, rng)
        numbers = repeats.groups([text_keys(own, [own], as_read) for own in (*train.texts, *test.texts)])
        ours, theirs, counts = numbers[: len(train)], numbers[len(train) :], Counter[str]()
        kept = repeats.agreeing(ours, train.labels.tolist(), counts)
        kept = repeats.first_of_each(ours, kept, counts)
        kept = repeats.apart_from(theirs, ours, kept, counts, "training texts that are also in the test data")
        train, test = replace(train, groups=np.array(ours)).take(kept), replace(test, groups=np.array(theirs))
        return Dataset(("kept", "swapped"), train, None, test, dict(counts))

    def _sentences(self, text: TextConfig, as_read: AsRead) -> dict[Side, list[list[str]]]:
        """Return the words of enough distinct sentences of either side."""
        wanted: dict[Side, int] = {"train": self.train_sentences, "heldout": self.test_sentences}
        found: dict[Side, list[list[str]]] = {side: [] for side in wanted}
        changes = {"segments": "sentences", "split_sentences": True, "deduplicate": "sentences"}
        lengths = {"minimum_words": self.minimum_words, "maximum_words": self.maximum_words}
        with text.source.watch(), closing(sqlite3.connect(":memory:")) as database:
            changed = text.model_copy(update=changes | lengths)
            at_sentences = [fall_to_one_side(corpus, as_read) for corpus in text.corpora()]
            for passage in clean_corpora(changed, SeenHashes(database), as_read, at_sentences):
                if len(found[passage.side]) >= _POOL * wanted[passage.side]:
                    continue
                rows = [sentence.split(" ") for sentence in passage.sentences]
                found[passage.side] += [words for words in rows if _places(words)]
                if all(len(found[side]) >= _POOL * number for side, number in wanted.items()):
                    break
        return found

    def _examples(self, side: Side, found: list[list[str]], wanted: int, rng: np.random.Generator) -> Examples:
        if len(found) < _FEWEST_SENTENCES:
            raise UserError(
                f"the encoder's corpus has {len(found)} sentences of {self.minimum_words} to {self.maximum_words} "
                f"words on its {side} side, and bigram shift takes {_FEWEST_SENTENCES}: name labelled texts with "
                "data.kind=labelled data.train=FILE"
            )
        number = min(wanted, len(found)) // 2 * 2
        labels = rng.permutation(np.arange(number) % 2)
        chosen = [found[place] for place in rng.choice(len(found), number, replace=False)]
        texts = [_swapped(words, rng) if label else words for words, label in zip(chosen, labels, strict=True)]
        return Examples(tuple((" ".join(words),) for words in texts), labels.astype(np.int64), np.arange(number))


def _places(words: list[str]) -> list[int]:
    """Return the places of words to be swapped with the next; capital and full stop would give the ends away."""
    return [place for place in range(1, len(words) - 2) if words[place] != words[place + 1]]


def _swapped(words: list[str], rng: np.random.Generator) -> list[str]:
    place = rng.choice(_places(words))
    return [*words[:place], words[place + 1], words[place], *words[place + 2 :]]
