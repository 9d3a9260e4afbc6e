"""The report of a fine-tuning run: a line for each trial, and at the end tables, pictures and a list of mistakes."""

import csv
import json
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from configs.files import write_text, written
from finetune.data.examples import Examples
from finetune.evaluation import figures, metrics, results
from finetune.evaluation.results import Results, TrialResult, TrialScores
from mlm.evaluation.results import shown
from mlm.tracking import plots
from mlm.tracking.run_directory import METRICS, RESULTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVES, CONFUSION, PREDICTIONS = "curves.png", "confusion.png", "predictions.png"
MISTAKES, REPORT = "mistakes.csv", "report.txt"

# A spreadsheet may run a field that starts with one of these as a formula; some fold the wide forms.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def trial_line(trial: TrialScores, metric: metrics.Metric, folds: int, *, control: bool) -> str:
    """Return one line with the scores of a trial."""
    name = f"fold {trial.fold + 1} of {folds}, seed {trial.seed}" if folds > 1 else f"seed {trial.seed}"
    validated = "" if trial.validation is None else f"{shown(trial.validation.get(metric), '.4f')} validation, "
    return (
        f"{'random encoder, ' if control else ''}{name}: {metric} {validated}"
        f"{shown(trial.test.get(metric), '.4f')} test;"
        f" {'best ' if validated else ''}after epoch {trial.epochs:.1f}; {trial.seconds:.0f} s"
    )


def write(path: Path, found: Results, finished: Sequence[TrialResult]) -> str:
    """Write report, mistakes and figures into the run's directory; return the text that the command prints.

    What is drawn comes last. Of many classes, text and figures show those that are confused most.
    """
    labels_N = np.concatenate([one.test.labels for one in finished])
    predicted_NC = np.concatenate([one.probabilities_NC for one in finished])
    counted = results.count_trials(found.trials)
    if len(found.classes) == 1:
        title = f"{found.name}: test,\n{counted}"
        draw = partial(figures.numbers_figure, labels_N, predicted_NC[:, 0], title)
        sections, picture, pictured = list[str](), PREDICTIONS, "predictions"
    else:
        sections, draw = _confusions(found, labels_N, predicted_NC.argmax(axis=1), counted)
        picture, pictured = CONFUSION, "confusion matrix"
    text = "\n\n".join([results.table(found), *sections, "\n".join(_remarks(found, finished))])
    write_text(path / REPORT, text + "\n")
    # The trials of the first seed test every fold once.
    first = [one for one in finished if one.scores.seed == finished[0].scores.seed]
    texts = tuple(text for one in first for text in one.test.texts)
    examples = Examples(texts, np.concatenate([one.test.labels for one in first]))
    wrong = write_mistakes(
        path / MISTAKES, examples, np.concatenate([one.probabilities_NC for one in first]), found.classes
    )
    plots.write(draw(), path / picture)
    plots.write(figures.learning_curves(_records_by_trial(path), found.metric), path / CURVES)
    listed = "mistakes, the most confident" if len(found.classes) > 1 else "predictions, the largest error"
    return (
        f"{text}\n\n{pictured}: {path / picture}    learning curves: {path / CURVES}\n"
        f"{wrong:,} {listed} first: {path / MISTAKES}    all results: {path / RESULTS}\n"
        f'next: python -m finetune.predict {path} "a text"'
    )


def _confusions(
    found: Results, labels_N: NDArray[np.int64], predictions_N: NDArray[np.int64], counted: str
) -> tuple[list[str], "partial[Figure]"]:
    """Return the report on each class and the confusion matrix as text, and what draws that."""
    shown_K = metrics.most_confused(labels_N, predictions_N, len(found.classes))
    matrix_KK, names = metrics.confusion(labels_N, predictions_N, found.classes, shown_K)
    if len(shown_K) < len(found.classes):
        counted += f", the {len(shown_K)} most confused of {len(found.classes):,} classes"
    by_class = metrics.per_class_report(labels_N, predictions_N, found.classes, shown_K)
    sections = [f"all test predictions, {counted}\n{by_class}", metrics.confusion_text(matrix_KK, names)]
    return sections, partial(figures.confusion_figure, matrix_KK, names, f"{found.name}: test,\n{counted}")


def _remarks(found: Results, finished: Sequence[TrialResult]) -> list[str]:
    """Return remarks on parameters, dropped examples and skipped updates."""
    parameters = found.parameters
    remarks = [f"{parameters.all:,} parameters, {parameters.trained:,} of them trained"]
    remarks += [f"{number:,} {reason}" for reason, number in found.data.counts.items() if number]
    lacking = "numbers are all the same" if len(found.classes) == 1 else "test part lacks a class"
    unmeasured = [name for trial in found.trials for name, value in trial.test.measured().items() if value is None]
    remarks += [
        f"test {name}: not measured in {number} of {results.count_trials(found.trials)}, whose {lacking}"
        for name, number in Counter(unmeasured).items()
    ]
    if skipped := sum(one.skipped for one in finished):
        remarks.append(f"{skipped:,} updates skipped, loss or gradient not finite: lower optim.lr")
    return remarks


def _records_by_trial(path: Path) -> dict[str, list[dict[str, object]]]:
    found: dict[str, list[dict[str, object]]] = {}
    for line in (path / METRICS).read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if not record["control"]:
            found.setdefault(record["trial"], []).append(record)
    return found


def write_mistakes(
    path: Path, examples: Examples, probabilities_NC: NDArray[np.floating], class_names: Sequence[str]
) -> int:
    """Write all wrongly classified examples as CSV, the most confident mistake first, and return their number.

    The columns are confidence (the probability of the predicted class), predicted, true, text, and text_2 for
    pairs. Numbers are all there, the largest error first, which takes the place of the confidence. An apostrophe, which
    spreadsheets hide, keeps them from running a text as a formula. The file starts with a byte order mark, by which
    Excel recognizes UTF-8.
    """
    rows: list[tuple[float, str, str]]
    if len(class_names) == 1:
        numbers = zip(probabilities_NC[:, 0].tolist(), examples.labels.tolist(), strict=True)
        rows = [(abs(predicted - true), f"{predicted:.4f}", f"{true:g}") for predicted, true in numbers]
        wrong, measure = np.arange(len(rows)), "error"
    else:
        predictions_N, confidences_N = probabilities_NC.argmax(axis=1), probabilities_NC.max(axis=1)
        found = zip(confidences_N.tolist(), predictions_N.tolist(), examples.labels.tolist(), strict=True)
        names = [_inert(name) for name in class_names]
        rows = [(confidence, names[predicted], names[true]) for confidence, predicted, true in found]
        wrong, measure = np.flatnonzero(predictions_N != examples.labels), "confidence"
    wrong = wrong[np.argsort([-rows[index][0] for index in wrong], kind="stable")]
    columns = max((len(texts) for texts in examples.texts), default=1)
    with (
        written(path) as half,
        half.open("w", encoding="utf-8-sig", errors="backslashreplace", newline="") as file,
    ):
        writer = csv.writer(file, quoting=csv.QUOTE_MINIMAL)
        writer.writerow([measure, "predicted", "true", "text", *(f"text_{i}" for i in range(2, columns + 1))])
        for index in wrong.tolist():
            measured, predicted, true = rows[index]
            writer.writerow([f"{measured:.4f}", predicted, true, *map(_inert, examples.texts[index])])
    return len(wrong)


def _inert(field: str) -> str:
    """Return the field as plain text for a spreadsheet, with line feeds as its line breaks."""
    text = field.replace("\r\n", "\n").replace("\r", "\n")
    return f"'{text}" if text.lstrip(" \u00a0").startswith(_FORMULA_STARTS) else text
