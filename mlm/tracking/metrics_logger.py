"""What a pretraining run leaves behind while it goes on: metrics.jsonl, TensorBoard, curves, checkpoints, words."""

import json
import math
import os
import resource
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from mlm.checkpoint.writer import CheckpointWriter
from mlm.config import PretrainConfig
from mlm.tracking import plots
from mlm.tracking.board import Board
from mlm.tracking.progress_bar import ProgressBar
from mlm.tracking.run_directory import (
    METRICS,
    RESULTS,
    finite,
    keep_records,
    read_metrics,
    records_backwards,
    write_json,
)
from mlm.training.budget import TrainingProgress
from mlm.training.loop import LoggedMetrics
from mlm.training.optim import Optimizer

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SPIKE_RECORDS = 20
"""Training records that a loss is compared with."""
SPIKE_DEVIATIONS = 6.0
"""Standard deviations over their mean from which it is a spike."""


@dataclass(frozen=True)
class Rates:
    """What turns counts into the shares that a log shows."""

    peak_lr: float
    flops_per_token: float
    peak_flops: float
    """Measured matrix-product rate of the machine, FLOP/s."""


class MetricsLogger:
    """Takes down what the training loop reports: metrics.jsonl, TensorBoard, progress, curves and checkpoints."""

    def __init__(
        self,
        path: Path,
        recipe: PretrainConfig,
        saver: CheckpointWriter,
        rates: Rates,
        progress_bar: ProgressBar,
        panel: Callable[[nn.Module], str],
        documents: Callable[[int], str],
        start: TrainingProgress,
    ) -> None:
        """Open the records of the run at `path`, cut back to `start`.

        `panel` makes a text of filled-in blanks, `documents` names those that a step has read from.
        """
        self.path, self.recipe = path, recipe
        self.rates, self.progress_bar, self.panel = rates, progress_bar, panel
        self.saver = saver
        self.heldout: dict[str, float] = {}
        self.evaluated_at = -1
        self.skipped_in_a_row = 0
        self.documents = documents
        keep_records(path / METRICS, start.step)
        trained = (record for record, _ in records_backwards(path / METRICS) if record["side"] == "train")
        earlier = list(islice(trained, SPIKE_RECORDS))[::-1]
        self.recent = deque((record["loss"] for record in earlier if record["loss"] is not None), SPIKE_RECORDS)
        self.skipped_in_all = earlier[-1]["skipped_in_all"] if earlier else 0
        self.metrics = (path / METRICS).open("ab", buffering=0)
        self.board = Board(path, purge_step=start.step + 1 if start.step else None)

    def log(self, progress: TrainingProgress, metrics: LoggedMetrics) -> None:
        """Take down the training metrics since the last record."""
        targets = max(metrics.targets, 1)
        self.skipped_in_all += len(metrics.skipped)
        tokens_per_second = metrics.tokens / metrics.seconds
        record = {
            "loss": metrics.sums["loss"] / targets,
            "accuracy": metrics.sums["correct"] / targets,
            "lr": self.rates.peak_lr * metrics.rate_factor,
            "gradient_norm": metrics.gradient_norm,
            "tokens_per_second": tokens_per_second,
            "mfu": tokens_per_second * self.rates.flops_per_token / self.rates.peak_flops,
            "data_wait_share": metrics.waited_seconds / metrics.seconds,
            "memory_bytes": _peak_memory(),
            "skipped_updates": len(metrics.skipped),
            "skipped_in_all": self.skipped_in_all,
            "progress": min(self.progress_bar.plan.fraction(progress), 1.0),
        }
        self._take("train", progress, record)
        self.progress_bar.show(progress, record["loss"], tokens_per_second, self.heldout.get("loss"))
        if self._is_spike(record["loss"]):
            self.progress_bar.say(f"step {progress.step}: loss spike, {record['loss']:.3f} nats")
        first = progress.step - metrics.steps
        for step in range(first, progress.step):
            self.skipped_in_a_row = self.skipped_in_a_row + 1 if step in metrics.skipped else 0
        for step in metrics.skipped:
            self.progress_bar.say(
                f"step {step + 1}: update skipped, loss or gradient not finite; documents: {self.documents(step)}"
            )

    @property
    def hopeless(self) -> bool:
        """Whether so many updates in a row were skipped that none can be hoped for."""
        return self.skipped_in_a_row >= self.recipe.train.most_skipped

    def _is_spike(self, loss: float) -> bool:
        """Tell whether a loss stands out from the last ones, and count it among them."""
        known = len(self.recent) == SPIKE_RECORDS
        is_spike = known and loss > mean(self.recent) + SPIKE_DEVIATIONS * stdev(self.recent)
        if math.isfinite(loss):
            self.recent.append(loss)
        return is_spike

    def evaluated(self, progress: TrainingProgress, metrics: Mapping[str, float], model: nn.Module) -> None:
        """Take down the held-out metrics and a text of filled-in blanks."""
        self.heldout, self.evaluated_at = dict(metrics), progress.step
        filled = self.panel(model)
        self._take("heldout", progress, self.heldout)
        with self._unhurt(f"BLANKS OF STEP {progress.step} ON TENSORBOARD"):
            self.board.write(lambda writer: writer.add_text("filled-in blanks", filled, progress.step))
        if progress.step:  # one point is no curve, and the first step need not wait for the plotting library
            with self._unhurt(f"CURVES OF STEP {progress.step}"):
                plots.draw(list(read_metrics(self.path / METRICS)), self.path / "curves.png")

    def checkpoint(self, progress: TrainingProgress, model: nn.Module, optimizer: Optimizer) -> None:
        """Save a checkpoint while training goes on."""
        known = self.evaluated_at == progress.step
        self.saver.save(progress, model, optimizer, self.heldout.get("loss") if known else None)

    def close(self, results: Mapping[str, Any] | None) -> None:
        """Write results.json where there are results, and close all files."""
        self.saver.wait()
        if results is not None:
            write_json(self.path / RESULTS, results)
            settings = {name: value for name, value in _flat(self.recipe.model_dump(mode="json")) if value is not None}
            scores = {f"hparam/{name}": value for name, value in results["heldout"].items()}
            with self._unhurt("SETTINGS AND SCORES ON TENSORBOARD"):
                self.board.write(lambda writer: writer.add_hparams(settings, scores, run_name="."))
        with self._unhurt("LAST RECORDS ON TENSORBOARD"):
            self.board.close()
        self.metrics.close()
        self.progress_bar.close()

    def _take(self, side: str, progress: TrainingProgress, record: Mapping[str, float]) -> None:
        where = {"side": side, "step": progress.step, "tokens": progress.tokens, "seconds": progress.seconds}
        with self._unhurt(f"RECORD OF STEP {progress.step}"):
            self._append(json.dumps(where | finite(record)).encode() + b"\n")
        with self._unhurt(f"RECORD OF STEP {progress.step} ON TENSORBOARD"):
            self.board.write(lambda writer: _add_scalars(writer, side, progress.step, record))

    def _append(self, line: bytes) -> None:
        """Write a line whole or not at all."""
        end = os.fstat(self.metrics.fileno()).st_size
        try:
            while line:  # a disk that is nearly full takes a part, and then says no
                line = line[self.metrics.write(line) :]
        except OSError:
            os.ftruncate(self.metrics.fileno(), end)
            raise

    @contextmanager
    def _unhurt(self, what: str) -> Iterator[None]:
        """Let training go on where the disk fails, and say so."""
        try:
            yield
        except OSError as error:
            self.progress_bar.say(f"{what} NOT WRITTEN ({error}): training goes on: make room in {self.path}")


def _add_scalars(writer: "SummaryWriter", side: str, step: int, record: Mapping[str, float]) -> None:
    for name, value in record.items():
        writer.add_scalar(f"{side}/{name}", value, step)


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


class CollectiveObserver:
    """What ranks other than the first do where that one takes things down: what takes all of them together."""

    def __init__(self, saver: CheckpointWriter, panel: Callable[[nn.Module], str]) -> None:
        self.saver, self.panel = saver, panel

    def log(self, progress: TrainingProgress, metrics: LoggedMetrics) -> None:
        """Leave it to the first rank."""

    def evaluated(self, progress: TrainingProgress, metrics: Mapping[str, float], model: nn.Module) -> None:
        """Compute what the first rank writes, where the model is sharded and computes on all ranks together."""
        if isinstance(model, FSDPModule):
            self.panel(model)

    def checkpoint(self, progress: TrainingProgress, model: nn.Module, optimizer: Optimizer) -> None:
        """Save this rank's shares."""
        self.saver.save(progress, model, optimizer, None)
