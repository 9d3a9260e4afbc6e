import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas
import pytest
from scipy import stats

from configs import UserError
from mlm.sweeps.config import SweepConfig
from mlm.sweeps.report.statistics import estimate, holm, judge, p_value, summarize
from mlm.sweeps.report.text import tables

METRIC = "heldout.loss"


def config_of(**settings: object) -> SweepConfig:
    return SweepConfig.model_validate(
        {"search": {"a": ["x", "y", "z"]}, "seeds": [0, 1, 2], "metric": METRIC, **settings}, strict=False
    )


def frame_of(results: Mapping[str, Sequence[float | None]]) -> pandas.DataFrame:
    """Return the table of trials by arm and seed; None: the trial failed."""
    rows = [
        {"stage": 0, "seed": seed, "state": "failed" if value is None else "finished", "a": arm, METRIC: value}
        for arm, values in results.items()
        for seed, value in enumerate(values)
    ]
    frame = pandas.DataFrame(rows)
    frame.insert(0, "trial", range(len(frame)))
    return frame.astype({METRIC: float})


def test_a_finished_trial_that_could_not_be_measured_is_left_out_of_whole_numbers_too() -> None:
    frame = frame_of({"x": [1.0, 1.0, 1.0]}).astype({METRIC: "Int64"})
    frame.loc[1, METRIC] = pandas.NA
    (found,) = summarize(frame, config_of())
    assert found.metric is not None
    assert (found.metric.count, found.metric.mean) == (2, 1.0)


@pytest.mark.parametrize("count", [2, 3, 5, 30])
def test_the_interval_of_a_mean_is_students(count: int) -> None:
    values = np.random.default_rng(count).normal(3, 2, count)
    found = estimate(list(values))
    low, high = stats.t.interval(0.95, count - 1, values.mean(), stats.sem(values))
    assert found.count == count
    assert [found.mean, found.std] == pytest.approx([values.mean(), values.std(ddof=1)])
    assert [found.low, found.high] == pytest.approx([low, high])


def test_a_single_value_has_no_interval() -> None:
    found = estimate([2.5])
    assert (found.mean, found.std, found.low, found.high) == (2.5, None, None, None)
    assert p_value([1.0]) is None
    text = tables(frame_of({"x": [1.0], "y": [2.0]}), config_of(baseline={"a": "x"}))
    assert "| x | 1 of 1 | 1 | one seed |" in text
    assert "| y | 1 of 1 | 2 | one seed | +1 (one seed) | - |" in text


def test_equal_differences_have_no_scatter_to_compare_with() -> None:
    assert p_value([0.0, 0.0]) == 1.0
    assert p_value([0.5, 0.5]) is None


def test_holm_corrects_for_the_number_of_comparisons() -> None:
    # Of 0.01, 0.04, 0.03, 0.005 (Holm 1979): 4 x 0.005, 3 x 0.01, 2 x 0.03, and 0.04, which may not be below 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_differences_to_the_baseline_are_paired_by_seed() -> None:
    luck = [0.0, 5.0, -3.0, 8.0]
    results: dict[str, Sequence[float | None]] = {
        "x": [10 + one for one in luck],
        "y": [9.5 + one + off for one, off in zip(luck, (0.01, -0.01, 0.02, 0.0), strict=True)],
        "z": [10 + luck[0], None, 10 + luck[2], 10 + luck[3]],
    }
    x, y, z = summarize(frame_of(results), config_of(baseline={"a": "x"}))
    assert x.difference is None
    assert y.difference is not None
    assert z.difference is not None
    assert y.difference.mean == pytest.approx(-0.495)
    assert y.difference.high is not None
    assert y.difference.high < -0.47  # though the values themselves scatter by 5
    assert (z.difference.mean, z.difference.count, z.trials) == (0.0, 3, 4)
    assert z.p_value == 1.0
    reference = stats.ttest_rel([v for v in results["y"] if v], [v for v in results["x"] if v]).pvalue
    assert y.p_value == pytest.approx(2 * reference)  # of two comparisons


def test_a_baseline_and_a_hypothesis_of_a_later_stage_are_waited_for() -> None:
    take = [{"metric": METRIC, "mode": "min", "count": 1}]
    later = {"a": "x", "b": "1"}
    config = config_of(
        stages=[{"take": take, "search": {"b": ["1", "2"]}}],
        baseline=later,
        hypothesis={"better": {"a": "x", "b": "2"}, "than": later},
    )
    first = frame_of({"x": [1.0, 2.0, 3.0], "y": [2.0, 2.5, 3.5]}).assign(b=None)
    assert [one.difference for one in summarize(first, config)] == [None, None]
    assert judge(first, config) is None
    second = (
        frame_of({"x": [1.0, 1.5, 3.0]}).assign(stage=1, b="1"),
        frame_of({"x": [0.5, 0.8, 2.6]}).assign(stage=1, b="2"),
    )
    found = summarize(pandas.concat([first, *second], ignore_index=True), config)
    assert found[3].difference is not None
    assert found[3].difference.mean == pytest.approx(-1.6 / 3)


def test_the_hypothesis_is_the_one_comparison_without_a_correction() -> None:
    results = {"x": [1.0, 2.0, 3.0], "y": [0.9, 1.7, 2.9], "z": [0.7, 1.9, 2.8]}
    hypothesis = {"better": {"a": "y"}, "than": {"a": "x"}}
    _, y, z = summarize(frame_of(results), config_of(baseline={"a": "x"}, hypothesis=hypothesis))
    alone = [float(stats.ttest_rel(results[arm], results["x"]).pvalue) for arm in "yz"]
    assert [y.p_value, z.p_value] == pytest.approx(alone)
    _, y, z = summarize(frame_of(results), config_of(baseline={"a": "x"}))
    assert [y.p_value, z.p_value] == pytest.approx(holm(alone))


@pytest.mark.parametrize(
    ("better", "mode", "verdict"),
    [
        ([0.8, 1.9, 2.8], "min", "confirmed"),
        ([1.2, 2.1, 3.2], "min", "refuted"),
        ([1.2, 2.1, 3.2], "max", "confirmed"),
        ([0.8, 1.9, 2.8], "max", "refuted"),
        ([0.8, 2.1, 3.0], "min", "undecided"),
        ([0.8, None, None], "min", "undecided"),
        ([0.9, 1.9, 2.9], "min", "undecided"),  # always as much less: no scatter to tell an interval by
    ],
)
def test_the_verdict_is_the_side_of_zero_of_the_paired_interval(
    better: Sequence[float | None], mode: str, verdict: str
) -> None:
    hypothesis = {"better": {"a": "y"}, "than": {"a": "x"}}
    metric = {"min": METRIC, "max": "heldout.accuracy"}[mode]
    config = config_of(hypothesis=hypothesis, mode=mode, metric=metric)
    frame = frame_of({"x": [1.0, 2.0, 3.0], "y": better}).rename(columns={METRIC: metric})
    found = judge(frame, config)
    assert found is not None
    assert found[0] == verdict
    text = tables(frame, config)
    assert f"Hypothesis: a=y is better than a=x. **{verdict.capitalize()}" in text


def test_there_is_no_verdict_without_a_common_seed() -> None:
    hypothesis = {"better": {"a": "y"}, "than": {"a": "x"}}
    frame = frame_of({"x": [1.0, None], "y": [None, 1.0]})
    assert judge(frame, config_of(hypothesis=hypothesis)) is None
    assert "No seed is finished in both arms." in tables(frame, config_of(hypothesis=hypothesis))


def test_what_is_missing_is_named() -> None:
    frame = frame_of({"x": [1.0]})
    with pytest.raises(UserError, match=r"no trial has the metric heldout\.bits"):
        summarize(frame, config_of(metric="heldout.bits"))
    with pytest.raises(UserError, match="baseline of the sweep sweep is no arm; there are: a=x"):
        summarize(frame, config_of(baseline={"a": "z"}))
    assert math.isnan(frame_of({"x": [None]})[METRIC][0])
