"""Show the state of a pretraining run (running or not, step, speed, loss, time left, checkpoints), or of a sweep."""

import argparse
import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from configs import UserError, command
from mlm.checkpoint import checkpoint
from mlm.config import RUNS
from mlm.evaluation.results import shown
from mlm.sweeps import overview
from mlm.sweeps.trials import CONFIG, read_sweep
from mlm.tracking import run_directory

EXAMPLES = """
examples:
  python -m mlm.status                    the run that was started last
  python -m mlm.status runs/x runs/y
  python -m mlm.status runs/sweeps/x      the trials of a sweep
  python -m mlm.status runs/x --json | python -m json.tool
  watch python -m mlm.status runs/x       every two seconds
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = command.Parser(prog="python -m mlm.status", description=__doc__, epilog=EXAMPLES)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="a run or a sweep (default: the newest run)")
    parser.add_argument("--json", action="store_true", help="one JSON object a run and line")
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    options = parse(arguments)
    for path in options.runs or [_newest(Path(RUNS))]:
        if (path / CONFIG).is_file():
            state = overview.overview(read_sweep(path))
            command.show(json.dumps(state) if options.json else "\n".join(overview.lines(path, state)))
            continue
        run = checkpoint.run_of(path)
        found = status(run)
        command.show(json.dumps(found) if options.json else "\n".join(_lines(run, found)))


def status(path: Path) -> dict[str, Any]:
    """Return the state of a run; raise a UserError if it is not of pretraining, or its records are damaged."""
    run_directory.config_path(path)  # raises where there is none
    owner = run_directory.owner(path)
    finished = (path / run_directory.RESULTS).exists()
    records = run_directory.newest_records(path / run_directory.METRICS)
    train, heldout = records.get("train", {}), records.get("heldout", {})
    progress, seconds = train.get("progress"), train.get("seconds")
    saved = checkpoint.completed(path)
    origin = run_directory.origin(path)
    return {
        "state": "running" if owner else "converted" if origin else "finished" if finished else "stopped",
        "converted_from": origin,
        "owner": owner,
        "step": train.get("step"),
        "progress": progress,
        "seconds_left": seconds * (1 - progress) / progress if progress and owner else None,
        "tokens_per_second": train.get("tokens_per_second"),
        "loss": train.get("loss"),
        "heldout_loss": heldout.get("loss"),
        "skipped_updates": train.get("skipped_in_all"),
        "checkpoint": str(saved[-1]) if saved else None,
        "checkpoint_written": saved[-1].stat().st_mtime if saved else None,
    }


def _newest(runs: Path) -> Path:
    for path in run_directory.newest_first(runs, run_directory.PRETRAINING):
        if (path / run_directory.METRICS).is_file():
            return path
    raise UserError(f"there is no run of pretraining in {runs}: start one by python -m mlm.pretrain, or name it")


def _lines(path: Path, found: dict[str, Any]) -> list[str]:
    left = "-" if found["seconds_left"] is None else str(timedelta(seconds=round(found["seconds_left"])))
    saved = "none yet"
    if found["checkpoint"] is not None:
        when = datetime.fromtimestamp(found["checkpoint_written"]).astimezone()
        saved = f"{Path(found['checkpoint']).name}, written {when:%Y-%m-%d %H:%M:%S}"
    owner = f" ({found['owner']})" if found["owner"] else ""
    if found["state"] == "converted":
        return [
            f"{path}: converted from {found['converted_from']}",
            f"  checkpoint: {saved}",
            f"  train it further: python -m mlm.pretrain start_from={path}",
        ]
    lines = [
        f"{path}: {found['state']}{owner}",
        f"  step {shown(found['step'], ',')} ({shown(found['progress'], '.1%')}), {left} left,"
        f" {shown(found['tokens_per_second'], ',.0f')} tokens/s",
        f"  loss {shown(found['loss'], '.3f')}, held-out {shown(found['heldout_loss'], '.3f')} nats,"
        f" {found['skipped_updates'] or 0:,} updates skipped",
        f"  checkpoint: {saved}",
    ]
    if found["state"] == "stopped":
        lines.append(f"  resume: python -m mlm.pretrain --resume {path}")
    return lines


script = partial(command.run, main)

if __name__ == "__main__":
    script()
