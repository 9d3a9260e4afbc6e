"""List what a classifier got wrong, the surest mistakes first, in a file that a person reads in a spreadsheet."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.data.examples import Examples

# What a spreadsheet may take for the start of a formula and run. Also the wide forms, which some of them fold.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def write_mistakes(
    path: Path, examples: Examples, probabilities_NC: NDArray[np.floating], classes: Sequence[str]
) -> int:
    """Write all wrongly classified examples as CSV, the most confident mistake first, and return their number.

    The columns are confidence (the probability of the predicted class), predicted, true, text, and text_2 for
    pairs. What a spreadsheet might run as a formula gets an apostrophe before it, which spreadsheets do not show.
    The file starts with a byte order mark, without which Excel takes UTF-8 for something else.
    """
    predictions_N, confidences_N = probabilities_NC.argmax(axis=1), probabilities_NC.max(axis=1)
    wrong = np.flatnonzero(predictions_N != examples.labels)
    wrong = wrong[np.argsort(-confidences_N[wrong], kind="stable")]
    columns = max((len(texts) for texts in examples.texts), default=1)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8-sig", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_MINIMAL)
        writer.writerow(["confidence", "predicted", "true", "text", *(f"text_{i}" for i in range(2, columns + 1))])
        for index in wrong.tolist():
            fields = (classes[predictions_N[index]], classes[examples.labels[index]], *examples.texts[index])
            writer.writerow([f"{confidences_N[index]:.4f}", *(_inert(field) for field in fields)])
    partial.replace(path)
    return len(wrong)


def _inert(field: str) -> str:
    """Return the field as plain text for a spreadsheet, its line breaks all of one kind."""
    text = field.replace("\r\n", "\n").replace("\r", "\n")
    return f"'{text}" if text.lstrip(" \u00a0").startswith(_FORMULA_STARTS) else text
