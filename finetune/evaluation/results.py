"""The results of a fine-tuning run, as results.json holds them: written by runs, read by comparisons."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from configs import Config, UserError
from finetune.evaluation.metrics import Metric, paired_difference, short, summary
from finetune.evaluation.scores import Difference, MeanStd, Scores
from mlm.tracking.run_directory import write_json

RESULTS = "results.json"
COLUMNS: tuple[Metric, ...] = ("accuracy", "f1", "f1_macro", "mcc", "roc_auc")


class Trial(Config):
    """One training on one fold with one seed."""

    fold: int = Field(ge=0)
    """Number of the fold."""
    seed: int
    """Seed of the head's weights and of the order of examples."""
    validation: Scores[float] | None
    """Scores of the best weights on the validation part; null where none was held back."""
    test: Scores[float]
    """Scores of the same weights on the test part."""
    epochs: float = Field(ge=0)
    """Passes over the training examples after which the best weights were reached."""
    seconds: float = Field(ge=0)
    """What all of training took, steps alone."""
    weights_sha256: str
    """Checksum of the best weights."""


class Control(Scores[MeanStd]):
    """The randomly initialised encoder's scores on the test part."""

    difference: Difference
    """This encoder minus the control, by the run's metric."""
    trials: tuple[Trial, ...] = ()
    """Folds x seeds."""


class Baselines(Config):
    """Scores of what the encoder has to beat, on the same test parts."""

    majority: Scores[MeanStd]
    """The most frequent class."""
    tfidf: Scores[MeanStd]
    """Character n-grams and logistic regression."""
    random_encoder: Control | None = None
    """What pretraining is measured against, where it was asked for."""


class Parameters(Config):
    """Size of the model."""

    all: int = Field(gt=0)
    """Number of parameters."""
    trained: int = Field(ge=0)
    """Number of those that training changes."""


class Data(Config):
    """Number of examples."""

    train: int = Field(ge=0)
    """Trained on, in one fold."""
    validation: int = Field(ge=0)
    """To choose by, in one fold."""
    test: int = Field(ge=0)
    """Tested on, in one fold."""
    counts: dict[str, int]
    """What was dropped, and why."""


class About(Config):
    """What was trained on what."""

    name: str
    """The run's name."""
    head: str
    """Kind of head."""
    classes: tuple[str, ...] = Field(min_length=1)
    """Names of the classes, by index."""
    metric: Metric
    """What the best weights were chosen by."""
    parameters: Parameters
    """Size of the model."""
    data: Data
    """Number of examples."""


class Results(About):
    """All of results.json."""

    validation: Scores[MeanStd] | None
    """Over trials; null where none was held back."""
    test: Scores[MeanStd]
    """Over trials."""
    trials: tuple[Trial, ...] = Field(min_length=1)
    """Folds x seeds."""
    baselines: Baselines
    """What the encoder has to beat."""

    def write(self, folder: Path) -> None:
        """Write results.json into a run's folder."""
        write_json(folder / RESULTS, self.model_dump(mode="json", exclude_unset=True))


def read(folder: Path) -> Results:
    """Read a run's results.json, whoever wrote it.

    Raises:
        UserError: there is none, or it is none of a fine-tuning run.

    """
    path = folder / RESULTS
    if not folder.is_dir():
        raise UserError(f"no such run: {folder}")
    try:
        return Results.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"no {RESULTS} in {folder}: the run is not finished, or this is no run's folder") from None
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False)
        if any(fault["loc"] == ("heldout",) for fault in faults):
            raise UserError(
                f"{folder} is a pretraining run: make a classifier of it by "
                f"python -m finetune.cnn_head encoder.run={folder}, and name that one's folder"
            ) from None
        place = short(".".join(map(str, faults[0]["loc"])), 60)
        where = f"{path}, {place}" if place else str(path)
        raise UserError(f"{where}: {short(faults[0]['msg'], 120)}: not as a fine-tuning run writes it") from None


def build(
    about: About,
    trials: Sequence[Trial],
    *,
    majority: Sequence[Mapping[str, float | None]],
    tfidf: Sequence[Mapping[str, float | None]],
    control: Sequence[Trial] = (),
) -> Results:
    """Summarise a run.

    Args:
        about: what was trained on what.
        trials: of this encoder, all folds x seeds.
        majority: the majority class's scores on each fold's test part.
        tfidf: the bag of words' scores on each fold's test part.
        control: the random encoder's trials, of the same folds and seeds; none where it was not asked for.

    """
    baselines = {"majority": summary(majority), "tfidf": summary(tfidf)}
    values: dict[str, Any] = {
        **about.model_dump(),
        "validation": None if trials[0].validation is None else _over(trials, "validation"),
        "test": _over(trials, "test"),
        "trials": [trial.model_dump(exclude_unset=True) for trial in trials],
        "baselines": baselines,
    }
    if control:
        difference = difference_of(trials, control, about.metric)
        assert difference is not None, "the control has the folds and seeds of the trials, and the metric"
        values["baselines"] = {
            **baselines,
            "random_encoder": {
                **_over(control, "test"),
                "difference": difference.model_dump(),
                "trials": [trial.model_dump(exclude_unset=True) for trial in control],
            },
        }
    return Results.model_validate(values, strict=False)


def difference_of(ours: Sequence[Trial], theirs: Sequence[Trial], metric: Metric) -> Difference | None:
    """Return the difference on the test parts; None where folds and seeds differ or a trial lacks the metric."""
    pairs = {(trial.fold, trial.seed): trial.test.get(metric) for trial in theirs}
    scores = [(trial.test.get(metric), pairs.get((trial.fold, trial.seed))) for trial in ours]
    known = [(mine, other) for mine, other in scores if mine is not None and other is not None]
    if len(known) != len(ours) or len(pairs) != len(ours):
        return None
    mine, other = zip(*known, strict=True)
    return Difference.model_validate(paired_difference(mine, other, [trial.fold for trial in ours]))


def table(results: Results) -> str:
    """Return the end of a run's output: test scores beside those of the baselines, and what pretraining bought."""
    control = results.baselines.random_encoder
    rows: dict[str, Scores[MeanStd]] = {"this encoder": results.test}
    if control is not None:
        rows["random encoder"] = control
    rows |= {"TF-IDF": results.baselines.tfidf, "majority class": results.baselines.majority}
    lines = [f"{'test':16}" + "".join(f"{name:>16}" for name in COLUMNS)]
    lines += [
        f"{name:16}" + "".join(f"{_shown(scores.get(column)):>16}" for column in COLUMNS)
        for name, scores in rows.items()
    ]
    lines.append(f"mean ± standard deviation over {count_trials(results.trials)}; baselines over the folds")
    if control is not None:
        known = "" if control.difference.low is None else ", 95 % interval in brackets"
        lines.append(f"this encoder - random encoder, {results.metric}: {control.difference}{known}")
    return "\n".join(lines)


def count_trials(trials: Sequence[Trial]) -> str:
    """Return how many trials there are, such as `15 trials (5 folds, 3 seeds)`."""

    def plural(number: int, noun: str) -> str:
        return f"{number} {noun}{'s' if number != 1 else ''}"

    folds, seeds = len({trial.fold for trial in trials}), len({trial.seed for trial in trials})
    return f"{plural(len(trials), 'trial')} ({plural(folds, 'fold')}, {plural(seeds, 'seed')})"


def _over(trials: Sequence[Trial], part: str) -> dict[str, dict[str, float] | None]:
    return summary([getattr(trial, part).model_dump(exclude_unset=True) for trial in trials])


def _shown(score: MeanStd | None) -> str:
    return "-" if score is None else str(score)
