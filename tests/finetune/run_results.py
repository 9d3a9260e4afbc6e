"""Results of fine-tuning runs, made up for tests."""

from collections.abc import Sequence
from typing import Any

from finetune.evaluation.results import About, Results, Trial, build

NAMES = ("accuracy", "f1", "f1_macro", "f1_weighted", "mcc", "precision", "recall", "roc_auc")


def about(**changes: Any) -> About:
    values: dict[str, Any] = {
        "name": "disaster_tweets",
        "head": "cnn",
        "classes": ["calm", "disaster"],
        "metric": "accuracy",
        "parameters": {"all": 4_000_000, "trained": 4_000_000},
        "data": {"train": 4000, "validation": 800, "test": 1200, "counts": {"duplicates": 12}},
    }
    return About.model_validate(values | changes, strict=False)


def every(value: float, *, roc_auc: float | None = 0.75) -> dict[str, float | None]:
    """Return a value for every metric but the loss."""
    return dict.fromkeys(NAMES, value) | {"roc_auc": roc_auc}


def trials(values: Sequence[float], seeds: int = 1, *, roc_auc: float | None = 0.75) -> list[Trial]:
    """Return trials of as many folds as the seeds leave, with these values on the test part."""
    made = [
        {
            "fold": number // seeds,
            "seed": number % seeds,
            "validation": every(value + 0.01, roc_auc=roc_auc) | {"loss": 0.5},
            "test": every(value, roc_auc=roc_auc) | {"loss": 1 - value},
            "epochs": 3.0,
            "seconds": 12.5,
            "weights_sha256": f"{number:064x}",
        }
        for number, value in enumerate(values)
    ]
    return [Trial.model_validate(values) for values in made]


def results(values: Sequence[float], seeds: int = 1, control: Sequence[float] = (), **changes: Any) -> Results:
    return build(
        about(**changes),
        trials(values, seeds),
        majority=[every(0.5), every(0.6)],
        tfidf=[every(0.8)],
        control=trials(control, seeds),
    )
