"""The rows of a labelled table: checked, filtered, and turned into examples."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from configs import UserError
from finetune.data.examples import Examples

_SHOWN = 5
_SHOWN_CLASSES = 20


@dataclass(frozen=True)
class LabelledRows:
    """The rows of a table that hold a text."""

    where: str
    """Name of the table in messages."""
    rows: tuple[int, ...]
    """Number of each row in the table, from 1."""
    texts: tuple[tuple[str, ...], ...]
    """One cleaned text per row, or the two of a pair."""
    identities: tuple[tuple[str, ...], ...]
    """Keys of the texts, from `cleaning.identity`."""
    labels: tuple[str, ...]
    """Labels of the table; empty where one is missing."""

    def take(self, places: Sequence[int]) -> "LabelledRows":
        """Return the rows at `places`, in that order."""
        return LabelledRows(
            self.where,
            tuple(self.rows[place] for place in places),
            tuple(self.texts[place] for place in places),
            tuple(self.identities[place] for place in places),
            tuple(self.labels[place] for place in places),
        )

    def without(self, other: "LabelledRows", counts: Counter[str], reason: str) -> "LabelledRows":
        """Return the rows whose texts are not in `other`, and count the others under `reason`.

        Raises:
            UserError: no row is left.
        """
        known = set(other.identities)
        kept = [place for place, text in enumerate(self.identities) if text not in known]
        counts += Counter({reason: len(self.texts) - len(kept)})
        if not kept:
            raise UserError(f"{self.where}: every text is in {other.where} too: name files that differ")
        return self.take(kept)

    def check_labels(self, classes: Sequence[str]) -> None:
        """Check that every row has one of the classes.

        Raises:
            UserError: a row has no label or another one; the message names the rows.
        """
        missing = [row for row, label in zip(self.rows, self.labels, strict=True) if not label]
        unknown = [row for row, label in zip(self.rows, self.labels, strict=True) if label not in classes]
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
            self.texts,
            np.array([numbers[label] for label in self.labels], np.int64),
            np.array([groups.setdefault(text, len(groups)) for text in self.identities], np.int64),
        )
