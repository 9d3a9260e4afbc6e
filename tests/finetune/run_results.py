"""Results of fine-tuning runs, made up for tests."""

from collections.abc import Sequence
from typing import Any

from finetune.evaluation.metrics import Metric
from finetune.evaluation.results import Baselines, Results, TrialScores, compared, control_of, over_trials

NAMES: tuple[Metric, ...] = ("accuracy", "f1", "f1_macro", "f1_weighted", "mcc", "precision", "recall", "roc_auc")


def every(value: float, *, roc_auc: float | None = 0.75) -> dict[Metric, float | None]:
    """Return a value for every metric but the loss."""
    return {**dict.fromkeys(NAMES, value), "roc_auc": roc_auc}


def trials(values: Sequence[float], seeds: int = 1, *, roc_auc: float | None = 0.75) -> list[TrialScores]:
    """Return trials of as many folds as the seeds leave, with these values on the test part."""
    made = [
        {
            "fold": number // seeds,
            "seed": number % seeds,
            "validation": {**every(value + 0.01, roc_auc=roc_auc), "loss": 0.5},
            "test": {**every(value, roc_auc=roc_auc), "loss": 1 - value},
            "epochs": 3.0,
            "seconds": 12.5,
            "weights_sha256": f"{number:064x}",
        }
        for number, value in enumerate(values)
    ]
    return [TrialScores.model_validate(values) for values in made]


def results(
    values: Sequence[float],
    seeds: int = 1,
    control: Sequence[float] = (),
    *,
    roc_auc: float | None = 0.75,
    **changes: Any,
) -> Results:
    """Return the results of a run on two folds whose trials have these values on the test part."""
    made = trials(values, seeds, roc_auc=roc_auc)
    baselines = Baselines(
        majority=over_trials([every(0.5, roc_auc=roc_auc), every(0.6, roc_auc=roc_auc)]),
        tfidf=compared(made, dict.fromkeys({one.fold for one in made}, every(0.8, roc_auc=roc_auc)), "accuracy"),
    )
    if control:
        random_encoder = control_of(made, trials(control, seeds), "accuracy")
        baselines = baselines.model_copy(update={"random_encoder": random_encoder})
    fields: dict[str, Any] = {
        "name": "disaster_tweets",
        "head": "cnn",
        "classes": ["calm", "disaster"],
        "metric": "accuracy",
        "parameters": {"all": 4_000_000, "trained": 4_000_000},
        "data": {"train": 4000, "validation": 800, "test": 1200, "counts": {"duplicates": 12}},
        "validation": over_trials([trial.validation.measured() for trial in made if trial.validation]),
        "test": over_trials([trial.test.measured() for trial in made]),
        "trials": made,
        "baselines": baselines,
    }
    return Results.model_validate(fields | changes, strict=False)
