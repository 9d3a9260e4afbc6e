"""Classify a table of texts into a CSV file."""

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from configs import UserError, files
from finetune.data.cleaning import RowReader
from finetune.saved_model import Prediction
from mlm.distributed.world import World
from tokenizer.sources.tables import unique_names

AT_ONCE = 512
"""Number of texts of a file that are tokenized, sorted by length and classified together."""
MOST_PROBABILITIES = 2_000_000
"""Largest number of probabilities in memory: with thousands of classes, fewer texts are classified together."""


class TableClassifier(Protocol):
    """A classifier of the rows of a table."""

    @property
    def reader(self) -> RowReader:
        """The reader of its tables."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, by index."""

    @property
    def most_frequent(self) -> str | None:
        """The most frequent class of the training data, if it is known."""

    def classify(self, rows: Sequence[Mapping[str, str]], world: World) -> list[Prediction]:
        """Return the prediction for each row."""


@dataclass(frozen=True)
class Progress:
    """The state of a table that is being classified."""

    done: int
    """Rows that are classified."""
    total: int
    remarks: str = ""
    """The summary of it, in one line; only once the file is written."""


def classify_table(
    model: TableClassifier, source: str | Path, output: Path, submission: str | None, world: World, encoding: str
) -> Iterator[Progress]:
    """Classify every row of a table into a CSV file; yield the progress, first with no row done, last with remarks.

    The file has the table's columns, the predicted class, and a column of probabilities for each class; a name that the
    table has already gets a number. With `submission` it has that column and the predicted class only, under the name
    of the training labels' column. Rows with an empty text get no class, but in a submission the most frequent one of
    training; an older model does not tell it, and the one predicted most often takes its place. If all are empty, that
    is a UserError.
    """
    reader, classes = model.reader, model.class_names
    columns = () if submission is None else (submission,)
    if submission == reader.label:
        raise UserError(
            f"--submission {submission}: that is the column of the classes: name the one that tells the rows"
        )
    rows = reader.rows(source, columns, all_columns=submission is None, encoding=encoding)
    empty, truncated, at_once = 0, 0, min(AT_ONCE, max(MOST_PROBABILITIES // len(classes), 1))
    named = [f"probability_{name}" for name in classes] if len(classes) > 1 else []
    header = unique_names([*rows[0], "predicted", *named])
    lines = [header if submission is None else [submission, reader.label]]
    yield Progress(0, len(rows))
    with files.written(output, new=True) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        for start in range(0, len(rows), at_once):
            part = rows[start : start + at_once]
            for row, found in zip(part, model.classify(part, world), strict=True):
                empty += not found.probabilities
                truncated += found.truncated
                predicted = _predicted(found, classes)
                if submission is None:
                    shown = [f"{probability:.6f}" for probability in found.probabilities] or [""] * len(classes)
                    lines.append([*row.values(), predicted, *shown[: len(named)]])
                else:
                    lines.append([row[submission], predicted])
            if submission is None:
                writer.writerows(lines)
                lines.clear()
            yield Progress(start + len(part), len(rows))
        if empty == len(rows):
            names = ", ".join(reader.columns)
            raise UserError(f"{source}: the text in each of the {len(rows)} rows is empty ({names})")
        got = (
            "nothing"
            if submission is None or not empty
            else _fill_empty(lines, model.most_frequent, is_number=len(model.class_names) == 1)
        )
        writer.writerows(lines)
    remarks = {f"empty texts got {got}": empty, "were truncated to the encoder's limit": truncated}
    said = [f"{number:,} {remark}" for remark, number in remarks.items() if number]
    missing = [name for name in reader.cleaning.prefix if name not in rows[0]]
    said += [f"there is no column {name}: texts are classified without it" for name in missing]
    yield Progress(len(rows), len(rows), "; ".join([f"{len(rows):,} rows classified into {output}", *said]))


def _predicted(found: Prediction, classes: Sequence[str]) -> str:
    """Return the most probable class, or the number, as text; none of an empty text."""
    probabilities = found.probabilities
    if not probabilities:
        return ""
    return f"{probabilities[0]:.6g}" if len(classes) == 1 else classes[probabilities.index(max(probabilities))]


def _fill_empty(lines: Sequence[list[str]], most_frequent: str | None, *, is_number: bool) -> str:
    """Fill in what is missing in a submission, whose first line is the header; return the value and its origin."""
    known = most_frequent or Counter(predicted for _, predicted in lines[1:] if predicted).most_common(1)[0][0]
    for line in lines[1:]:
        line[1] = line[1] or known
    if is_number:
        return f"{known}, the mean of the training numbers"
    if most_frequent is None:
        return f"{known}, the class predicted most often here: this older model does not tell that of training"
    return f"{known}, the most frequent class of training"
