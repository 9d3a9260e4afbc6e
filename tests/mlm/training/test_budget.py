import pytest
from pydantic import ValidationError

from mlm.training.budget import Epochs, Minutes, Steps, Tokens, TrainingLength, TrainingProgress


@pytest.mark.parametrize(
    ("budget", "length"),
    [
        (Steps(steps=7), TrainingLength(steps=7)),
        (Tokens(tokens=1000), TrainingLength(steps=10)),
        (Tokens(tokens=1001), TrainingLength(steps=11)),
        (Epochs(epochs=2.0), TrainingLength(steps=25)),
        (Epochs(epochs=0.5), TrainingLength(steps=7)),
        (Minutes(minutes=2.0), TrainingLength(seconds=120.0)),
    ],
    ids=str,
)
def test_budgets_become_lengths(budget: Steps | Tokens | Epochs | Minutes, length: TrainingLength) -> None:
    assert budget.training_length(tokens_per_step=100.0, steps_per_epoch=12.5) == length


def test_progress_is_at_the_middle_of_the_next_step_or_the_share_of_the_time() -> None:
    assert [TrainingLength(steps=4).fraction(TrainingProgress(step=step)) for step in range(4)] == [
        0.125,
        0.375,
        0.625,
        0.875,
    ]
    assert [TrainingLength(steps=4).finished(TrainingProgress(step=step)) for step in (0, 3, 4, 5)] == [
        False,
        False,
        True,
        True,
    ]
    times = [TrainingProgress(seconds=seconds) for seconds in (0.0, 30.0, 120.0, 130.0)]
    assert [TrainingLength(seconds=120.0).fraction(time) for time in times] == [0.0, 0.25, 1.0, 1.0]
    assert [TrainingLength(seconds=120.0).finished(time) for time in times] == [False, False, True, True]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [(Steps, {"steps": 0}), (Tokens, {"tokens": -1}), (Epochs, {"epochs": 0.0}), (Minutes, {"minutes": 0.0})],
)
def test_an_empty_budget_is_refused(kind: type[Steps | Tokens | Epochs | Minutes], settings: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        kind.model_validate(settings)
