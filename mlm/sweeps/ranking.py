"""The order of the arms by their results so far."""

import statistics
from collections.abc import Sequence

from mlm.sweeps import arms
from mlm.sweeps.arms import Arm
from mlm.sweeps.config import Mode
from mlm.sweeps.trials import TrialRecord


def ranked(records: Sequence[TrialRecord], metric: str, mode: Mode) -> list[Arm]:
    """Return the arms that have results, the best first, by the mean of a metric over their seeds.

    Arms with fewer results come last: a mean over the lucky seeds alone says nothing.
    """
    values: dict[str, list[float]] = {}
    by_key = {arms.key_of(record.trial.arm): record.trial.arm for record in records}
    for record in records:
        if (value := record.results.get(metric)) is not None:
            values.setdefault(arms.key_of(record.trial.arm), []).append(value)
    sign = 1 if mode == "min" else -1
    return [
        by_key[key] for key in sorted(values, key=lambda key: (-len(values[key]), sign * statistics.fmean(values[key])))
    ]
