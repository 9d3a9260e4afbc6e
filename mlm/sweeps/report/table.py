"""The table of a sweep: a row for each trial, in the order of their numbers."""

import io
from pathlib import Path

import pandas

from configs import UserError
from mlm.sweeps.arms import Arm, is_overrides, text_of
from mlm.sweeps.config import SweepConfig
from mlm.sweeps.trials import Sweep

ABOUT = ("trial", "stage", "seed", "state")
"""The columns before those of the searched settings."""
_TIMES = ("seconds", "tokens_per_second")
"""Ends of the names of the columns that differ whenever a sweep is repeated; they come last."""
_LEFT_OUT = ("baselines.", "data.", "dropped.", "parameters.", "heldout_at_start.")


def settings_of(config: SweepConfig) -> list[str]:
    """Return the searched settings of all stages."""
    return list(dict.fromkeys([*config.search, *(key for stage in config.stages for key in stage.search)]))


def cells(arm: Arm) -> dict[str, str]:
    """Return the values of an arm as they stand in the table."""
    return {key: " ".join(value) if is_overrides(value) else text_of(value) for key, value in arm.items()}


def frame_of(sweep: Sweep) -> pandas.DataFrame:
    """Return the table of a sweep as far as it is; a trial that is not finished has no results."""
    rows: list[dict[str, object]] = []
    for record in sweep.records():
        about = (record.trial.number, record.trial.stage, record.trial.seed, record.state)
        results = {name: value for name, value in record.results.items() if not name.startswith(_LEFT_OUT)}
        rows.append({**dict(zip(ABOUT, about, strict=True)), **cells(record.trial.arm), **results})
    settings = settings_of(sweep.config)
    names = dict.fromkeys(name for row in rows for name in row)
    measured = [name for name in names if name not in (*ABOUT, *settings)]
    times = [name for name in measured if name.endswith(_TIMES)]
    others = sorted(name for name in measured if name not in times)
    return pandas.DataFrame(rows, columns=[*ABOUT, *settings, *others, *sorted(times)])


def write(frame: pandas.DataFrame) -> str:
    """Return the table as CSV: six digits tell all that seeds leave sure."""
    text: str = frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    return text


def read(path: Path, config: SweepConfig) -> pandas.DataFrame:
    """Return the table in a CSV file; a UserError if it is not one of the sweep."""
    settings = settings_of(config)
    try:
        text = path.read_text(encoding="utf-8")
        frame = pandas.read_csv(io.StringIO(text), dtype=dict.fromkeys(settings, str), keep_default_na=True)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({error}): name a results.csv of python -m mlm.report") from error
    for name in (*ABOUT, *settings):
        if name not in frame.columns:
            raise UserError(f"{path} has no column {name}: it is no table of the sweep {config.name}")
    return frame
