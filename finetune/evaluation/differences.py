"""Paired differences of scores, with the intervals that folds, seeds and test examples leave."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from configs import Config

GROUPS = 50
"""Groups of test examples that the jackknife leaves out."""
ROUNDING = 1e-12
"""Differences between scores that are equal but for rounding."""

Score = Callable[[NDArray[Any], NDArray[np.float64]], float | None]
"""From the labels, (N,), and the predictions, (N, C), to a metric; None where it cannot be measured."""


class Difference(Config):
    """Ours minus theirs over paired trials; see `paired_difference`."""

    mean: float
    low: float | None
    """Lower bound of the 95 % interval; it and the upper one are null where a single trial or equal ones leave none."""
    high: float | None
    pairs: int = Field(gt=0)
    freedom: float | None = None
    """Degrees of freedom of the interval; without one there are none, nor in older files."""

    def __str__(self) -> str:
        """Return `+0.021 (+0.010 to +0.032)`."""
        if self.low is None or self.high is None:
            return f"{self.mean:+.3f}"
        return f"{self.mean:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


def paired_difference(
    ours: Sequence[float], theirs: Sequence[float], folds: Sequence[int], sampling_error: float = 0.0
) -> Difference:
    """Return the mean of ours - theirs over paired trials with its 95 % t interval.

    The seeds of a fold share its test examples, so they are not independent: as 15 observations, 5 folds x 3 seeds
    would count the luck of each test part three times, and the interval would be too narrow. With several folds, the
    seeds of each are averaged first, and the interval is over the folds. (Folds share most of their training examples,
    which no t interval takes into account; Bengio & Grandvalet 2004.) With a single fold it is over its seeds, and says
    nothing about other test examples, unless `sampling_error` does: the standard error that `jackknife_error` gives for
    their choice, whose square is added to the variance of the mean. A single observation and equal ones have no
    interval.
    """
    differences = np.subtract(ours, theirs, dtype=np.float64)
    groups = np.asarray(folds)
    if len(differences) != len(groups) or not len(differences):
        raise ValueError(f"{len(differences)} differences and {len(groups)} folds: each trial has one of each")
    if len(set(folds)) > 1:
        differences = np.array([differences[groups == fold].mean() for fold in sorted(set(folds))])
    mean, observations = float(differences.mean()), len(differences)
    if observations == 1 or (np.ptp(differences) < ROUNDING and sampling_error < ROUNDING):
        return Difference(mean=mean, low=None, high=None, pairs=len(ours))
    variances = (float(differences.var(ddof=1)) / observations, observations - 1), (sampling_error**2, GROUPS - 1)
    return _with_interval(mean, variances, pairs=len(ours))


def mean_difference(differences: Sequence[Difference]) -> Difference:
    """Return the mean of independent differences; where one has no interval, the mean has none."""
    from scipy import stats

    mean, pairs = statistics.fmean(one.mean for one in differences), sum(one.pairs for one in differences)
    known = [(one.high - one.mean, one.freedom) for one in differences if one.high is not None and one.freedom]
    if len(known) < len(differences):
        return Difference(mean=mean, low=None, high=None, pairs=pairs)
    errors = [(reach / float(stats.t.ppf(0.975, freedom)) / len(known), freedom) for reach, freedom in known]
    return _with_interval(mean, [(error**2, freedom) for error, freedom in errors], pairs=pairs)


def _with_interval(mean: float, variances: Sequence[tuple[float, float]], *, pairs: int) -> Difference:
    """Return a difference whose error has the sum of variances, each with its degrees of freedom (Welch 1947)."""
    from scipy import stats

    total = sum(variance for variance, _ in variances)
    spread = sum(variance**2 / freedom for variance, freedom in variances)
    freedom = total**2 / spread if spread else min(freedom for _, freedom in variances)
    reach = float(stats.t.ppf(0.975, freedom)) * math.sqrt(total)
    return Difference(mean=mean, low=mean - reach, high=mean + reach, pairs=pairs, freedom=freedom)


def jackknife_error(
    labels_N: NDArray[Any], ours: Sequence[NDArray[np.float64]], theirs: Sequence[NDArray[np.float64]], score: Score
) -> float:
    """Return the standard error of the difference of mean scores by the choice of the test examples.

    The predictions, (N, C), are of the same examples. Each of 50 random groups of them is left out once (Efron &
    Tibshirani 1993, chapter 11); one without which nothing can be measured is passed over.
    """
    groups_N = np.random.default_rng(0).permutation(len(labels_N)) % GROUPS

    def difference(kept_N: NDArray[np.bool_]) -> float | None:
        sides = [[score(labels_N[kept_N], one[kept_N]) for one in side] for side in (ours, theirs)]
        means = [
            statistics.fmean(value for value in values if value is not None) for values in sides if None not in values
        ]
        return means[0] - means[1] if len(means) == 2 else None

    groups = min(GROUPS, len(labels_N))
    known = [one for group in range(groups) if (one := difference(groups_N != group)) is not None]
    return math.sqrt((groups - 1) * statistics.pvariance(known)) if known else 0.0
