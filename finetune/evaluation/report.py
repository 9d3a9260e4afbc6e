"""What a person reads of a fine-tuning run: lines while it goes on, and at the end tables, pictures and mistakes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.config import FinetuneConfig
from finetune.data.examples import Dataset, Examples, Split
from finetune.evaluation import figures, metrics, mistakes, results
from finetune.evaluation.scores import Scores
from finetune.records import METRICS
from mlm.distributed.world import World

CURVES, CONFUSION, MISTAKES, REPORT = "curves.png", "confusion.png", "mistakes.csv", "report.txt"


@dataclass(frozen=True)
class Judged:
    """A finished trial and what it predicted."""

    trial: results.Trial
    split: Split
    probabilities_NC: NDArray[np.float64]
    """Of the test part's examples."""
    parameters: results.Parameters
    truncated: int
    """Examples that were longer than the encoder reads."""
    skipped: int
    """Updates left out because loss or gradient was not finite."""


def opening(path: Path, recipe: FinetuneConfig, dataset: Dataset, splits: Sequence[Split], world: World) -> str:
    """Say what is about to be done."""
    first = splits[0]
    dropped = ", ".join(f"{number:,} {what}" for what, number in dataset.counts.items() if number)
    sizes = f"{len(first.train):,} for training, {len(first.validation):,} for validation, {len(first.test):,} for test"
    folds = f" in each of {len(splits)} folds" if len(splits) > 1 else ""
    encoder = recipe.encoder.run or recipe.encoder.hub
    return "\n".join(
        [
            f"run {path}: {recipe.head.kind} head on {encoder}, {world}",
            f"examples: {sizes}{folds}; classes: {', '.join(map(metrics.short, dataset.classes))}",
            *([f"dropped: {dropped}"] if dropped else []),
        ]
    )


def trial_line(trial: results.Trial, metric: metrics.Metric, folds: int, *, control: bool) -> str:
    """Say what a trial came to."""

    def shown(scores: Scores[float]) -> str:
        value = scores.get(metric)
        return "-" if value is None else f"{value:.4f}"

    name = f"fold {trial.fold + 1} of {folds}, seed {trial.seed}" if folds > 1 else f"seed {trial.seed}"
    validated = "" if trial.validation is None else f"{shown(trial.validation)} validation, "
    return (
        f"{'random encoder, ' if control else ''}{name}: {metric} {validated}{shown(trial.test)} test;"
        f" {'best ' if validated else ''}after epoch {trial.epochs:.1f}; {trial.seconds:.0f} s"
    )


def write(path: Path, found: results.Results, finished: Sequence[Judged]) -> str:
    """Write report, pictures and mistakes into the run's folder; return what is shown at the end."""
    from torch.utils.tensorboard import SummaryWriter

    labels_N = np.concatenate([one.split.test.labels for one in finished])
    predictions_N = np.concatenate([one.probabilities_NC.argmax(axis=1) for one in finished])
    matrix_CC = metrics.confusion(labels_N, predictions_N, len(found.classes))
    title = f"{found.name}: test,\n{results.count_trials(found.trials)}"
    picture = figures.confusion_figure(matrix_CC, found.classes, title)
    figures.write(picture, path / CONFUSION)
    with SummaryWriter(str(path)) as board:
        board.add_figure("confusion", picture)
    figures.write(figures.learning_curves(_records_by_trial(path), found.metric), path / CURVES)
    wrong = _write_mistakes(path, found, finished)
    text = "\n\n".join(
        [
            results.table(found),
            f"all test predictions, {results.count_trials(found.trials)}\n"
            + metrics.per_class_report(labels_N, predictions_N, found.classes),
            metrics.confusion_text(matrix_CC, found.classes),
            "\n".join(_remarks(found, finished)),
        ]
    )
    (path / REPORT).write_text(text + "\n", encoding="utf-8")
    return "\n".join(
        [
            text,
            f"\nconfusion matrix: {path / CONFUSION}    learning curves: {path / CURVES}",
            f"{wrong:,} wrong ones, the surest first: {path / MISTAKES}    all results: {path / 'results.json'}",
            f'next: python -m finetune.predict {path} "a text"',
        ]
    )


def _remarks(found: results.Results, finished: Sequence[Judged]) -> list[str]:
    """Say what happened to examples and updates that a person would want to know of."""
    parameters = found.parameters
    remarks = [f"{parameters.all:,} parameters, {parameters.trained:,} of them trained"]
    remarks += [f"{number:,} {what}" for what, number in found.data.counts.items() if number]
    skipped = sum(one.skipped for one in finished)
    if skipped:
        remarks.append(f"{skipped:,} updates skipped, loss or gradient not finite: lower optim.lr")
    return remarks


def _write_mistakes(path: Path, found: results.Results, finished: Sequence[Judged]) -> int:
    """List the mistakes of the first seed, which saw the test part of every fold once."""
    first = [one for one in finished if one.trial.seed == finished[0].trial.seed]
    examples = Examples(
        tuple(text for one in first for text in one.split.test.texts),
        np.concatenate([one.split.test.labels for one in first]),
    )
    probabilities_NC = np.concatenate([one.probabilities_NC for one in first])
    return mistakes.write_mistakes(path / MISTAKES, examples, probabilities_NC, found.classes)


def _records_by_trial(path: Path) -> dict[str, list[dict[str, object]]]:
    found: dict[str, list[dict[str, object]]] = {}
    for line in (path / METRICS).read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if not record["control"]:
            found.setdefault(record["trial"], []).append(record)
    return found
