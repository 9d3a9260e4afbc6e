"""The report of a sweep: tables, plots, the best configuration, and all trials for TensorBoard."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas

from configs import UserError, changed, listed
from configs.files import write_text
from mlm.checkpoint import checkpoint
from mlm.sweeps import arms
from mlm.sweeps.report import plots, table
from mlm.sweeps.report.text import tables
from mlm.sweeps.trials import Sweep, TrialRecord, evaluations

FOLDER, CSV, TEXT, BEST, BOARD = "report", "results.csv", "report.md", "best.yaml", "tensorboard"


def report(sweep: Sweep) -> str:
    """Write the report of a sweep, as far as it is, into its folder; return its tables as text.

    Raise a UserError if no trial is finished.
    """
    config, records, folder = sweep.config, sweep.records(), sweep.path / FOLDER
    finished = [record for record in records if record.results.get(config.metric) is not None]
    if not finished:
        states = listed(f"{one.trial.name} {one.state}" for one in records) or "none"
        written = listed(dict.fromkeys(name for one in records for name in one.results), 40) or "none"
        raise UserError(
            f"{sweep.path} has no finished trial with {config.metric} yet (trials: {states}; metrics: {written})"
        )
    frame = table.frame_of(sweep)
    folder.mkdir(exist_ok=True)
    write_text(folder / CSV, table.write(frame))
    write_text(folder / BEST, _best(sweep, finished))
    text = "\n".join([*_head(sweep, records), "", tables(frame, config), *_baselines(sweep, finished)])
    text = "\n".join([text, *_failures(sweep, records)])
    write_text(folder / TEXT, f"{text}\n")
    for old in folder.glob("*.png"):
        old.unlink()
    plots.draw_settings(frame, config, folder)
    plots.draw_parallel(frame, config, folder / "parallel_coordinates.png")
    if curves := _curves(records, sweep.ranked(config.metric, config.mode)):
        plots.draw_curves(curves, folder / "learning_curves.png")
    _write_hparams(frame, sweep, folder / BOARD)
    return text


def _head(sweep: Sweep, records: list[TrialRecord]) -> Iterator[str]:
    counts = pandas.Series([record.state for record in records]).value_counts()
    yield f"# {sweep.config.name}"
    yield ""
    yield (
        f"{len(records)} trials of {sweep.config.command}: "
        + ", ".join(f"{n} {state}" for state, n in counts.items())
        + "."
    )


def _baselines(sweep: Sweep, finished: list[TrialRecord]) -> Iterator[str]:
    """Yield the means of the runs' baselines, by the swept metric, or by the loss if they have no such number."""
    part, _, measure = sweep.config.metric.rpartition(".")
    found = pandas.DataFrame([record.results for record in finished])
    for name in (measure, "loss"):
        known = [column for column in found if re.fullmatch(rf"baselines\.\w+\.{re.escape(name)}", str(column))]
        if known and f"{part}.{name}" in found and part in ("heldout", "test"):
            means = [f"{str(column).split('.')[1]} {found[column].mean():.4g}" for column in known]
            yield f"\nBaselines of {part}.{name}: {', '.join(means)}; the trials: {found[f'{part}.{name}'].mean():.4g}."
            return


def _failures(sweep: Sweep, records: list[TrialRecord]) -> Iterator[str]:
    failed = [record for record in records if record.state == "failed"]
    if failed:
        yield "\n## Failed trials"
    for record in failed:
        arm = arms.label(record.trial.arm)
        yield f"\nTrial {record.trial.name} ({arm}, seed {record.trial.seed}):"
        yield f"\n```\n{record.last_lines.rstrip()}\n```"


def _best(sweep: Sweep, finished: list[TrialRecord]) -> str:
    """Return the configuration of the best arm's first trial as a recipe."""
    best = arms.key_of(sweep.ranked(sweep.config.metric, sweep.config.mode)[0])
    record = next(one for one in finished if arms.key_of(one.trial.arm) == best)
    assert record.run is not None
    head = f"# The best arm of the sweep {sweep.config.name} by {sweep.config.metric}: {arms.label(record.trial.arm)}."
    command = f"#\n#   python -m {sweep.config.command} {sweep.path / FOLDER / BEST}\n#\n"
    text = changed(record.run / checkpoint.CONFIG, name=f"{sweep.config.name}-best", runs="runs")
    return f"{head}\n{command}{text}"


def _curves(records: list[TrialRecord], order: list[arms.Arm]) -> dict[str, list[plots.Curve]]:
    """Return the held-out losses of each arm's runs, the best arm first."""
    curves: dict[str, list[plots.Curve]] = {arms.key_of(arm): [] for arm in order}
    for record in records:
        if record.run is None or arms.key_of(record.trial.arm) not in curves:
            continue
        curve = [(one["step"], one["loss"]) for one in evaluations(record.run) if one.get("loss") is not None]
        if len(curve) > 1:
            curves[arms.key_of(record.trial.arm)].append(curve)
    return {arms.label(json.loads(key)): several for key, several in curves.items() if several}


def _write_hparams(frame: pandas.DataFrame, sweep: Sweep, folder: Path) -> None:
    """Write each finished trial as a run of TensorBoard's HParams."""
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    shutil.rmtree(folder, ignore_errors=True)
    settings, metric = table.settings_of(sweep.config), sweep.config.metric
    for row in frame.dropna(subset=[metric]).to_dict("records"):
        values: Mapping[str, Any] = {name: _number(row[name]) for name in settings if isinstance(row[name], str)}
        found = hparams({**values, "seed": row["seed"]}, {metric: row[metric]})  # type: ignore[no-untyped-call]
        with SummaryWriter(str(folder / f"{row['trial']:04}")) as writer:
            for one in found:
                writer.file_writer.add_summary(one)
            writer.add_scalar(metric, row[metric])


def _number(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value
