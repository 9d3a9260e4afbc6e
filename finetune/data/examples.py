"""Labelled examples, the data sets that hold them, and their splits."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.data.cleaning import duplicate_key
from tokenizer.sources import hash_texts


@dataclass(frozen=True)
class Examples:
    """Labelled texts."""

    texts: tuple[tuple[str, ...], ...]
    """One cleaned text per example, or the two of a pair."""
    labels: NDArray[Any]
    """Class of each example, int64, or its number, float64, (N,)."""
    groups: NDArray[np.int64] | None = None
    """Group of each example, (N,): repeated texts share one, and splits keep a group together. None: `texts` tell."""
    given: tuple[Hashable, ...] = ()
    """Key of the text of each example as it was before cleaning; empty: `texts` tell."""

    @cached_property
    def sha256(self) -> str:
        """Hash of the texts as they were given, and of the labels."""
        keys = self.given or tuple(map(duplicate_key, self.texts))
        return hash_texts(*(repr(pair) for pair in zip(keys, self.labels.tolist(), strict=True)))

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> "Examples":
        """Return the examples at `indices`, in that order."""
        places = np.asarray(indices, np.int64)
        groups = None if self.groups is None else self.groups[places]
        given = tuple(self.given[place] for place in places) if self.given else ()
        return Examples(tuple(self.texts[place] for place in places), self.labels[places], groups, given)


@dataclass(frozen=True)
class Dataset:
    """The examples of a task before they are split."""

    class_names: tuple[str, ...]
    """Names of the classes, by index; a single one is the name of the number that is predicted instead."""
    train: Examples
    validation: Examples | None
    test: Examples | None
    counts: Mapping[str, int]
    """Number of dropped examples by reason."""

    @property
    def is_of_numbers(self) -> bool:
        """True if a number is predicted, not a class."""
        return len(self.class_names) == 1


@dataclass(frozen=True)
class DataSplit:
    """The three parts of a trial; no text is in two of them."""

    train: Examples
    validation: Examples
    """May be empty: then the last weights are kept."""
    test: Examples
    fold: int = 0
