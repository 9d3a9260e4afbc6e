"""Labelled texts, as tasks give them and everything else takes them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Examples:
    """Labelled texts."""

    texts: tuple[tuple[str, ...], ...]
    """One text an example, or the two of a pair; cleaned."""
    labels: NDArray[np.int64]
    """Class of each example, (N,)."""
    groups: NDArray[np.int64] | None = None
    """Number of each example's text, (N,): the same where texts are the same but for what cleaning and prefixes make of
    them, so that splits keep them together; None: to be told by `texts`."""

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.texts)

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> "Examples":
        """Return the examples at `indices`, in that order."""
        places = np.asarray(indices, np.int64)
        groups = None if self.groups is None else self.groups[places]
        return Examples(tuple(self.texts[place] for place in places), self.labels[places], groups)


@dataclass(frozen=True)
class Dataset:
    """A task's examples, before what is missing is split off."""

    class_names: tuple[str, ...]
    """Names of the classes, by index."""
    train: Examples
    validation: Examples | None
    test: Examples | None
    counts: Mapping[str, int]
    """What was dropped, and why."""


@dataclass(frozen=True)
class DataSplit:
    """The three parts that a trial needs; no text is in two of them."""

    train: Examples
    validation: Examples
    """May be empty: then nothing chooses among the weights, and the last ones are kept."""
    test: Examples
    fold: int = 0
    """Number of the fold, from 0."""
