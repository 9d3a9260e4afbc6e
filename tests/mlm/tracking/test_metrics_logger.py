"""What a run's records say of updates that were skipped, of spikes, and of a disk that fails."""

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import nn

from mlm.checkpoint.writer import CheckpointWriter
from mlm.config import PretrainConfig, TrainConfig
from mlm.tracking import run_directory
from mlm.tracking.metrics_logger import SPIKE_RECORDS, MetricsLogger, Rates
from mlm.tracking.progress_bar import ProgressBar
from mlm.training.budget import TrainingLength, TrainingProgress
from mlm.training.loop import LoggedMetrics
from tests.mlm.samples import CPU


class Silent(ProgressBar):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__(TrainingLength(steps=100), TrainingProgress(), silent=True)
        self.said = list[str]()

    def say(self, line: str) -> None:
        self.said.append(line)


def recorder(folder: Path, bar: Silent, start: int = 0) -> MetricsLogger:
    folder.mkdir(exist_ok=True)
    recipe = PretrainConfig(train=TrainConfig(most_skipped=3))
    saver = CheckpointWriter(folder, recipe, folder / "tokenizer.json", CPU, bar.say, TrainingProgress(start))
    rates = Rates(peak_lr=1.0, flops_per_token=1.0, peak_flops=1.0)
    return MetricsLogger(
        folder, recipe, saver, rates, bar, lambda _: "panel", lambda step: f"<{step}>", TrainingProgress(start)
    )


def interval(loss: float = 1.0, steps: int = 1, skipped: tuple[int, ...] = ()) -> LoggedMetrics:
    return LoggedMetrics({"loss": loss, "correct": 0.0}, 1, 10, steps, 1.0, 0.0, 1.0, skipped, 1.0)


def records(folder: Path) -> list[dict[str, Any]]:
    return list(run_directory.read_metrics(folder / run_directory.METRICS))


def test_skipped_updates_are_told_with_their_documents_and_end_the_run_when_too_many_in_a_row(tmp_path: Path) -> None:
    bar = Silent()
    taken = recorder(tmp_path / "run", bar)
    taken.log(TrainingProgress(4), interval(steps=4, skipped=(0, 2, 3)))
    assert [line.partition(":")[0] for line in bar.said] == ["step 1", "step 3", "step 4"]
    assert bar.said[1].endswith("documents: <2>")
    assert not taken.hopeless
    taken.log(TrainingProgress(5), interval(skipped=(4,)))
    assert taken.hopeless
    taken.log(TrainingProgress(6), interval())
    assert not taken.hopeless
    taken.close(None)
    assert [record["skipped_in_all"] for record in records(tmp_path / "run")] == [3, 4, 4]


def test_a_loss_that_stands_out_is_told_also_after_going_on(tmp_path: Path) -> None:
    bar = Silent()
    first = recorder(tmp_path / "run", bar)
    for step in range(1, SPIKE_RECORDS + 1):
        first.log(TrainingProgress(step), interval(1.0 + step % 2 / 10))
    first.close(None)
    second = recorder(tmp_path / "run", bar, start=SPIKE_RECORDS)
    second.log(TrainingProgress(SPIKE_RECORDS + 1), interval(1.2))
    assert bar.said == []
    second.log(TrainingProgress(SPIKE_RECORDS + 2), interval(9.0))
    assert bar.said == [f"step {SPIKE_RECORDS + 2}: loss spike, 9.000 nats"]
    second.close(None)


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
def test_tensorboard_goes_on_when_there_is_room_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bar, is_full, write = Silent(), False, RecordWriter.write

    def on_disk(self: RecordWriter, content: bytes) -> None:
        if is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, content)

    monkeypatch.setattr(RecordWriter, "write", on_disk)
    taken = recorder(tmp_path / "run", bar)
    step, is_full = 0, True
    while not bar.said:  # the writer's thread tells of it when it is next asked for something
        step += 1
        taken.log(TrainingProgress(step), interval())
        time.sleep(0.01)
    assert "ON TENSORBOARD NOT WRITTEN" in bar.said[0]
    is_full = False
    for later in range(step + 1, step + 4):
        taken.log(TrainingProgress(later), interval())
    taken.close(None)
    assert len(bar.said) == 1
    assert [record["step"] for record in records(tmp_path / "run")] == list(range(1, step + 4))
    board = EventAccumulator(str(tmp_path / "run"))
    board.Reload()
    assert [event.step for event in board.Scalars("train/loss")][-3:] == [step + 1, step + 2, step + 3]


def test_a_full_disk_costs_a_record_and_not_the_run(tmp_path: Path) -> None:
    bar = Silent()
    taken = recorder(tmp_path / "run", bar)
    taken.log(TrainingProgress(1), interval())
    whole = taken.metrics
    taken.metrics = FullDisk(whole)  # type: ignore[assignment]
    taken.log(TrainingProgress(2), interval())
    assert len(bar.said) == 1
    assert "RECORD OF STEP 2 NOT WRITTEN" in bar.said[0]
    taken.log(TrainingProgress(3), interval())
    taken.evaluated(TrainingProgress(3), {"loss": 1.0, "accuracy": 0.5}, nn.Linear(1, 1))
    taken.close(None)
    assert [record["step"] for record in records(tmp_path / "run")] == [1, 3, 3]
