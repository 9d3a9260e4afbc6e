"""Statistics over seeds: intervals, paired differences and the verdict.

All intervals are of Student's t at 95 %. Trials are paired by their seeds, which fix the masks, the held-out text and
the order of the data, so a paired difference is surer than the difference of two means.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import pandas
from scipy import stats

from configs import UserError, listed
from mlm.sweeps.arms import Arm
from mlm.sweeps.config import SweepConfig
from mlm.sweeps.report.table import cells, settings_of

_LEVEL = 0.95
_ROUNDING = 1e-9
"""Relative scatter of values that are equal but for rounding."""
Verdict = Literal["confirmed", "refuted", "undecided"]


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval, which a single value or equal ones do not have."""

    mean: float
    std: float | None
    """Standard deviation of the values (n - 1)."""
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True)
class ArmSummary:
    """One arm of a stage: its metric over the seeds, and its difference to the baseline over common seeds."""

    stage: int
    arm: Mapping[str, str]
    """The values of its settings as text."""
    trials: int
    """Number of its trials, unfinished and failed ones too."""
    metric: Estimate | None
    """None while no trial is finished."""
    difference: Estimate | None = None
    """Arm minus baseline; None for the baseline, and without common seeds."""
    p_value: float | None = None
    """Of the paired t test against no difference, corrected by Holm; None without an interval."""


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of values with its interval."""
    count, mean = len(values), math.fsum(values) / len(values)
    if count < 2:
        return Estimate(mean, None, None, None, count)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    if std <= _ROUNDING * abs(mean):  # equal values have no interval
        return Estimate(mean, 0.0, None, None, count)
    half = float(stats.t.ppf((1 + _LEVEL) / 2, count - 1)) * std / math.sqrt(count)
    return Estimate(mean, std, mean - half, mean + half, count)


def p_value(values: Sequence[float]) -> float | None:
    """Return the two-sided probability of such a mean of differences if there were none; None without scatter."""
    found = estimate(values) if values else None
    if found is None or found.std is None:
        return None
    if found.std == 0:  # no scatter to compare with
        return 1.0 if found.mean == 0 else None
    return float(2 * stats.t.sf(abs(found.mean) / found.std * math.sqrt(found.count), found.count - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected for their number (Holm 1979): the chance of one false finding stays at its level."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(p_values[place] * (len(p_values) - rank), 1.0))
        corrected[place] = largest
    return corrected


def summarize(frame: pandas.DataFrame, config: SweepConfig) -> list[ArmSummary]:
    """Return the arms of all stages in the order of their trials."""
    by_arm = _values_by_arm(frame, config)
    reference = _find(by_arm, config.baseline, "baseline", config)
    primary = _primary(by_arm, config)
    found: list[ArmSummary] = []
    for (stage, key), (trials, values) in by_arm.items():
        differences = [] if reference in (None, (stage, key)) else _paired(values, by_arm[reference][1])
        found.append(
            ArmSummary(
                stage,
                dict(key),
                trials,
                estimate(list(values.values())) if values else None,
                estimate(differences) if differences else None,
                p_value(differences),
            )
        )
    others = [n for n, one in enumerate(found) if one.p_value is not None and (one.stage, _key(one.arm)) not in primary]
    for place, corrected in zip(others, holm([found[n].p_value or 0.0 for n in others]), strict=True):
        found[place] = replace(found[place], p_value=corrected)
    return found


def judge(frame: pandas.DataFrame, config: SweepConfig) -> tuple[Verdict, Estimate] | None:
    """Return the verdict on the hypothesis, with the difference better minus than; None if it cannot be given yet."""
    if config.hypothesis is None:
        return None
    by_arm = _values_by_arm(frame, config)
    better = _find(by_arm, config.hypothesis.better, "hypothesis.better", config)
    than = _find(by_arm, config.hypothesis.than, "hypothesis.than", config)
    differences = _paired(by_arm[better][1], by_arm[than][1]) if better and than else []
    if not differences:
        return None
    found = estimate(differences)
    if found.low is None or found.high is None:
        return "undecided", found
    is_less, is_more = found.high < 0, found.low > 0
    if not is_less and not is_more:
        return "undecided", found
    return ("confirmed" if is_less == (config.mode == "min") else "refuted"), found


_Key = tuple[tuple[str, str], ...]
_ByArm = dict[tuple[int, _Key], tuple[int, dict[int, float]]]
"""For each stage and arm: the number of its trials, and its results by seed."""


def _key(arm: Mapping[str, str]) -> _Key:
    return tuple(arm.items())


def _values_by_arm(frame: pandas.DataFrame, config: SweepConfig) -> _ByArm:
    if config.metric not in frame.columns:
        raise UserError(f"no trial has the metric {config.metric} yet")
    found: _ByArm = {}
    settings = settings_of(config)
    for row in frame.to_dict("records"):
        key = tuple((name, row[name]) for name in settings if isinstance(row[name], str))
        trials, values = found.get((row["stage"], key), (0, {}))
        if row["state"] == "finished" and not pandas.isna(row[config.metric]):
            values[row["seed"]] = row[config.metric]
        found[row["stage"], key] = trials + 1, values
    return found


def _primary(by_arm: _ByArm, config: SweepConfig) -> set[tuple[int, _Key]]:
    """Return the arm whose comparison with the baseline is the hypothesis, which needs no correction."""
    if config.hypothesis is None or config.baseline is None:
        return set()
    pair = [_find(by_arm, arm, "hypothesis", config) for arm in (config.hypothesis.better, config.hypothesis.than)]
    reference = _find(by_arm, config.baseline, "baseline", config)
    return {one for one in pair if one is not None and one != reference} if reference in pair else set()


def _find(by_arm: _ByArm, arm: Arm | None, name: str, config: SweepConfig) -> tuple[int, _Key] | None:
    """Return the stage and the key of an arm; None for none, and for one of a later stage that is not there yet."""
    if arm is None:
        return None
    wanted = cells(arm)
    for stage, key in by_arm:
        if dict(key) == wanted:
            return stage, key
    if set(wanted) - set(config.search):
        return None
    there = listed((", ".join(f"{k}={v}" for k, v in key) for _, key in by_arm), 12)
    raise UserError(f"{name} of the sweep {config.name} is no arm; there are: {there}")


def _paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    return [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
