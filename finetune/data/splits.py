"""Split labelled texts into training, validation and test data, stratified by class if any: seeded fractions or folds.

Repeated texts are split as one, so that no text is on both sides.
"""

from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from configs import Config, UserError
from finetune.data.class_names import short
from finetune.data.cleaning import duplicate_key
from finetune.data.examples import Dataset, DataSplit, Examples


class Fractions(Config):
    """One split into three parts; validation or test data of their own are used as they are."""

    kind: Literal["fractions"] = "fractions"
    validation: float = Field(0.1, ge=0, lt=1)
    """Share of the training data that chooses the best weights; 0: no such part, and the last weights are kept."""
    test: float = Field(0.1, gt=0, lt=1)
    """Share of the training data on which the result is measured."""
    train: float = Field(1.0, gt=0, le=1)
    """Share of the rest that is trained on, to see how far fewer labelled texts would do."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of the choice."""

    @model_validator(mode="after")
    def _something_is_left(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation + test is {self.validation + self.test:g}: nothing is left to train on")
        return self

    def splits(self, dataset: Dataset) -> list[DataSplit]:
        """Return the one split; a UserError if a class has too few texts."""
        train, validation, test = dataset.train, dataset.validation, dataset.test
        share = self.validation
        if test is None:
            train, test = _split_off(train, self.test, self.seed, dataset.class_names)
            share /= 1 - self.test  # relative to the rest after the test part
        if validation is None:
            train, validation = _split_off(train, share, self.seed, dataset.class_names)
        if self.train < 1:
            _, train = _split_off(train, self.train, self.seed, dataset.class_names)
        return [DataSplit(train, validation, test)]


class Folds(Config):
    """One split per fold; each fold is the test data of one of them."""

    kind: Literal["folds"] = "folds"
    folds: int = Field(5, ge=2)
    """Number of folds."""
    validation: float = Field(0.1, ge=0, lt=1)
    """Share of the other folds that chooses the best weights, unless the data have a validation part of their own.
    0: no part is held back, and the last weights are kept."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of the choice."""

    def splits(self, dataset: Dataset) -> list[DataSplit]:
        """Return a split for each fold; a UserError if a class has too few texts or the data have a test part."""
        from sklearn.model_selection import KFold, StratifiedKFold  # see _split_off

        if dataset.test is not None:
            raise UserError(
                "the data have a test part, and folds make their own: drop it, or set splits.kind=fractions"
            )
        firsts, groups_of_N = _groups(dataset.train)
        labels = dataset.train.labels[firsts]
        _check_counts(labels, self.folds, dataset.class_names, f"{self.folds} folds")
        kind = StratifiedKFold if len(dataset.class_names) > 1 else KFold
        folds = kind(self.folds, shuffle=True, random_state=self.seed)
        splits = []
        for fold, (_, units) in enumerate(folds.split(firsts, labels)):
            train, test = _divide(dataset.train, np.isin(groups_of_N, units))
            validation = dataset.validation
            if validation is None:
                train, validation = _split_off(train, self.validation, self.seed, dataset.class_names)
            splits.append(DataSplit(train, validation, test, fold))
        return splits


Splitting = Annotated[Fractions | Folds, Field(discriminator="kind")]


def _groups(examples: Examples) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first example of each distinct text, and the number of each example's text, (N,)."""
    groups_N = examples.groups
    if groups_N is None:
        numbers: dict[tuple[str, ...], int] = {}
        groups_N = np.array(
            [numbers.setdefault(duplicate_key(texts), len(numbers)) for texts in examples.texts], np.int64
        )
    _, firsts, groups_of_N = np.unique(groups_N, return_index=True, return_inverse=True)
    return firsts, groups_of_N


def _split_off(examples: Examples, share: float, seed: int, class_names: tuple[str, ...]) -> tuple[Examples, Examples]:
    """Return the rest and a part of about `share`, which is empty for 0; else each has a text of every class."""
    if not share:
        return examples, examples.take([])
    from sklearn.model_selection import train_test_split  # takes a second

    firsts, groups_of_N = _groups(examples)
    labels = examples.labels[firsts]
    size = min(max(round(share * len(firsts)), 1), max(len(firsts) - 1, 1))
    smaller = min(size, len(firsts) - size) or 1
    _check_counts(labels, max(-(-len(firsts) // smaller), 2), class_names, f"a part of {100 * share:.3g} %")
    stratify = labels if len(class_names) > 1 else None
    _, units = train_test_split(np.arange(len(firsts)), test_size=size, random_state=seed, stratify=stratify)
    return _divide(examples, np.isin(groups_of_N, units))


def _divide(examples: Examples, is_chosen_N: NDArray[np.bool_]) -> tuple[Examples, Examples]:
    return examples.take(np.flatnonzero(~is_chosen_N)), examples.take(np.flatnonzero(is_chosen_N))


def _check_counts(labels: NDArray[np.int64], fewest: int, class_names: tuple[str, ...], purpose: str) -> None:
    """Check that no class would be missing on one side; of numbers, that there are enough."""
    if len(class_names) == 1:
        if len(labels) < fewest:
            raise UserError(f"{len(labels)} texts, and {purpose} takes {fewest}: add some, or set splits otherwise")
        return
    for name, count in zip(class_names, np.bincount(labels, minlength=len(class_names)).tolist(), strict=True):
        if count < fewest:
            raise UserError(
                f"class {short(name)!r} has {count} texts, and {purpose} takes {fewest} of each class: add some, merge "
                "or leave out the class, or set splits otherwise"
            )
