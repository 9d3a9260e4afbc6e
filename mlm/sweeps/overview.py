"""The state of a sweep's trials as a table, seen from outside."""

import statistics
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from mlm.checkpoint import checkpoint
from mlm.sweeps import arms
from mlm.sweeps.trials import CONFIG, Sweep, TrialRecord
from mlm.tracking import run_directory


def overview(sweep: Sweep) -> dict[str, Any]:
    """Return the state of a sweep and of its trials."""
    records, config, dropped = sweep.records(), sweep.config, sweep.dropped()
    to_come = [record for record in records if record.trial.number not in dropped]
    best = sweep.ranked(config.metric, config.mode)[:1]
    return {
        "state": "running" if run_directory.owner(sweep.path) else "stopped" if _left(to_come) else "finished",
        "owner": run_directory.owner(sweep.path),
        "metric": config.metric,
        "best": dict(best[0]) if best else None,
        "seconds_left": _seconds_left(to_come, config.trials_at_once),
        "trials": [
            {
                "trial": record.trial.number,
                "arm": arms.label(record.trial.arm),
                "seed": record.trial.seed,
                "state": "dropped" if record.trial.number in dropped else record.state,
                "progress": record.progress,
                "result": record.results.get(config.metric),
            }
            for record in records
        ],
    }


def lines(path: Path, found: dict[str, Any]) -> Iterator[str]:
    """Yield the state of a sweep as text."""
    seconds, is_finished = found["seconds_left"], found["state"] == "finished"
    left = "" if seconds is None or is_finished else f", about {timedelta(seconds=round(seconds))} left"
    done = sum(one["state"] == "finished" for one in found["trials"])
    yield f"{path}: {found['state']}, {done} of {len(found['trials'])} trials finished{left}"
    yield f"  {'trial':>5} {'seed':>5} {'state':10} {'done':>5} {found['metric']:>24}  arm"
    for one in found["trials"]:
        result = "-" if one["result"] is None else f"{one['result']:.4f}"
        numbers = f"{one['trial']:>5} {one['seed']:>5} {one['state']:10} {one['progress']:>5.0%} {result:>24}"
        yield f"  {numbers}  {one['arm']}"
    if found["best"]:
        yield f"  best so far: {arms.label(found['best'])}"
    if found["state"] == "stopped":
        yield f"  go on: python -m mlm.sweep {path / CONFIG}"


def _left(records: Sequence[TrialRecord]) -> float:
    """Return the number of trials to come, unfinished ones by the share that is missing."""
    return sum(1 - record.progress for record in records if record.state not in ("finished", "failed"))


def _seconds_left(records: Sequence[TrialRecord], trials_at_once: int) -> float | None:
    """Return an estimate from the duration of the finished trials; None without any."""
    durations = [
        (run / run_directory.RESULTS).stat().st_mtime - (run / checkpoint.CONFIG).stat().st_mtime
        for record in records
        if record.state == "finished" and (run := record.run)
    ]
    return statistics.median(durations) * _left(records) / trials_at_once if durations else None
