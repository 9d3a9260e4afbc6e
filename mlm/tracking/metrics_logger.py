"""Metrics of a pretraining run: metrics.jsonl, the trackers that it names, and the learning curve."""

import logging
import math
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import nn

from mlm.config import PretrainConfig
from mlm.distributed.parallel import is_sharded
from mlm.distributed.world import World
from mlm.tracking import plots, run_directory
from mlm.tracking.metrics_file import MetricsFile, surviving
from mlm.tracking.run_directory import METRICS, RESULTS
from mlm.tracking.trackers import Tracked, Trackers
from mlm.training.budget import TrainingLength, TrainingProgress
from mlm.training.loop import Observer, StepMetrics, ratio

SPIKE_RECORDS = 20
"""Training records that a loss is compared with."""
SPIKE_DEVIATIONS = 6.0
"""A loss that exceeds their mean by this many standard deviations is a spike."""
DRAWING_PAUSE = 20
"""Time between two drawings of the learning curve, in units of a drawing's, because each reads all records."""

logger = logging.getLogger(__name__)


class MetricsLogger(Observer):
    """Logs the metrics of rank 0, and warns of skipped updates and loss spikes."""

    def __init__(
        self,
        path: Path,
        config: PretrainConfig,
        documents: Callable[[int], str],
        flops_per_token: Callable[[float], float],
        peak_flops: float,
        start: TrainingProgress,
        corpus_progress: Callable[[int], Mapping[str, Mapping[str, float]]] = lambda step: {},
    ) -> None:
        """Open the metrics of the run at `path`, truncated to `start`.

        `documents` names the documents that a step reads, `flops_per_token` takes the used share of the budget, and
        `peak_flops` is the measured rate of matrix products of all processes, in FLOP/s. `corpus_progress` returns
        what has been read of each corpus of a mixture after a number of steps.
        """
        self.path, self.config, self.documents = path, config, documents
        self.flops_per_token, self.peak_flops, self.corpus_progress = flops_per_token, peak_flops, corpus_progress
        self.length = TrainingLength()
        run_directory.truncate_records(path / METRICS, start.step)
        newest_first = run_directory.records_newest_first(path / METRICS)
        trained = (record for record, _ in newest_first if record["side"] == "train")
        earlier = list(islice(trained, SPIKE_RECORDS))[::-1]
        self.recent = deque((record["loss"] for record in earlier if record["loss"] is not None), SPIKE_RECORDS)
        self.skipped_in_all = earlier[-1]["skipped_in_all"] if earlier else 0
        self.has_missed_targets = False
        self.is_drawn, self.next_drawing = True, 0.0
        self.file = MetricsFile(path)
        self.trackers = Trackers(config.tracking, Tracked(path, config.model_dump(mode="json"), start=start.step))

    def started(self, world: World, length: TrainingLength, progress: TrainingProgress) -> None:
        """Keep the length, of which records hold the fraction, and the device, of which they hold the memory."""
        self.length, self.device = length, world.device

    def log(self, progress: TrainingProgress, metrics: StepMetrics) -> None:
        """Write the training metrics since the last record."""
        self.skipped_in_all += len(metrics.skipped)
        tokens_per_second = ratio(metrics.tokens, metrics.seconds)
        fraction = self.length.fraction(progress)
        flops = self.flops_per_token(fraction)
        record = {
            **{
                "accuracy" if name == "correct" else name: metrics.mean(name)
                for name in metrics.sums
                if not name.startswith("targets/")
            },
            **metrics.learning_rates,
            "gradient_norm": metrics.gradient_norm.item() if metrics.targets else None,
            "tokens_per_second": tokens_per_second,
            "mfu": None if tokens_per_second is None else ratio(tokens_per_second * flops, self.peak_flops),
            "data_wait_share": ratio(metrics.batch_seconds, metrics.seconds),
            "memory_bytes": _peak_memory(self.device),
            "skipped_updates": len(metrics.skipped),
            "skipped_in_all": self.skipped_in_all,
            "progress": fraction,
            **{
                f"{measure}/{name}": number
                for name, measures in self.corpus_progress(progress.step).items()
                for measure, number in measures.items()
            },
        }
        self._write("train", progress, record)
        if self._is_spike(record["loss"]):
            logger.warning("step %d: loss spike, %.3f nats", progress.step, record["loss"])
        if not metrics.targets and not self.has_missed_targets:
            self.has_missed_targets = True
            message = "step %d: no loss, because no token of its rows was hidden: raise masking.rate or data.row_length"
            logger.warning(message, progress.step)
        first = progress.step - metrics.steps
        for place in metrics.skipped:
            logger.warning(
                "step %d: update skipped, loss or gradient not finite; documents: %s",
                first + place + 1,
                self.documents(first + place),
            )

    def _is_spike(self, loss: float | None) -> bool:
        """Return whether a loss stands out from the last ones, and count it among them; one not measured does not."""
        if loss is None:
            return False
        known = len(self.recent) == SPIKE_RECORDS
        is_spike = known and loss > mean(self.recent) + SPIKE_DEVIATIONS * stdev(self.recent)
        if math.isfinite(loss):
            self.recent.append(loss)
        return is_spike

    def evaluated(self, progress: TrainingProgress, metrics: Mapping[str, float], model: nn.Module) -> None:
        """Write the held-out metrics, and draw the learning curve."""
        self._write("heldout", progress, metrics)
        self.is_drawn = progress.step == 0  # one point is no curve
        if time.monotonic() >= self.next_drawing:
            self._draw(progress)

    def ended(self, progress: TrainingProgress) -> None:
        """Draw the learning curve of a run that was stopped; that of a finished one is drawn with its baselines."""
        if not self.length.finished(progress):
            self._draw(progress)

    def _draw(self, progress: TrainingProgress) -> None:
        if not self.is_drawn:
            began = time.monotonic()
            with surviving(f"CURVES OF STEP {progress.step}", self.path):
                plots.draw(list(run_directory.read_metrics(self.path / METRICS)), self.path / "curves.png")
            ended, self.is_drawn = time.monotonic(), True
            self.next_drawing = ended + DRAWING_PAUSE * (ended - began)

    def close(self, results: Mapping[str, Any] | None) -> None:
        """Write results.json where there are results, and close all files; a second call changes nothing."""
        if results is not None:
            run_directory.write_json(self.path / RESULTS, results)
            self.trackers.conclude(results, results.get("steps", 0))
        self.trackers.close(finished=results is not None)
        self.file.close()

    def _write(self, side: str, progress: TrainingProgress, record: Mapping[str, float | None]) -> None:
        where = {"side": side, "step": progress.step, "tokens": progress.tokens, "seconds": progress.seconds}
        self.file.write({**where, **record})
        self.trackers.log(side, record, progress.step)


class SamplePredictions(Observer):
    """Shows filled-in blanks of the held-out text after each evaluation; on every rank of the run."""

    def __init__(self, predict: Callable[[nn.Module], str], log: MetricsLogger | None) -> None:
        """Show the text that `predict` returns by the trackers of `log`; ranks other than 0 have none."""
        self.predict, self.metrics_logger = predict, log

    def evaluated(self, progress: TrainingProgress, metrics: Mapping[str, float], model: nn.Module) -> None:
        """Predict, on all ranks together where the model is sharded, and show the text on rank 0."""
        if self.metrics_logger is None and not is_sharded(model):
            return
        text = self.predict(model)
        if self.metrics_logger is not None:
            self.metrics_logger.trackers.log_text("filled-in blanks", text, progress.step)


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
