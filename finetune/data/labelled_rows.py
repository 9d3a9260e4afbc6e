"""The rows of a labelled table: checked, filtered, and turned into examples."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from configs import UserError
from finetune.data.examples import Examples

_SHOWN = 5
_SHOWN_CLASSES = 20


class LabelledRow(NamedTuple):
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
class LabelledRows:
    """The rows of a table that hold a text."""

    where: str
    """Name of the table in messages."""
    rows: tuple[LabelledRow, ...]

    def without(self, other: "LabelledRows", counts: Counter[str], reason: str) -> "LabelledRows":
        """Return the rows without texts of `other`, and count those under `reason`; a UserError if none is left."""
        known = {row.identity for row in other.rows}
        kept = tuple(row for row in self.rows if row.identity not in known)
        counts += Counter({reason: len(self.rows) - len(kept)})
        if not kept:
            raise UserError(f"{self.where}: every text is in {other.where} too: name files that differ")
        return LabelledRows(self.where, kept)

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
