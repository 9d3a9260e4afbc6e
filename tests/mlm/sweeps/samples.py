"""Sweeps without training: folders with runs of chosen results."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlm.sweeps.config import SweepConfig
from mlm.sweeps.report import table
from mlm.sweeps.sweep import first_arms
from mlm.sweeps.trials import Sweep, Trial, opened, read_sweep

Result = Mapping[str, float] | None
"""Held-out numbers of a trial; None: it failed."""


def swept(folder: Path, result: Callable[[Trial], Result], **settings: Any) -> Sweep:
    """Return a sweep with all trials of its first stage run."""
    config = SweepConfig.model_validate({"runs": str(folder), **settings}, strict=False)
    sweep = opened(config)
    sweep.plan(0, first_arms(config))
    for trial in sweep.trials():
        finish(sweep, trial, result(trial))
    return sweep


def finish(sweep: Sweep, trial: Trial, result: Result) -> None:
    if result is None:
        (sweep.path / "failed").mkdir(exist_ok=True)
        (sweep.path / "failed" / f"{trial.name}.txt").write_text("Traceback\nerror: no memory\n")
        return
    run = sweep.path / f"2026-01-01_00-00-00-{trial.name}"
    run.mkdir()
    (run / "config.yaml").write_text(f"name: '{trial.name}'\nruns: x\ntrain:\n  seed: {trial.seed}\n")
    losses = [(0, 9.0), (10, result["loss"])]
    records = [{"side": "heldout", "step": step, "loss": loss, "accuracy": 1 / loss} for step, loss in losses]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    values = {"heldout": dict(result), "steps": 10, "seconds": 1.5, "baselines": {"unigram": {"loss": 7.0}}}
    (run / "results.json").write_text(json.dumps(values))


def csv_of(path: Path) -> str:
    """Return the table of a sweep without its times."""
    frame = table.frame_of(read_sweep(path))
    return table.write(frame[[name for name in frame.columns if not name.endswith(("seconds", "per_second"))]])
