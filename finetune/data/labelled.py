"""Labelled texts from files or the hub, and the union of all data for classification."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
from pydantic import Field, model_validator

from configs import Config, Texts, UserError
from finetune.data.bigram_shift import BigramShift
from finetune.data.cleaning import Cleaning, RowReader, identity
from finetune.data.examples import Dataset, Examples
from tokenizer.cleaning import TextConfig
from tokenizer.sources import hub
from tokenizer.sources.readers import TableConfig

_LONGEST_TITLE = 100
_SHOWN = 5
_SHOWN_CLASSES = 20


class _Row(NamedTuple):
    """A row of a table that holds a text."""

    number: int
    """Number of the row in the table, from 1."""
    texts: tuple[str, ...]
    """The cleaned text, or the two of a pair."""
    identity: tuple[str, ...]
    """Key of the texts, from `cleaning.identity`."""
    label: str
    """Label in the table; empty where it is missing."""


@dataclass(frozen=True)
class _Rows:
    """The rows of a table that hold a text."""

    where: str
    """Name of the table in messages."""
    rows: tuple[_Row, ...]

    def without(self, other: "_Rows", counts: Counter[str], reason: str) -> "_Rows":
        """Return the rows without texts of `other`, and count those under `reason`; a UserError if none is left."""
        known = {row.identity for row in other.rows}
        kept = tuple(row for row in self.rows if row.identity not in known)
        counts += Counter({reason: len(self.rows) - len(kept)})
        if not kept:
            raise UserError(f"{self.where}: every text is in {other.where} too: name files that differ")
        return _Rows(self.where, kept)

    def check_labels(self, classes: Sequence[str]) -> None:
        """Raise a UserError that names the rows without a label or with one that is not among the classes."""
        missing = [row.number for row in self.rows if not row.label]
        unknown = [row.number for row in self.rows if row.label not in classes]
        for fault, rows in (("no label", missing), ("an unknown label", unknown)):
            if rows:
                more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
                known = ", ".join(classes[:_SHOWN_CLASSES]) + ", ..." * (len(classes) > _SHOWN_CLASSES)
                raise UserError(
                    f"{self.where}: {fault} in row {', '.join(map(str, rows[:_SHOWN]))}{more} (known: "
                    f"{known or 'none'}): mend or remove these rows, or name the classes in data.classes"
                )

    def examples(self, classes: Sequence[str]) -> Examples:
        """Return the rows as examples: labels are indices into `classes`, and texts of one identity are one group."""
        numbers = {name: number for number, name in enumerate(classes)}
        groups: dict[tuple[str, ...], int] = {}
        return Examples(
            tuple(row.texts for row in self.rows),
            np.array([numbers[row.label] for row in self.rows], np.int64),
            np.array([groups.setdefault(row.identity, len(groups)) for row in self.rows], np.int64),
        )


class HubSplits(Config):
    """The splits of a data set of the hub."""

    train: str = "train"
    """The training split."""
    validation: str | None = "validation"
    """The split that chooses the best weights; null: a part of the training data."""
    test: str | None = None
    """The test split; null: a part of the training data. GLUE's test splits have no labels."""


class Labelled(TableConfig):
    """Labelled texts, or pairs of texts, from .csv, .tsv, .jsonl or .parquet files or the Hugging Face hub."""

    kind: Literal["labelled"] = "labelled"
    train: str | None = None
    """Training file; null: the data set `hub`."""
    validation: str | None = None
    """File that chooses the best weights; null: a part of the training data."""
    test: str | None = None
    """Test file; null: a part of the training data."""
    text: str = "text"
    """Column of the text."""
    pair: str | None = None
    """Column of a second text; null: there is none."""
    label: str = "label"
    """Column of the class."""
    hub: str | None = None
    """Name of a data set on the Hugging Face hub, such as nyu-mll/glue; used if `train` names no file."""
    configuration: str | None = None
    """Configuration ('subset') of the hub's data set, such as cola; null: the default one."""
    revision: str | None = None
    """Commit, branch or tag of the hub's data set; null: the newest."""
    hub_splits: HubSplits = HubSplits()
    """Splits of the hub's data set; a named file takes the place of a split."""
    classes: Texts = ()
    """The classes in order; empty: the sorted labels of the training data."""
    duplicates: Literal["drop", "keep"] = "drop"
    """Treatment of repeated training texts; case, white space, web addresses and mentions are ignored. Kept or not, a
    text is never on both sides of a split."""
    contradictions: Literal["drop", "majority"] = "drop"
    """Treatment of training texts with several labels: drop them, or keep those with the most frequent label, if it is
    unique."""
    cleaning: Cleaning = Cleaning()
    """The changes of the texts; stored with the model."""

    @model_validator(mode="after")
    def _label_and_classes_fit(self) -> Self:
        if self.label in (*self._text_columns, *self.cleaning.prefix):
            raise ValueError(f"label = {self.label} is among the columns of the text: that gives the answer away")
        if self.classes and len(set(self.classes)) != max(len(self.classes), 2):
            raise ValueError(f"classes = {', '.join(self.classes)}: there must be two or more, each named once")
        return self

    def title(self) -> str:
        """Return the default name of a run on this data."""
        name = Path(self.train or self.hub or "labelled").name.split(".")[0]
        return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:_LONGEST_TITLE].strip("-.") or self.kind

    def pinned(self) -> Self:
        """Return the same data with the hub's data set pinned to the current commit of its revision."""
        if self.hub is None or self.train is not None:
            return self
        return self.model_copy(update={"revision": hub.commit_unless_offline(self.hub, self.revision)})

    @property
    def reader(self) -> RowReader:
        """The reader of this table and of those that are classified later."""
        return RowReader(self._text_columns, self.label, self.cleaning, self)

    @property
    def _text_columns(self) -> tuple[str, ...]:
        return (self.text,) if self.pair is None else (self.text, self.pair)

    def load(self, text: TextConfig) -> Dataset:
        """Read, clean and check the data; a UserError if none can be trained on. `text`, the corpus, is not used."""
        counts = Counter[str]()
        train = self._part("train", counts)
        if train is None:
            raise UserError("no training data is named: set data.train to a labelled file, or data.hub to a data set")
        classes = self.classes or _sorted({row.label for row in train.rows})
        train.check_labels(classes)
        if len(classes) < 2:
            raise UserError(f"{train.where}: every label is {classes[0]!r}: classification takes two classes or more")
        train = self._without_repeats(train, counts)
        validation, test = self._part("validation", counts), self._part("test", counts)
        for name, part in (("test", test), ("validation", validation)):
            if part is not None:
                part.check_labels(classes)
                train = train.without(part, counts, f"training texts that are also in the {name} data")
        if validation is not None and test is not None:
            validation = validation.without(test, counts, "validation texts that are also in the test data")
        left = {row.label for row in train.rows}
        for missing in [name for name in classes if name not in left]:
            dropped = ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "nothing"
            raise UserError(f"{train.where}: no text of class {missing!r} is left to train on (dropped: {dropped})")
        choosing, measuring = (None if part is None else part.examples(classes) for part in (validation, test))
        return Dataset(classes, train.examples(classes), choosing, measuring, dict(counts))

    def _part(self, name: Literal["train", "validation", "test"], counts: Counter[str]) -> _Rows | None:
        path, split = getattr(self, name), getattr(self.hub_splits, name)
        columns = [*self.cleaning.prefix, self.label]
        if path is not None:
            return self._cleaned(self.reader.rows(Path(path), columns), path, counts)
        if self.hub is None or self.train is not None or split is None:
            return None
        columns = list(dict.fromkeys([*self._text_columns, *columns]))
        mend_columns = "name the columns in data.text, data.pair and data.label"
        rows = hub.read_split(self.hub, self.configuration, split, self.revision, columns, mend_columns)
        return self._cleaned(rows, f"the hub's {self.hub}, split {split}", counts)

    def _cleaned(self, rows: Sequence[Mapping[str, str]], where: str, counts: Counter[str]) -> _Rows:
        """Return the rows that hold a text, cleaned; count the others."""
        reader = self.reader
        kept = tuple(
            _Row(number, texts, identity([row[column] for column in reader.columns]), row[self.label].strip())
            for number, row in enumerate(rows, start=1)
            if all(texts := reader.texts(row))
        )
        counts += Counter({"empty texts": len(rows) - len(kept)})
        if not kept:
            raise UserError(f"{where}: the text in each of the {len(rows)} rows is empty (column {self.text!r})")
        return _Rows(where, kept)

    def _without_repeats(self, part: _Rows, counts: Counter[str]) -> _Rows:
        labels: dict[tuple[str, ...], Counter[str]] = {}
        for row in part.rows:
            labels.setdefault(row.identity, Counter())[row.label] += 1
        right = {text: _agreed(given, self.contradictions) for text, given in labels.items()}
        agreeing = [row for row in part.rows if row.label == right[row.identity]]
        counts += Counter({"texts with contradicting labels": len(part.rows) - len(agreeing)})
        if self.duplicates == "keep":
            return _Rows(part.where, tuple(agreeing))
        firsts: dict[tuple[str, ...], _Row] = {}
        for row in agreeing:
            firsts.setdefault(row.identity, row)
        counts += Counter({"duplicated texts": len(agreeing) - len(firsts)})
        return _Rows(part.where, tuple(firsts.values()))


def _agreed(given: Counter[str], contradictions: str) -> str | None:
    """Return the label of a text from those given to it; None if they contradict each other."""
    (label, count), *others = given.most_common()
    is_majority = contradictions == "majority" and all(other < count for _, other in others)
    return label if not others or is_majority else None


def _sorted(labels: Iterable[str]) -> tuple[str, ...]:
    """Sort labels by value if all are whole numbers, else by letters; drop missing ones."""
    given = [label for label in labels if label]
    try:
        return tuple(sorted(given, key=int))
    except ValueError:
        return tuple(sorted(given))


ClassificationData = Annotated[BigramShift | Labelled, Field(discriminator="kind")]
