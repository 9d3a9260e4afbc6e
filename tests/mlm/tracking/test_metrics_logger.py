"""Metrics on disk: skipped updates, loss spikes, learning rates, FLOPs, and a disk that fails."""

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import nn

from mlm.config import PretrainConfig
from mlm.tracking import plots, run_directory
from mlm.tracking.metrics_logger import SPIKE_RECORDS, MetricsLogger
from mlm.training.budget import TrainingLength, TrainingProgress
from mlm.training.divergence import DivergenceStop
from mlm.training.loop import StepMetrics
from tests.mlm.samples import CPU


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Return a function that returns the lines that were logged so far."""
    return lambda: caplog.messages


def opened(folder: Path, start: int = 0) -> MetricsLogger:
    folder.mkdir(exist_ok=True)
    logger = MetricsLogger(
        folder, PretrainConfig(), lambda step: f"<{step}>", lambda share: share, 1.0, TrainingProgress(start)
    )
    logger.started(CPU, TrainingLength(steps=100), TrainingProgress(start))
    return logger


def metrics(
    loss: float = 1.0,
    steps: int = 1,
    skipped: Sequence[int] = (),
    rates: Mapping[str, float] = MappingProxyType({"lr": 1.0}),
) -> StepMetrics:
    """Return the metrics of `steps` steps, of which those at the places in `skipped` were skipped."""
    finite_S = torch.tensor([place not in skipped for place in range(steps)])
    sums = {"loss": torch.tensor(loss, dtype=torch.float64), "correct": torch.tensor(0.0)}
    return StepMetrics(sums, 1, 10, 1.0, 0.0, rates, torch.tensor(1.0), finite_S)


def records(folder: Path) -> list[dict[str, Any]]:
    return list(run_directory.read_metrics(folder / run_directory.METRICS))


def test_skipped_updates_are_logged_with_their_documents(tmp_path: Path, lines: Callable[[], list[str]]) -> None:
    logger = opened(tmp_path / "run")
    logger.log(TrainingProgress(4), metrics(steps=4, skipped=(0, 2, 3)))
    assert [line.partition(":")[0] for line in lines()] == ["step 1", "step 3", "step 4"]
    assert lines()[1].endswith("documents: <2>")
    logger.log(TrainingProgress(5), metrics(skipped=(0,)))
    logger.close(None)
    assert [record["skipped_in_all"] for record in records(tmp_path / "run")] == [3, 4]


def test_too_many_skipped_updates_in_a_row_are_a_divergence() -> None:
    divergence = DivergenceStop(3)
    for skipped, has_diverged in (((0, 2, 3), False), ((0,), True), ((), False)):
        divergence.log(TrainingProgress(), metrics(steps=4 if len(skipped) == 3 else 1, skipped=skipped))
        assert divergence.has_diverged == has_diverged


def test_a_loss_spike_is_logged_also_after_a_resume(tmp_path: Path, lines: Callable[[], list[str]]) -> None:
    first = opened(tmp_path / "run")
    for step in range(1, SPIKE_RECORDS + 1):
        first.log(TrainingProgress(step), metrics(1.0 + step % 2 / 10))
    first.close(None)
    second = opened(tmp_path / "run", start=SPIKE_RECORDS)
    second.log(TrainingProgress(SPIKE_RECORDS + 1), metrics(1.2))
    assert lines() == []
    second.log(TrainingProgress(SPIKE_RECORDS + 2), metrics(9.0))
    assert lines() == [f"step {SPIKE_RECORDS + 2}: loss spike, 9.000 nats"]
    second.close(None)


def test_a_measure_that_cannot_be_taken_is_null_and_no_spike(tmp_path: Path, lines: Callable[[], list[str]]) -> None:
    logger = opened(tmp_path / "run")
    for step in range(1, SPIKE_RECORDS + 1):
        logger.log(TrainingProgress(step), metrics(1.0 + step % 2 / 10))
    for step in range(SPIKE_RECORDS + 1, SPIKE_RECORDS + 3):
        logger.log(TrainingProgress(step), replace(metrics(0.0), targets=0, seconds=0.0))
    logger.close({"heldout": {"loss": 1.0, "bits_per_byte": None}})
    assert len(lines()) == 1
    assert "masking.rate" in lines()[0]
    assert list(logger.recent) == [1.0 + step % 2 / 10 for step in range(1, SPIKE_RECORDS + 1)]
    last = records(tmp_path / "run")[-1]
    assert [last[name] for name in ("loss", "accuracy", "gradient_norm")] == [None] * 3
    assert [last[name] for name in ("tokens_per_second", "mfu", "data_wait_share")] == [None] * 3
    board = EventAccumulator(str(tmp_path / "run"))
    board.Reload()
    assert len(board.Scalars("train/loss")) == SPIKE_RECORDS
    assert "hparam/loss" in board.Tags()["scalars"]
    assert "hparam/bits_per_byte" not in board.Tags()["scalars"]
    again = opened(tmp_path / "run", start=SPIKE_RECORDS + 2)
    assert len(again.recent) == SPIKE_RECORDS - 2  # those of the last records that have a loss
    again.close(None)


def test_curves_are_drawn_again_when_that_costs_little_of_the_time_since(tmp_path: Path) -> None:
    """All records are read for it, so that drawing at each evaluation of a long run would take ever longer."""
    logger, picture = opened(tmp_path / "run"), tmp_path / "run" / "curves.png"
    drawn = []
    for step in (1, 2):
        logger.evaluated(TrainingProgress(step), {"loss": 1.0, "accuracy": 0.5}, torch.nn.Identity())
        drawn.append(picture.stat().st_mtime_ns)
    logger.ended(TrainingProgress(2))
    drawn.append(picture.stat().st_mtime_ns)
    assert drawn[0] == drawn[1] < drawn[2]
    logger.next_drawing = 0.0
    logger.evaluated(TrainingProgress(3), {"loss": 1.0, "accuracy": 0.5}, torch.nn.Identity())
    assert picture.stat().st_mtime_ns > drawn[2]
    logger.close(None)


def test_curves_without_a_single_loss_are_drawn(tmp_path: Path) -> None:
    none = [{"side": side, "tokens": 10, "loss": None, "accuracy": None} for side in run_directory.SIDES]
    for number, found in enumerate(([], none)):
        plots.draw(found, tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").read_bytes().startswith(b"\x89PNG")


def test_flops_are_those_of_the_used_share_of_the_budget(tmp_path: Path) -> None:
    logger = opened(tmp_path / "run")
    for step in (10, 50, 90):
        logger.log(TrainingProgress(step), metrics())
    logger.close(None)
    found = [record["mfu"] for record in records(tmp_path / "run")]
    assert found == pytest.approx([10 * step / 100 for step in (10, 50, 90)])  # 10 tokens a second
    assert [record["progress"] for record in records(tmp_path / "run")] == [0.1, 0.5, 0.9]


def test_learning_rates_are_logged_under_their_names(tmp_path: Path) -> None:
    logger = opened(tmp_path / "run")
    logger.log(TrainingProgress(1), metrics(rates={"lr": 0.02, "lr/1": 0.001}))
    logger.close(None)
    (record,) = records(tmp_path / "run")
    assert (record["lr"], record["lr/1"]) == (0.02, 0.001)


class FullDisk:
    """A file that takes half of a line, and then says that the disk is full."""

    def __init__(self, file: Any) -> None:
        self.file, self.calls = file, 0

    def write(self, line: bytes) -> int:
        self.calls += 1
        if self.calls == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return int(self.file.write(line[: len(line) // 2] if self.calls == 1 else line))

    def fileno(self) -> int:
        return int(self.file.fileno())

    def close(self) -> None:
        self.file.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # that is how its thread ends
def test_tensorboard_is_written_again_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: Callable[[], list[str]]
) -> None:
    is_full, write = False, RecordWriter.write

    def on_disk(self: RecordWriter, content: bytes) -> None:
        if is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, content)

    monkeypatch.setattr(RecordWriter, "write", on_disk)
    logger = opened(tmp_path / "run")
    step, is_full = 0, True
    while not lines():  # the writer's thread reports its failure when the next event is handed to it
        step += 1
        logger.log(TrainingProgress(step), metrics())
    assert "ON TENSORBOARD NOT WRITTEN" in lines()[0]
    is_full = False
    for later in range(step + 1, step + 4):
        logger.log(TrainingProgress(later), metrics())
    logger.close(None)
    assert len(lines()) == 1
    assert [record["step"] for record in records(tmp_path / "run")] == list(range(1, step + 4))
    board = EventAccumulator(str(tmp_path / "run"))
    board.Reload()
    assert [event.step for event in board.Scalars("train/loss")][-3:] == [step + 1, step + 2, step + 3]


def test_a_full_disk_costs_a_record_and_not_the_run(tmp_path: Path, lines: Callable[[], list[str]]) -> None:
    logger = opened(tmp_path / "run")
    logger.log(TrainingProgress(1), metrics())
    logger.file.file = FullDisk(logger.file.file)  # type: ignore[assignment]
    logger.log(TrainingProgress(2), metrics())
    assert len(lines()) == 1
    assert "RECORD OF STEP 2 NOT WRITTEN" in lines()[0]
    logger.log(TrainingProgress(3), metrics())
    logger.evaluated(TrainingProgress(3), {"loss": 1.0, "accuracy": 0.5}, nn.Linear(1, 1))
    logger.close(None)
    assert [record["step"] for record in records(tmp_path / "run")] == [1, 3, 3]
