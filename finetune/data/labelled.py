"""Labelled texts from files or the hub, and the union of all data for classification."""

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
from pydantic import Field, model_validator

from configs import Config, Texts, UserError, listed
from finetune.data import class_names, repeats
from finetune.data.bigram_shift import BigramShift
from finetune.data.class_names import short
from finetune.data.cleaning import Cleaning, RowReader
from finetune.data.examples import Dataset, Examples
from tokenizer.cleaning import AsRead, TextConfig, describe_dropped
from tokenizer.sources import hub, remote
from tokenizer.sources.readers import TableConfig
from tokenizer.sources.tables import log_once, number_text

_NUMBER = re.compile(r"[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_LONGEST_TITLE = 100
_LARGEST = 1e30
"""Numbers beyond it are refused: float32, which ends at 3.4e38, must hold predictions beyond them too."""


class _Row(NamedTuple):
    """A row of a table that holds a text."""

    number: int
    """Number of the row in the table, from 1."""
    texts: tuple[str, ...]
    """The cleaned text, or the two of a pair."""
    keys: tuple[Hashable, ...]
    """Keys of the texts, from `RowReader.keys`; the first is of the texts as they are given."""
    label: str
    """Label in the table; empty where it is missing."""
    group: int = 0
    """Number that equal texts share in all parts of the data."""


@dataclass(frozen=True)
class _Rows:
    """The rows of a table that hold a text."""

    where: str
    """Name of the table in messages."""
    rows: tuple[_Row, ...]

    @property
    def groups(self) -> list[int]:
        """The group of each row."""
        return [row.group for row in self.rows]

    def take(self, places: Sequence[int]) -> "_Rows":
        """Return the rows at `places`, in that order."""
        return _Rows(self.where, tuple(self.rows[place] for place in places))

    def without(self, other: "_Rows", counts: Counter[str], reason: str) -> "_Rows":
        """Return the rows without texts of `other`, and count those under `reason`; a UserError if none is left."""
        kept = repeats.apart_from(other.groups, self.groups, range(len(self.rows)), counts, reason)
        if not kept:
            raise UserError(f"{self.where}: every text is in {other.where} too: name files that differ")
        return self.take(kept)

    def labelled_by(self, classes: Sequence[str]) -> "_Rows":
        """Return the rows with their labels as the classes are written.

        Rows without a label, or with one that is not among the classes, are named by a UserError.
        """
        known = frozenset(classes)
        written = _as_written({row.label for row in self.rows}, classes)
        if changed := sorted(label for label, name in written.items() if label != name):
            shown = listed(f"{label} is {written[label]}" for label in changed)
            log_once(f"{self.where}: equal numbers are one class: {shown}")
        rows = tuple(row._replace(label=written[row.label]) for row in self.rows)
        missing = [row.number for row in rows if not row.label]
        unknown = [row.number for row in rows if row.label not in known]
        for fault, numbers in (("no label", missing), ("an unknown label", unknown)):
            if numbers:
                raise UserError(
                    f"{self.where}: {fault} in row {listed(numbers)} (known: {class_names.listed(classes) or 'none'}): "
                    "mend or remove these rows, or name the classes in data.classes"
                )
        return _Rows(self.where, rows)

    def with_numbers(self) -> "_Rows":
        """Return the rows with equal numbers written alike; a UserError names the rows without a number."""
        written = {row.label: _number(row.label) for row in self.rows}
        wrong = [row for row in self.rows if abs(float(written[row.label] or "inf")) > _LARGEST]
        if wrong:
            raise UserError(
                f"{self.where}: no number in row {listed(row.number for row in wrong)} ({short(wrong[0].label)}): "
                "mend or remove these rows, or set data.target=class"
            )
        return _Rows(self.where, tuple(row._replace(label=written[row.label] or "") for row in self.rows))

    def examples(self, classes: Sequence[str]) -> Examples:
        """Return the rows as examples: labels are indices into `classes`, or numbers; equal texts are one group."""
        numbers = {name: number for number, name in enumerate(classes)}
        labels = [float(row.label) if len(classes) == 1 else numbers[row.label] for row in self.rows]
        groups: dict[int, int] = {}
        return Examples(
            tuple(row.texts for row in self.rows),
            np.array(labels, np.float64 if len(classes) == 1 else np.int64),
            np.array([groups.setdefault(group, len(groups)) for group in self.groups], np.int64),
            tuple(row.keys[0] for row in self.rows),
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
    """Labelled texts, or pairs of texts, from tables of any format, or the Hugging Face hub."""

    kind: Literal["labelled"] = "labelled"
    train: str | None = None
    """Training file, or its address, such as s3://bucket/a.csv; null: the data set `hub`."""
    validation: str | None = None
    """File that chooses the best weights; null: a part of the training data."""
    test: str | None = None
    """Test file; null: a part of the training data."""
    text: str = "text"
    """Column of the text."""
    pair: str | None = None
    """Column of a second text; null: there is none."""
    label: str = "label"
    """Column of the class, or of the number."""
    target: Literal["class", "number"] = "class"
    """The prediction: one of the classes, or a number, such as the similarity of a pair."""
    hub: str | None = None
    """Name of a data set on the Hugging Face hub, such as nyu-mll/glue; used if `train` names no file."""
    configuration: str | None = None
    """Configuration ('subset') of the hub's data set, such as cola; null: the default one."""
    revision: str | None = None
    """Commit, branch or tag of the hub's data set; null: the newest."""
    hub_splits: HubSplits = HubSplits()
    """Splits of the hub's data set; a named file takes the place of a split."""
    classes: Texts = ()
    """The classes in order. With two classes, F1 is that of the second. Empty: as the hub's data set has them, or the
    sorted labels of the training data. Equal numbers, such as 1 and 1.0, are one class where all labels are numbers,
    unless both are named here."""
    duplicates: repeats.Duplicates = "drop"
    """Treatment of repeated training texts. Texts are equal if they differ only in case, white space, web addresses and
    mentions, as they are given or as the encoder reads them. Kept or not, a text is never on both sides of a split."""
    contradictions: repeats.Contradictions = "drop"
    """Treatment of training texts with several labels: drop them, or keep those with the most frequent label, if it is
    unique, or keep them all, which needs duplicates=keep."""
    cleaning: Cleaning = Cleaning()
    """The changes of the texts; stored with the model."""

    @model_validator(mode="after")
    def _label_and_classes_fit(self) -> Self:
        if self.label in (*self._text_columns, *self.cleaning.prefix):
            raise ValueError(f"label = {self.label} is among the columns of the text: that gives the answer away")
        if self.contradictions == "keep" and self.duplicates == "drop":
            raise ValueError("contradictions=keep would lose its repeated texts: add data.duplicates=keep")
        if self.classes and self.target == "number":
            raise ValueError("data.target=number has no classes: remove data.classes or data.target")
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

    def load(self, text: TextConfig, as_read: AsRead = str) -> Dataset:
        """Read, clean and check the data; a UserError if none can be trained on. `text`, the corpus, is not used.

        Texts are equal if their keys are, as given or as the encoder reads them by `as_read`.
        """
        if self.train is None and self.hub is None:
            raise UserError("no training data is named: set data.train to a labelled file, or data.hub to a data set")
        counts = Counter[str]()
        parts = [self._part(name, counts, as_read) for name in ("train", "validation", "test")]
        train, validation, test = _grouped(parts)
        assert train is not None
        classes = (self.label,) if self.target == "number" else self.classes
        classes = classes or self._class_names({row.label for row in train.rows})

        def labelled(part: _Rows) -> _Rows:
            return part.labelled_by(classes) if self.target == "class" else part.with_numbers()

        train = labelled(train)
        if len(classes) < 2 and self.target == "class":
            raise UserError(
                f"{train.where}: every label is {short(classes[0])!r}: classification takes two classes or more"
            )
        train = self._without_repeats(train, counts)
        test, validation = (None if part is None else labelled(part) for part in (test, validation))
        for name, part in (("test", test), ("validation", validation)):
            if part is not None:
                train = train.without(part, counts, f"training texts that are also in the {name} data")
        if validation is not None and test is not None:
            validation = validation.without(test, counts, "validation texts that are also in the test data")
        left = {row.label for row in train.rows}
        for missing in [name for name in classes if self.target == "class" and name not in left]:
            dropped = "".join(f" ({line})" for line in describe_dropped(counts))
            raise UserError(f"{train.where}: no text of class {short(missing)!r} is left to train on{dropped}")
        choosing, measuring = (None if part is None else part.examples(classes) for part in (validation, test))
        return Dataset(classes, train.examples(classes), choosing, measuring, dict(counts))

    def _class_names(self, labels: set[str]) -> tuple[str, ...]:
        """Return the classes that the training data have, where the settings name none."""
        named: tuple[str, ...] = ()
        if self.train is None and self.hub is not None and self.hub_splits.train is not None:
            of_hub = self.hub, self.configuration, self.hub_splits.train, self.revision
            named = hub.class_names(*of_hub, self.label)
        return tuple(name for name in named if name in labels) or _class_names(labels)

    def _part(self, name: str, counts: Counter[str], as_read: AsRead) -> _Rows | None:
        """Return a part of the data, if there is one, cleaned; count the empty texts."""
        path, split = getattr(self, name), getattr(self.hub_splits, name)
        columns = [*self.cleaning.prefix, self.label]
        if path is not None:
            return self._cleaned(self.reader.rows(path, columns), path, counts, as_read)
        if self.hub is None or self.train is not None or split is None:
            return None
        columns = list(dict.fromkeys([*self._text_columns, *columns]))
        mend_columns = "name the columns in data.text, data.pair and data.label"
        rows = hub.read_split(self.hub, self.configuration, split, self.revision, columns, mend_columns)
        return self._cleaned(rows, f"the hub's {self.hub}, split {split}", counts, as_read)

    def _cleaned(self, rows: Sequence[Mapping[str, str]], where: str, counts: Counter[str], as_read: AsRead) -> _Rows:
        """Return the rows that hold a text, cleaned; count the others."""
        reader = self.reader
        kept = tuple(
            _Row(number, texts, reader.keys(row, as_read), row[self.label].strip())
            for number, row in enumerate(rows, start=1)
            if all(texts := reader.texts(row))
        )
        counts += Counter({"empty texts": len(rows) - len(kept)})
        if not kept:
            raise UserError(f"{where}: the text in each of the {len(rows)} rows is empty (column {self.text!r})")
        return _Rows(where, kept)

    def _without_repeats(self, part: _Rows, counts: Counter[str]) -> _Rows:
        kept = repeats.agreeing(part.groups, [row.label for row in part.rows], counts, self.contradictions)
        if self.duplicates == "drop":
            kept = repeats.first_of_each(part.groups, kept, counts)
        return part.take(kept)


def _grouped(parts: Sequence[_Rows | None]) -> list[_Rows | None]:
    """Return the parts with their texts grouped: equal ones are of one group in all of them."""
    numbers = iter(repeats.groups([row.keys for part in parts if part is not None for row in part.rows]))
    return [
        None if part is None else _Rows(part.where, tuple(row._replace(group=next(numbers)) for row in part.rows))
        for part in parts
    ]


def _class_names(labels: Iterable[str]) -> tuple[str, ...]:
    """Return the classes of the labels, sorted by value if all are numbers, else by letters; missing ones are none.

    A class is written as its label is. Only where all labels are numbers are equal ones, such as 1, 1.0 and 1e0, one
    class, in their shortest form. A code such as 01 is no number.
    """
    given = sorted(filter(None, labels))
    numbers = {label: _number(label) for label in given}
    if None not in numbers.values():
        written: dict[str | None, str] = {}
        for label, number in numbers.items():
            written[number] = str(number) if number in written else label
        given = list(written.values())
    try:
        return tuple(sorted(given, key=Decimal))
    except InvalidOperation:
        return tuple(given)


def _as_written(labels: Iterable[str], classes: Sequence[str]) -> dict[str, str]:
    """Return the class of each label: itself, or an equal number where all classes are numbers; unknown ones stay."""
    numbers = {_number(name): name for name in classes}
    others = {} if None in numbers else numbers
    names = set(classes)
    return {label: label if label in names else others.get(_number(label), label) for label in labels}


def _number(label: str) -> str | None:
    return number_text(Decimal(label)) if _NUMBER.fullmatch(label) else None


ClassificationData = Annotated[BigramShift | Labelled, Field(discriminator="kind")]


def files_of(data: ClassificationData) -> dict[str, str]:
    """Return the files that data name, by their part."""
    return {part: name for part in ("train", "validation", "test") if (name := getattr(data, part, None))}


def in_folder(data: ClassificationData, folder: Path) -> ClassificationData:
    """Return the same data with absolute paths, which are found from elsewhere too; the others are in `folder`."""
    names = {part: name for part, name in files_of(data).items() if not remote.is_remote(name)}
    return data.model_copy(update={part: str((folder / name).absolute()) for part, name in names.items()})
