import numpy as np
import pytest
from numpy.typing import NDArray

from finetune.evaluation.differences import Difference, jackknife_error, mean_difference, paired_difference

T2 = 4.302652729911275
"""Student's t of 2 degrees of freedom at 97.5 %."""


def expected(mean: float, reach: float, pairs: int) -> dict[str, float]:
    return {"mean": mean, "low": mean - reach, "high": mean + reach, "pairs": pairs, "freedom": 2.0}


def test_seeds_of_one_fold_give_the_t_interval_of_their_differences() -> None:
    found = paired_difference([0.81, 0.83, 0.85], [0.80, 0.80, 0.80], [0, 0, 0])
    assert found.model_dump() == pytest.approx(expected(0.03, T2 * 0.02 / 3**0.5, 3))  # 0.01, 0.03 and 0.05


def test_seeds_are_averaged_within_folds_so_that_repeating_them_adds_no_certainty() -> None:
    two_seeds = paired_difference([0.80, 0.82, 0.83, 0.85, 0.87, 0.87], [0.80] * 6, [0, 0, 1, 1, 2, 2])
    reach = T2 * 0.03 / 3**0.5  # folds differ by 0.01, 0.04 and 0.07
    assert two_seeds.model_dump() == pytest.approx(expected(0.04, reach, 6))
    many_seeds = paired_difference([0.81, 0.84, 0.87] * 10, [0.80] * 30, [0, 1, 2] * 10)
    assert many_seeds.model_dump() == pytest.approx(expected(0.04, reach, 30))


@pytest.mark.parametrize("ours", [[0.5], [0.5, 0.75], [0.1 + 0.2 + 0.2, 0.75]])
def test_one_observation_or_equal_ones_have_no_interval(ours: list[float]) -> None:
    found = paired_difference(ours, [value - 0.25 for value in ours], list(range(len(ours))))
    assert found.mean == pytest.approx(0.25)
    assert (found.low, found.high, found.freedom) == (None, None, None)


def test_each_trial_has_one_fold() -> None:
    with pytest.raises(ValueError, match="2 differences and 1 folds"):
        paired_difference([0.5, 0.5], [0.5, 0.5], [0])


def accuracy(labels_N: NDArray[np.int64], predictions_NC: NDArray[np.float64]) -> float:
    return float((predictions_NC.argmax(axis=1) == labels_N).mean())


def test_the_error_of_a_share_by_the_choice_of_examples_is_that_of_independent_draws() -> None:
    """A score per example has the standard error of a mean; groups of equal size leave it as it is."""
    rng = np.random.default_rng(0)
    labels_N = rng.integers(0, 2, 5000)
    ours, theirs = (np.eye(2)[np.where(rng.random(5000) < right, labels_N, 1 - labels_N)] for right in (0.9, 0.7))
    gains_N = (ours.argmax(1) == labels_N).astype(float) - (theirs.argmax(1) == labels_N)
    found = jackknife_error(labels_N, [ours], [theirs], accuracy)
    assert found == pytest.approx(gains_N.std(ddof=1) / 5000**0.5, rel=0.3)  # 50 groups: within 10 %, three times that
    assert jackknife_error(labels_N, [ours, ours], [theirs], accuracy) == pytest.approx(found)
    assert jackknife_error(labels_N[:30], [ours[:30]], [theirs[:30]], accuracy) == pytest.approx(
        gains_N[:30].std(ddof=1) / 30**0.5
    )


def test_a_group_without_which_nothing_can_be_measured_is_passed_over() -> None:
    labels_N = np.array([1] + [0] * 99)
    predicted_NC = np.eye(2)[labels_N]

    def of_both_classes(labels: NDArray[np.int64], predictions: NDArray[np.float64]) -> float | None:
        return accuracy(labels, predictions) if labels.any() else None

    assert jackknife_error(labels_N, [predicted_NC], [1 - predicted_NC], of_both_classes) == 0.0


def test_the_interval_over_seeds_and_examples_covers_the_truth_as_often_as_it_says() -> None:
    """Each draw has its own test examples, on which every seed has an accuracy of its own."""
    rng, covered, draws = np.random.default_rng(0), 0, 300
    truth = 0.05
    for _ in range(draws):
        labels_N = np.zeros(400, np.int64)
        theirs_N = rng.random(400) < 0.3  # wrong, whatever the seed
        rates = 0.25 + rng.normal(0, 0.02, 5)
        ours = [np.eye(2)[(rng.random(400) < rate).astype(int)] for rate in rates]
        theirs = np.eye(2)[theirs_N.astype(int)]
        scores = [accuracy(labels_N, one) for one in ours]
        error = jackknife_error(labels_N, ours, [theirs], accuracy)
        found = paired_difference(scores, [accuracy(labels_N, theirs)] * 5, [0] * 5, error)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= truth <= found.high
    assert 0.93 < covered / draws < 0.985


def test_the_interval_of_the_mean_over_tasks_covers_it_as_often_as_it_says() -> None:
    """Seeds of nine tasks scatter around their true differences, each with its own deviation."""
    rng = np.random.default_rng(0)
    truths, deviations = rng.normal(0, 0.02, 9), rng.uniform(0.002, 0.02, 9)
    covered, draws = 0, 400
    for _ in range(draws):
        drawn = [rng.normal(truth, scale, 3).tolist() for truth, scale in zip(truths, deviations, strict=True)]
        found = mean_difference([paired_difference(values, [0] * 3, [0] * 3) for values in drawn])
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= truths.mean() <= found.high
    assert 0.92 < covered / draws < 0.98
    alone = paired_difference([0.1, 0.2, 0.4], [0] * 3, [0] * 3)
    assert mean_difference([alone]).model_dump() == pytest.approx(alone.model_dump())
    without = Difference(mean=0.1, low=None, high=None, pairs=1)
    assert mean_difference([alone, without]).low is None
