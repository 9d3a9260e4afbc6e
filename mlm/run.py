"""A run's directory: configuration, environment, metrics, curves, results, checkpoints, and who may write to it."""

import fcntl
import json
import math
import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from configs import UserError
from mlm import checkpoint, curves
from mlm.budget import Position
from mlm.loop import Interval
from mlm.optim import Optimiser
from mlm.progress import Progress
from mlm.recipe import Recipe

CHECKPOINTS_KEPT = 2
RECORDED_PACKAGES = ("torch", "numpy", "tokenizers", "datasets", "safetensors", "schedulefree", "pydantic")
RECORDED_IF_INSTALLED = ("scikit-learn", "transformers", "peft")


def create(runs: Path, name: str) -> Path:
    """Make the directory of a new run, named by the time and `name`."""
    runs.mkdir(parents=True, exist_ok=True)
    stem = f"{datetime.now():%Y-%m-%d_%H-%M-%S}-{name}"
    for attempt in range(100):
        path = runs / (stem if attempt == 0 else f"{stem}-{attempt}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise UserError(f"cannot name a new run in {runs}: {stem} and a hundred after it exist")


def newest(runs: Path) -> Path:
    """Return the run that was started last, of those that have a checkpoint.

    Raises:
        UserError: there is none.

    """
    found = {path.parents[2] for path in runs.glob(f"*/checkpoints/step-*/{checkpoint.MANIFEST}")}
    if not found:
        raise UserError(f"there is no run with a checkpoint in {runs}: start one by python -m mlm.pretrain")
    return max(found, key=lambda path: (path / checkpoint.RECIPE).stat().st_mtime_ns)


def lock(path: Path) -> IO[str]:
    """Hold a run's directory until the returned file is closed or this process ends, however it ends.

    Raises:
        UserError: another process holds it.

    """
    file = (path / ".lock").open("a+", errors="replace")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip() or "unknown"
        raise UserError(f"{path} is in use by another process ({owner}): wait for it, or stop it") from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}")
    file.flush()
    return file


def environment(device: torch.device) -> dict[str, Any]:
    """Describe what the run was made with: command, versions, commit and uncommitted changes, device."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False) if shutil.which("git") else None
        return done.stdout if done and done.returncode == 0 else None

    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": [sys.executable, *sys.orig_argv[1:]],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: metadata.version(name) for name in RECORDED_PACKAGES}
        | {one.name: one.version for one in metadata.distributions() if one.name in RECORDED_IF_INSTALLED},
        "git_commit": (git("rev-parse", "HEAD") or "").strip() or None,
        "git_diff": git("diff", "HEAD"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
    }


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file, which is whole at every moment."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(
        json.dumps(finite(values), indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    partial.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that `write_json` wrote.

    Raises:
        UserError: it is missing or damaged.

    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"cannot read {path}: it holds no JSON object")
    return values


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a metrics.jsonl."""
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def keep_records(path: Path, last_step: int) -> None:
    """Drop what a metrics.jsonl holds of the steps after `last_step`; a run that goes on makes these again."""
    kept = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []:
            # A process that was killed may leave half a line at the end.
            if line.endswith("}\n") and json.loads(line)["step"] <= last_step:
                kept.append(line)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} holds a line that is no record ({error}): mend it, or remove the file") from None
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(kept), encoding="utf-8")
    partial.replace(path)


@dataclass(frozen=True)
class Rates:
    """What turns counts into the shares that a log shows."""

    peak_lr: float
    flops_per_token: float
    peak_flops: float
    """Measured matrix-product rate of the machine, FLOP/s."""


class Recorder:
    """Takes down what the training loop reports: metrics.jsonl, TensorBoard, progress, curves and checkpoints."""

    def __init__(
        self,
        path: Path,
        recipe: Recipe,
        tokenizer: Path,
        rates: Rates,
        progress: Progress,
        panel: Callable[[nn.Module], str],
        start: Position,
    ) -> None:
        """Open the records of the run at `path`, cut back to `start`; `panel` makes a text of filled-in blanks."""
        from torch.utils.tensorboard import SummaryWriter

        self.path, self.recipe, self.tokenizer = path, recipe, tokenizer
        self.rates, self.progress, self.panel = rates, progress, panel
        self.heldout: dict[str, float] = {}
        keep_records(path / "metrics.jsonl", start.step)
        self.metrics = (path / "metrics.jsonl").open("a", encoding="utf-8")
        self.board = SummaryWriter(str(path), purge_step=start.step + 1 if start.step else None)

    def log(self, position: Position, interval: Interval) -> None:
        """Take down the training metrics since the last record."""
        targets = max(interval.targets, 1)
        tokens_per_second = interval.tokens / interval.seconds
        record = {
            "loss": interval.sums["loss"].item() / targets,
            "accuracy": interval.sums["correct"].item() / targets,
            "lr": self.rates.peak_lr * interval.rate_factor,
            "gradient_norm": interval.gradient_norm.item(),
            "tokens_per_second": tokens_per_second,
            "mfu": tokens_per_second * self.rates.flops_per_token / self.rates.peak_flops,
            "data_wait_share": interval.waited_seconds / interval.seconds,
            "memory_bytes": _peak_memory(),
            "skipped_updates": int(interval.skipped.item()),
        }
        self._take("train", position, record)
        self.progress.show(position, record["loss"], tokens_per_second, self.heldout.get("loss"))
        if record["skipped_updates"]:
            self.progress.say(
                f"step {position.step}: {record['skipped_updates']} update(s) skipped, loss or gradient not finite"
            )

    def evaluated(self, position: Position, metrics: Mapping[str, float], model: nn.Module) -> None:
        """Take down the held-out metrics and a text of filled-in blanks."""
        self.heldout = dict(metrics)
        self._take("heldout", position, self.heldout)
        self.board.add_text("filled-in blanks", self.panel(model), position.step)
        curves.draw(list(read_metrics(self.path / "metrics.jsonl")), self.path / "curves.png")

    def checkpoint(self, position: Position, model: nn.Module, optimiser: Optimiser) -> None:
        """Save a checkpoint, and drop all but the newest."""
        folder = self.path / "checkpoints" / f"step-{position.step:09d}"
        checkpoint.save(folder, model, optimiser, position, self.recipe, self.tokenizer)
        for old in checkpoint.finished(self.path)[:-CHECKPOINTS_KEPT]:
            shutil.rmtree(old)
        for killed in folder.parent.glob(f"{checkpoint.NAMES}.partial"):
            shutil.rmtree(killed)

    def close(self, results: Mapping[str, Any] | None) -> None:
        """Write results.json where there are results, and close all files."""
        if results is not None:
            write_json(self.path / "results.json", results)
            settings = {name: value for name, value in _flat(self.recipe.model_dump(mode="json")) if value is not None}
            scores = {f"hparam/{name}": value for name, value in results["heldout"].items()}
            self.board.add_hparams(settings, scores, run_name=".")
        self.board.close()
        self.metrics.close()
        self.progress.close()

    def _take(self, side: str, position: Position, record: Mapping[str, float]) -> None:
        where = {"side": side, "step": position.step, "tokens": position.tokens, "seconds": position.seconds}
        self._write(where | finite(record))
        for name, value in record.items():
            self.board.add_scalar(f"{side}/{name}", value, position.step)

    def _write(self, record: Mapping[str, Any]) -> None:
        self.metrics.write(json.dumps(record) + "\n")
        self.metrics.flush()


def finite(values: Any) -> Any:
    """Replace numbers that JSON does not know by null."""
    if isinstance(values, Mapping):
        return {name: finite(value) for name, value in values.items()}
    return None if isinstance(values, float) and not math.isfinite(values) else values


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, ", ".join(map(str, value)) if isinstance(value, Sequence | list) else value


def _peak_memory() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"
