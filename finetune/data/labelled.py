"""What is to be classified: labelled texts from files or the hub, or what is made of the encoder's own corpus."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from configs import Config, Texts, UserError
from finetune.data import hub_tables, tables
from finetune.data.bigram_shift import BigramShift
from finetune.data.cleaning import Cleaning, identity
from finetune.data.examples import Dataset
from finetune.data.part import Part
from finetune.data.tables import Reading
from tokenizer.cleaning import TextConfig


class HubSplits(Config):
    """Which splits of a hub's data set are read."""

    train: str = "train"
    """The split to train on."""
    validation: str | None = "validation"
    """The split that chooses the best weights; null: a part of the training data."""
    test: str | None = None
    """The split that the result is measured on; null: a part of the training data. Those of GLUE have no labels."""


class Labelled(Reading):
    """Labelled texts, or pairs of texts, from .csv, .tsv, .jsonl or .parquet files or the Hugging Face hub."""

    kind: Literal["labelled"] = "labelled"
    train: str | None = None
    """File to train on; null: `hub`'s."""
    validation: str | None = None
    """File that chooses the best weights; null: a part of the training data."""
    test: str | None = None
    """File that the result is measured on; null: a part of the training data."""
    text: str = "text"
    """Column that holds the text."""
    pair: str | None = None
    """Column that holds a second text; null: there is none."""
    label: str = "label"
    """Column that holds the class."""
    hub: str | None = None
    """Name of a data set of the Hugging Face hub, such as nyu-mll/glue; read where `train` names no file."""
    configuration: str | None = None
    """Which of the hub data set's configurations (its 'subset'), such as cola; null: its default."""
    revision: str | None = None
    """A commit, branch or tag of the hub data set; null: the newest."""
    hub_splits: HubSplits = HubSplits()
    """Which of its splits; a file that is named takes a split's place."""
    classes: Texts = ()
    """The classes in their order; none named: the labels of the training data, sorted."""
    duplicates: Literal["drop", "keep"] = "drop"
    """What happens to training texts that were there before, differences in case, white space, web addresses and
    mentions aside. Kept or not, the same text is never on both sides of a split."""
    contradictions: Literal["drop", "majority"] = "drop"
    """What happens to training texts that are there with several labels: they are dropped, or those with the most
    frequent label are kept, where there is one."""
    cleaning: Cleaning = Cleaning()
    """What is changed in the texts; stored with the model."""

    @model_validator(mode="after")
    def _label_is_no_input(self) -> Self:
        if self.label in (*self.text_columns(), *self.cleaning.prefix):
            raise ValueError(f"label = {self.label} is among the columns of the text: that gives the answer away")
        return self

    @model_validator(mode="after")
    def _classes_differ(self) -> Self:
        if self.classes and len(set(self.classes)) != max(len(self.classes), 2):
            raise ValueError(f"classes = {', '.join(self.classes)}: there must be two or more, each named once")
        return self

    def title(self) -> str:
        """Return what a run on this is called."""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(self.train or self.hub or "labelled").name.split(".")[0]).strip(
            "-."
        )

    def pinned(self) -> Self:
        """Return the task with the hub's data set at the commit that its revision now is.

        Raises:
            UserError: no network, or no such data set.

        """
        if self.hub is None or self.train is not None:
            return self
        return self.model_copy(update={"revision": hub_tables.commit(self.hub, self.revision)})

    def text_columns(self) -> tuple[str, ...]:
        """Return the columns of the text, or of the texts of a pair."""
        return (self.text,) if self.pair is None else (self.text, self.pair)

    def prefix_columns(self) -> tuple[str, ...]:
        """Return the columns that are put before the text where they are there."""
        return self.cleaning.prefix

    def label_column(self) -> str:
        """Return the column of the class."""
        return self.label

    def rows(self, path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
        """Return the rows of a table that has the `columns`, read as the training data is.

        Raises:
            UserError: it cannot be read, or lacks one of them.

        """
        found: list[dict[str, str]] = tables.read(path, columns, self).to_dict("records")
        return found

    def example(self, row: Mapping[str, str]) -> tuple[str, ...]:
        """Return a row's cleaned text or texts, as they are to be tokenised; the row needs no prefix column."""
        return self.cleaning.text_of(row, self.text_columns())

    def load(self, text: TextConfig) -> Dataset:
        """Read, clean and check the data; `text`, the encoder's corpus, is not looked at.

        Raises:
            UserError: nothing is named to read, it cannot be read, lacks columns, labels or texts, or has one class.

        """
        counts = Counter[str]()
        train = self._part("train", counts)
        if train is None:
            raise UserError("no training data is named: set data.train to a labelled file, or data.hub to a data set")
        classes = self.classes or _sorted(set(train.labels))
        train.check_labels(classes)
        if len(classes) < 2:
            raise UserError(f"{train.where}: every label is {classes[0]!r}: classification takes two classes or more")
        train = self._without_repeats(train, counts)
        validation, test = self._part("validation", counts), self._part("test", counts)
        if test is not None:
            test.check_labels(classes)
            train = train.without(test, counts, "training texts that are also in the test data")
        if validation is not None:
            validation.check_labels(classes)
            train = train.without(validation, counts, "training texts that are also in the validation data")
        if validation is not None and test is not None:
            validation = validation.without(test, counts, "validation texts that are also in the test data")
        for missing in [name for name in classes if name not in train.labels]:
            dropped = ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "nothing"
            raise UserError(f"{train.where}: no text of class {missing!r} is left to train on (dropped: {dropped})")
        return Dataset(
            classes,
            train.examples(classes),
            None if validation is None else validation.examples(classes),
            None if test is None else test.examples(classes),
            dict(counts),
        )

    def _part(self, name: Literal["train", "validation", "test"], counts: Counter[str]) -> Part | None:
        path, split = getattr(self, name), getattr(self.hub_splits, name)
        columns = list(dict.fromkeys([*self.text_columns(), *self.cleaning.prefix, self.label]))
        if path is not None:
            return self._read(tables.read(Path(path), columns, self), path, counts)
        if self.hub is None or self.train is not None or split is None:
            return None
        frame = hub_tables.read_hub(self.hub, self.configuration, split, self.revision, columns)
        return self._read(frame, f"the hub's {self.hub}, split {split}", counts)

    def _read(self, frame: Any, where: str, counts: Counter[str]) -> Part:
        rows = frame.to_dict("records")
        texts = [self.example(row) for row in rows]
        places = [place for place, text in enumerate(texts) if all(text)]
        counts += Counter({"empty texts": len(rows) - len(places)})
        if not places:
            raise UserError(f"{where}: the text in each of the {len(rows)} rows is empty (column {self.text!r})")
        return Part(
            where,
            tuple(place + 1 for place in places),
            tuple(texts[place] for place in places),
            tuple(identity([rows[place][column] for column in self.text_columns()]) for place in places),
            tuple(rows[place][self.label].strip() for place in places),
        )

    def _without_repeats(self, part: Part, counts: Counter[str]) -> Part:
        labels: dict[tuple[str, ...], Counter[str]] = {}
        for text, label in zip(part.identities, part.labels, strict=True):
            labels.setdefault(text, Counter())[label] += 1
        right = {text: _agreed(given, self.contradictions) for text, given in labels.items()}
        agreeing = [n for n, text in enumerate(part.identities) if part.labels[n] == right[text]]
        counts += Counter({"texts with contradicting labels": len(part.labels) - len(agreeing)})
        firsts = sorted({part.identities[n]: n for n in reversed(agreeing)}.values())
        if self.duplicates == "keep":
            return part.take(agreeing)
        counts += Counter({"duplicated texts": len(agreeing) - len(firsts)})
        return part.take(firsts)


def _agreed(given: Counter[str], contradictions: str) -> str | None:
    """Return the label that a text is to have; None where there is none to be had."""
    (label, count), *others = given.most_common()
    is_majority = contradictions == "majority" and all(other < count for _, other in others)
    return label if not others or is_majority else None


def _sorted(labels: Iterable[str]) -> tuple[str, ...]:
    """Sort whole numbers by size, anything else by letters; what is not given comes no further than here."""
    given = [label for label in labels if label]
    try:
        return tuple(sorted(given, key=int))
    except ValueError:
        return tuple(sorted(given))


Task = Annotated[BigramShift | Labelled, Field(discriminator="kind")]
