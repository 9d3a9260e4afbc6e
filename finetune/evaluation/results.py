"""The results of a fine-tuning run as results.json holds them: runs write them, comparisons read them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from configs import Config, UserError
from finetune.data.class_names import short
from finetune.data.examples import Examples
from finetune.evaluation.differences import Difference, paired_difference
from finetune.evaluation.metrics import METRIC_NAMES, Metric
from mlm.tracking.run_directory import RESULTS, write_json

COLUMNS: tuple[Metric, ...] = ("accuracy", "f1", "f1_macro", "mcc", "roc_auc", "pearson", "spearman")


class MeanStd(Config):
    """A score over trials: folds x seeds."""

    mean: float
    std: float | None = Field(ge=0)
    """Standard deviation (ddof = 1); null for one trial (0 in the files of earlier versions)."""

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Self | None:
        """Return mean and standard deviation of the values that are not None; None if all are."""
        known = [value for value in values if value is not None]
        if not known:
            return None
        return cls(mean=float(np.mean(known)), std=float(np.std(known, ddof=1)) if len(known) > 1 else None)

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if self.std is None else f"{self.mean:.3f} ± {self.std:.3f}"


Value = TypeVar("Value", float, MeanStd)


class Scores(Config, Generic[Value]):
    """A value for every metric: those of classes or those of numbers.

    One that was not measured is left out of the file, and null if it cannot be.
    """

    accuracy: Value | None = None
    """Share of right predictions."""
    f1: Value | None = None
    """F1 of the second of two classes, else the mean over classes; null where that class is missing."""
    f1_macro: Value | None = None
    """Mean F1 over classes."""
    f1_weighted: Value | None = None
    """Mean F1 over examples."""
    mcc: Value | None = None
    """Matthews correlation; null where all labels are of one class."""
    precision: Value | None = None
    """Of the second of two classes, else the mean over classes; likewise recall; null as F1."""
    recall: Value | None = None
    roc_auc: Value | None = None
    """Area under the ROC curve, one against the rest; null where a class is missing."""
    pearson: Value | None = None
    """Correlation with the numbers that were to be predicted, likewise spearman; null where these are all the same."""
    spearman: Value | None = None
    loss: Value | None = None
    """Cross-entropy in nats, which baselines lack, or the mean squared error of numbers: 1 for their mean, about."""

    def get(self, metric: Metric) -> Value | None:
        """Return the value of a metric."""
        value: Value | None = getattr(self, metric)
        return value

    def measured(self) -> dict[Metric, Value | None]:
        """Return the values of the metrics that were measured."""
        return {metric: self.get(metric) for metric in METRIC_NAMES if metric in self.model_fields_set}


class TrialScores(Config):
    """One training on one fold with one seed, as the file holds it."""

    fold: int = Field(ge=0)
    seed: int
    validation: Scores[float] | None
    """Scores of the best weights on the validation part; null without one."""
    test: Scores[float]
    """Scores of the same weights on the test part."""
    epochs: float = Field(ge=0)
    """Number of epochs after which the best weights were reached."""
    seconds: float = Field(ge=0)
    """Duration of all training steps."""
    weights_sha256: str
    test_sha256: str = ""
    """Hash of the test examples, whatever their cleaning; older files lack it."""


class Parameters(Config):
    """Size of the model."""

    all: int = Field(gt=0)
    trained: int = Field(ge=0)


@dataclass(frozen=True)
class TrialResult:
    """A finished trial: its scores, and what the report needs besides."""

    scores: TrialScores
    test: Examples
    probabilities_NC: NDArray[np.float64]
    parameters: Parameters
    truncated: int
    """Number of examples that were longer than the encoder reads."""
    skipped: int
    """Number of updates skipped because loss or gradient was not finite."""
    goodness: float
    """Goodness of the best weights by the metric of early stopping; without a validation part, the number of steps."""


class Compared(Scores[MeanStd]):
    """Scores of a baseline on the test parts."""

    difference: Difference | None = None
    """This encoder minus the baseline, by the run's metric; null where a trial lacks it."""


class Control(Compared):
    """The randomly initialized encoder's scores on the test parts."""

    trials: tuple[TrialScores, ...] = ()


class Baselines(Config):
    """Scores to beat, on the same test parts."""

    majority: Scores[MeanStd]
    """The most frequent class, or the mean number."""
    tfidf: Compared
    """N-grams of characters and words, and logistic regression, or ridge regression."""
    random_encoder: Control | None = None
    """The control for pretraining; left out if not asked for."""


class ExampleCounts(Config):
    """Number of examples in each part of one fold."""

    train: int = Field(ge=0)
    validation: int = Field(ge=0)
    test: int = Field(ge=0)
    counts: dict[str, int]
    """Number of dropped and of truncated examples by reason."""


class Results(Config):
    """All of results.json."""

    name: str
    head: str
    classes: tuple[str, ...] = Field(min_length=1)
    """Names of the classes, by index; a single one is the name of a number."""
    metric: Metric
    """Metric by which the best weights were chosen."""
    parameters: Parameters
    data: ExampleCounts
    validation: Scores[MeanStd] | None
    """Over trials, as those of the test part; null without a validation part."""
    test: Scores[MeanStd]
    seconds: float | None = None
    """Duration of all training steps of these trials; older files lack it."""
    trials: tuple[TrialScores, ...] = Field(min_length=1)
    baselines: Baselines

    def write(self, folder: Path) -> None:
        """Write results.json into a run's folder."""
        write_json(folder / RESULTS, self.model_dump(mode="json", exclude_unset=True))


def read(folder: Path) -> Results:
    """Return the results in a run's results.json; a UserError if there is none that a fine-tuning run wrote."""
    path = folder / RESULTS
    if not folder.is_dir():
        raise UserError(f"no such run: {folder}")
    try:
        return Results.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"no {RESULTS} in {folder}: the run is not finished, or this is no run") from error
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False)
        if any(fault["loc"] == ("heldout",) for fault in faults):
            raise UserError(
                f"{folder} is a pretraining run: train a classifier on it by "
                f"python -m finetune.cnn_head encoder.run={folder}, and name that run"
            ) from error
        place = short(".".join(map(str, faults[0]["loc"])), 60)
        where = f"{path}, {place}" if place else str(path)
        raise UserError(f"{where}: {short(faults[0]['msg'], 120)}: a fine-tuning run does not write this") from error


def over_trials(scores: Sequence[Mapping[Metric, float | None]]) -> Scores[MeanStd]:
    """Return each metric's mean and standard deviation over the scores of trials, or of baselines on folds."""
    metrics = [metric for metric in METRIC_NAMES if any(metric in one for one in scores)]
    return Scores[MeanStd].model_validate({name: MeanStd.of([one.get(name) for one in scores]) for name in metrics})


def control_of(
    trials: Sequence[TrialScores], control: Sequence[TrialScores], metric: Metric, sampling_error: float = 0.0
) -> Control:
    """Return the scores of the random encoder beside the `trials` of the same folds and seeds."""
    difference = difference_of(trials, control, metric, sampling_error)
    test = over_trials([trial.test.measured() for trial in control])
    return Control.model_validate({**test.measured(), "difference": difference, "trials": tuple(control)})


def compared(
    trials: Sequence[TrialScores],
    folds: Mapping[int, Mapping[Metric, float | None]],
    metric: Metric,
    sampling_error: float = 0.0,
) -> Compared:
    """Return a baseline's scores by fold, beside the `trials` of these folds."""
    theirs = [one.model_copy(update={"test": Scores[float].model_validate(folds[one.fold])}) for one in trials]
    difference = difference_of(trials, theirs, metric, sampling_error)
    return Compared.model_validate({**over_trials(list(folds.values())).measured(), "difference": difference})


def difference_of(
    ours: Sequence[TrialScores], theirs: Sequence[TrialScores], metric: Metric, sampling_error: float = 0.0
) -> Difference | None:
    """Return the difference over the same folds, seeds and test examples; None if any differ, or a score is missing.

    `sampling_error` is that of `paired_difference`.
    """
    if not same_tests(ours, theirs):
        return None
    pairs = {(trial.fold, trial.seed): trial.test.get(metric) for trial in theirs}
    scores = [(trial.test.get(metric), pairs.get((trial.fold, trial.seed))) for trial in ours]
    known = [(mine, other) for mine, other in scores if mine is not None and other is not None]
    if len(known) != len(ours) or len(pairs) != len(ours):
        return None
    mine, other = zip(*known, strict=True)
    return paired_difference(mine, other, [trial.fold for trial in ours], sampling_error)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Return the cells of lines as text, in columns of one width each."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [[f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join("  ".join(line).rstrip() for line in padded)


def same_tests(ours: Sequence[TrialScores], theirs: Sequence[TrialScores]) -> bool:
    """Return False if trials of a fold are known to be tested on different examples; older files do not record them."""
    hashes = {trial.fold: trial.test_sha256 for trial in theirs}
    pairs = ((trial.test_sha256, hashes.get(trial.fold)) for trial in ours)
    return all(mine == other for mine, other in pairs if mine and other)


def table(results: Results) -> str:
    """Return a table of test scores beside those of the baselines and of the control."""
    beaten = results.baselines
    control = beaten.random_encoder
    rows = {
        "this encoder": results.test,
        "random encoder": control,
        "TF-IDF": beaten.tfidf,
        "mean number" if len(results.classes) == 1 else "majority class": beaten.majority,
    }
    shown_too: tuple[Metric, ...] = ("loss",) if len(results.classes) == 1 else ()
    columns = [column for column in (*COLUMNS, *shown_too) if column in results.test.measured()]
    lines = [f"{'test':16}" + "".join(f"{name:>16}" for name in columns)]
    for name, scores in rows.items():
        if scores is not None:
            lines.append(f"{name:16}" + "".join(f"{shown(scores.get(column)):>16}" for column in columns))
    lines.append(f"mean ± standard deviation over {count_trials(results.trials)}; baselines over the folds")
    has_folds = len({trial.fold for trial in results.trials}) > 1
    for name, baseline in (("TF-IDF", beaten.tfidf), ("random encoder", control)):
        if baseline is not None and "difference" in baseline.model_fields_set:
            difference = baseline.difference
            # Older files do not tell the freedom, nor cover the choice of the test examples.
            alone = "seeds" if difference is None or difference.freedom is None else "seeds and test examples"
            covered = "folds" if has_folds else alone
            known = "" if difference is None or difference.low is None else f", 95 % interval over {covered}"
            lines.append(f"this encoder - {name}, {results.metric}: {shown(difference)}{known}")
    return "\n".join(lines)


def count_trials(trials: Sequence[TrialScores]) -> str:
    """Return the number of trials, such as `15 trials (5 folds, 3 seeds)`."""

    def plural(number: int, noun: str) -> str:
        return f"{number} {noun}{'s' if number != 1 else ''}"

    folds, seeds = len({trial.fold for trial in trials}), len({trial.seed for trial in trials})
    return f"{plural(len(trials), 'trial')} ({plural(folds, 'fold')}, {plural(seeds, 'seed')})"


def shown(score: MeanStd | Difference | None) -> str:
    """Return the score as text, or a dash."""
    return "-" if score is None else str(score)
