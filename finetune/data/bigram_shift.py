"""Were two neighbouring words of a sentence swapped? (Conneau et al. 2018, section 2: bigram shift)."""

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from configs import Config, UserError
from finetune.data import tables
from finetune.data.examples import Dataset, Examples
from finetune.data.tables import Reading
from tokenizer.cleaning import SeenHashes, Side, TextConfig, clean_documents
from tokenizer.sentences import collapse

_FEWEST_SENTENCES = 100
_POOL = 4
"""So many times the sentences that are needed are looked at where they are there, for a corpus begins with few
documents."""


class BigramShift(Config):
    """Find swapped words in sentences of the encoder's own corpus, tested on its held-out documents."""

    kind: Literal["bigram_shift"] = "bigram_shift"
    train_sentences: int = Field(8000, ge=_FEWEST_SENTENCES)
    """Most sentences to train on, validation included; half of them are changed."""
    test_sentences: int = Field(2000, ge=_FEWEST_SENTENCES)
    """Most sentences of the test."""
    minimum_words: int = Field(5, ge=4)
    """Leave out sentences of fewer white-space-separated words."""
    maximum_words: int = Field(25, ge=4)
    """Leave out sentences of more white-space-separated words."""
    seed: int = Field(0, ge=0)
    """Seed of the choice of sentences and words."""

    @model_validator(mode="after")
    def _lengths_leave_something(self) -> Self:
        if self.maximum_words < self.minimum_words:
            raise ValueError(f"minimum_words={self.minimum_words} is over maximum_words={self.maximum_words}")
        return self

    def title(self) -> str:
        """Return what a run on this is called."""
        return self.kind

    def pinned(self) -> Self:
        """Return the same: the encoder's corpus is pinned with the encoder."""
        return self

    def text_columns(self) -> tuple[str, ...]:
        """Return the column that `example` reads."""
        return ("text",)

    def prefix_columns(self) -> tuple[str, ...]:
        """Return none: nothing is put before the text."""
        return ()

    def label_column(self) -> str:
        """Return the column of the class."""
        return "label"

    def rows(self, path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
        """Return the rows of a table that has the `columns`.

        Raises:
            UserError: it cannot be read, or lacks one of them.

        """
        found: list[dict[str, str]] = tables.read(path, columns, Reading()).to_dict("records")
        return found

    def example(self, row: Mapping[str, str]) -> tuple[str, ...]:
        """Return a row's text, as it is to be tokenised."""
        return (collapse(row["text"]),)

    def load(self, text: TextConfig) -> Dataset:
        """Make the sentences from `text`, the encoder's corpus.

        Raises:
            UserError: the corpus cannot be read, or has too few sentences of these lengths.

        """
        rng = np.random.default_rng(self.seed)
        found = self._sentences(text)
        train = self._examples("train", found["train"], self.train_sentences, rng)
        test = self._examples("heldout", found["heldout"], self.test_sentences, rng)
        return Dataset(("kept", "swapped"), train, None, test, {})

    def _sentences(self, text: TextConfig) -> dict[Side, list[list[str]]]:
        """Return the words of enough sentences of either side; no sentence is there twice."""
        wanted: dict[Side, int] = {"train": self.train_sentences, "heldout": self.test_sentences}
        found: dict[Side, list[list[str]]] = {side: [] for side in wanted}
        changes = {"segments": "sentences", "split_sentences": True, "deduplicate": "sentences"}
        lengths = {"minimum_words": self.minimum_words, "maximum_words": self.maximum_words}
        with closing(sqlite3.connect(":memory:")) as database:
            changed = text.model_copy(update=changes | lengths)
            for passage in clean_documents(changed, text.source.documents(), SeenHashes(database)):
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
    """Return where a word may be swapped with the next: not at the ends, whose capital or full stop would tell."""
    return [place for place in range(1, len(words) - 2) if words[place] != words[place + 1]]


def _swapped(words: list[str], rng: np.random.Generator) -> list[str]:
    place = rng.choice(_places(words))
    return [*words[:place], words[place + 1], words[place], *words[place + 2 :]]
