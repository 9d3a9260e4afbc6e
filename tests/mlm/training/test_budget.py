import pytest
from pydantic import ValidationError

from configs import UserError
from mlm.training.budget import (
    Budget,
    Epochs,
    Minutes,
    Steps,
    StepSize,
    Tokens,
    TrainingLength,
    TrainingProgress,
    Words,
)


@pytest.mark.parametrize(
    ("budget", "length"),
    [
        (Steps(steps=7), TrainingLength(steps=7)),
        (Tokens(tokens=1000), TrainingLength(steps=10)),
        (Tokens(tokens=1001), TrainingLength(steps=11)),
        (Words(words=800), TrainingLength(steps=10)),
        (Words(words=801), TrainingLength(steps=11)),
        (Epochs(epochs=2.0), TrainingLength(steps=25)),
        (Epochs(epochs=0.5), TrainingLength(steps=7)),
        (Minutes(minutes=2.0), TrainingLength(seconds=120.0)),
    ],
    ids=str,
)
def test_budgets_become_lengths(budget: Budget, length: TrainingLength) -> None:
    assert budget.training_length(StepSize(steps_per_epoch=12.5, tokens=100.0, words=80.0)) == length


def test_whole_epochs_take_their_whole_steps() -> None:
    for steps in range(1, 500):
        assert Epochs(epochs=3.0).training_length(StepSize(steps)).steps == 3 * steps


def test_the_schedule_is_at_the_middle_of_the_next_step_or_at_the_share_of_the_time() -> None:
    steps = [TrainingProgress(step=step) for step in range(4)]
    assert [TrainingLength(steps=4).next_fraction(one) for one in steps] == [0.125, 0.375, 0.625, 0.875]
    assert [TrainingLength(steps=4).fraction(one) for one in steps] == [0, 0.25, 0.5, 0.75]
    assert [TrainingLength(steps=4).finished(TrainingProgress(step=step)) for step in (0, 3, 4, 5)] == [
        False,
        False,
        True,
        True,
    ]
    times = [TrainingProgress(seconds=seconds) for seconds in (0.0, 30.0, 120.0, 130.0)]
    for fraction in (TrainingLength(seconds=120.0).fraction, TrainingLength(seconds=120.0).next_fraction):
        assert [fraction(time) for time in times] == [0.0, 0.25, 1.0, 1.0]
    assert [TrainingLength(seconds=120.0).finished(time) for time in times] == [False, False, True, True]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Steps, {"steps": 0}),
        (Tokens, {"tokens": -1}),
        (Words, {"words": 0}),
        (Epochs, {"epochs": 0.0}),
        (Minutes, {"minutes": 0.0}),
    ],
)
def test_an_empty_budget_is_refused(kind: type[Budget], settings: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        kind.model_validate(settings)


def test_shards_without_a_number_of_words_are_told() -> None:
    with pytest.raises(UserError, match="some shards do not record their number of words: encode their text again"):
        Words(words=5).training_length(StepSize(steps_per_epoch=10, tokens=5.0))
