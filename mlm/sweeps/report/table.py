"""The table of a sweep: a row for each trial, in the order of their numbers."""

from pathlib import Path

import pandas

from configs import UserError
from mlm.sweeps.arms import Arm, cell
from mlm.sweeps.config import SweepConfig
from mlm.sweeps.trials import Sweep

ABOUT = ("trial", "stage", "seed", "state")
"""The columns before those of the searched settings."""
_TIMES = ("seconds", "tokens_per_second")
"""Ends of the names of the columns that differ whenever a sweep is repeated; they come last."""
_LEFT_OUT = ("baselines.", "data.", "dropped.", "parameters.", "heldout_at_start.", "pairs.paradigms.")


def settings_of(config: SweepConfig) -> list[str]:
    """Return the searched settings of all stages."""
    return list(dict.fromkeys([*config.search, *(key for stage in config.stages for key in stage.search)]))


def cells(arm: Arm) -> dict[str, str]:
    """Return the values of an arm as they stand in the table."""
    return {key: cell(value) for key, value in arm.items()}


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
    return _whole(pandas.DataFrame(rows, columns=[*ABOUT, *settings, *others, *sorted(times)]), settings)


def _whole(frame: pandas.DataFrame, settings: list[str]) -> pandas.DataFrame:
    """Return the table with whole numbers where a column has no others: a trial without a result makes them none."""
    for name in frame.columns.drop(["state", *settings]):
        if (frame[name].dropna() % 1 == 0).all():
            frame[name] = frame[name].astype("Int64")
    return frame


def write(frame: pandas.DataFrame) -> str:
    """Return the table as CSV, with all digits: paired differences may be small beside the values."""
    text: str = frame.to_csv(index=False, lineterminator="\n")
    return text


def read(path: Path, config: SweepConfig) -> pandas.DataFrame:
    """Return the table in a CSV file; a UserError if it is not one of the sweep."""
    settings = settings_of(config)
    try:
        frame = pandas.read_csv(path, dtype=str, keep_default_na=False)  # null and NA are values of settings
        for name in frame.columns:
            cells = frame[name].where(frame[name] != "")
            frame[name] = cells if name in ("state", *settings) else pandas.to_numeric(cells)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({error}): name a results.csv of python -m mlm.report") from error
    for name in (*ABOUT, *settings):
        if name not in frame.columns:
            raise UserError(f"{path} has no column {name}: it is no table of the sweep {config.name}")
    if frame.empty or frame[[*ABOUT]].isna().to_numpy().any():
        raise UserError(f"{path} has no trials, or one without its number, stage, seed or state")
    return _whole(frame, settings)
