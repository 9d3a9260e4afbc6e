"""Checkpoints are written while training goes on, and no failing disk costs one that is there."""

import errno
import itertools
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Set
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from configs import UserError
from mlm.checkpoint import checkpoint, weights
from mlm.checkpoint.manifest import read_manifest, verify
from mlm.checkpoint.writer import CheckpointWriter
from mlm.config import PretrainConfig, Retention, TrainConfig
from mlm.training.budget import TrainingProgress
from mlm.training.optim import AdamW, Optimizer
from tests.mlm.samples import CPU, Lines


class Disk:
    """Counts every instruction that changes the disk while a checkpoint is saved, and makes one of them fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls, self.fails_at, self.error = 0, -1, errno.ENOSPC
        for holder, name in (
            (os, "mkdir"),
            (os, "fsync"),
            (os, "rename"),
            (shutil, "copyfile"),
            (shutil, "rmtree"),
            (Path, "write_text"),
        ):
            monkeypatch.setattr(holder, name, self._counted(getattr(holder, name), writes=None))
        monkeypatch.setattr(torch, "save", self._counted(torch.save, writes=1))
        monkeypatch.setattr(weights, "save_file", self._counted(save_file, writes=1))

    def _counted(self, instruction: Callable[..., Any], writes: int | None) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            self.calls += 1
            if self.calls - 1 != self.fails_at:
                return instruction(*arguments, **named)
            if writes is not None:  # half of the file comes to the disk
                instruction(*arguments, **named)
                path = Path(arguments[writes])
                os.truncate(path, path.stat().st_size // 2)
            raise OSError(self.error, os.strerror(self.error))

        return counted


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


class Run:
    """A small model whose run is saved into a folder."""

    def __init__(
        self, folder: Path, keep: Retention | None = None, begin: int = 0, milestones: Set[int] = frozenset()
    ) -> None:
        self.folder, self.said = folder, list[str]()
        folder.mkdir(exist_ok=True)
        tokenizer = folder / "tokenizer.json"
        tokenizer.write_bytes(b"{}")
        self.model = nn.Linear(3, 2)
        self.optimizer: Optimizer = AdamW().build(self.model)
        recipe = PretrainConfig(train=TrainConfig(keep=keep or Retention()))
        self.writer = CheckpointWriter(folder, recipe, tokenizer, CPU, TrainingProgress(begin), milestones)
        logging.getLogger("mlm.checkpoint").addHandler(Lines(self.said))

    def save(self, step: int, heldout_loss: float | None = None) -> None:
        if heldout_loss is not None:
            self.writer.evaluated(TrainingProgress(step), {"loss": heldout_loss}, self.model)
        self.writer.checkpoint(TrainingProgress(step), self.model, self.optimizer)

    def finish(self) -> None:
        self.writer.ended(TrainingProgress())

    @property
    def steps(self) -> list[int]:
        """Return the steps of the checkpoints that are there, each of them whole."""
        found = checkpoint.completed(self.folder)
        return [verify(folder, tuple(read_manifest(folder).files)).step for folder in found]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_failing_disk_costs_one_checkpoint_at_every_instruction(tmp_path: Path, disk: Disk, error: int) -> None:
    disk.error = error
    for place in itertools.count():
        disk.fails_at = -1
        run = Run(tmp_path / f"run{place}")
        run.save(1)
        run.finish()
        disk.calls, disk.fails_at = 0, place
        run.save(2)
        run.writer.wait()
        if disk.calls <= place:
            assert not run.said
            break
        disk.fails_at = -1
        assert "CHECKPOINT OF STEP 2 NOT SAVED" in run.said[0]
        assert os.strerror(error) in run.said[0]
        assert "make room in" in run.said[0]
        with pytest.raises(OSError, match=re.escape(os.strerror(error))):
            run.finish()
        assert run.steps in ([1], [1, 2])  # it is there where only its folder could not be synced in the end
        run.save(3)
        run.finish()
        assert run.steps[-1] == 3
    assert place > 10


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_held_out_loss_that_is_not_finite_is_no_reason_not_to_save(tmp_path: Path, loss: float) -> None:
    run = Run(tmp_path / "run", Retention(best=True))
    run.save(1, 4.0)
    run.save(2, loss)
    run.finish()
    assert (run.steps, run.said) == ([1, 2], [])
    assert [read_manifest(folder).heldout_loss for folder in checkpoint.completed(tmp_path / "run")] == [4.0, None]


def test_training_continues_while_a_snapshot_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, may_write = Run(tmp_path / "run"), Event()
    fsync = os.fsync

    def late(descriptor: int) -> None:
        may_write.wait(10)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", late)
    before = run.model.weight.detach().clone()
    run.save(1)
    assert run.steps == []
    with torch.no_grad():
        run.model.weight.add_(1)
    may_write.set()
    run.finish()
    saved = load_file(checkpoint.completed(run.folder)[0] / checkpoint.WEIGHTS)
    assert torch.equal(saved["weight"], before)


def test_at_most_one_checkpoint_is_in_flight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, begun, may_write, is_waiting = Run(tmp_path / "run"), list[int](), Event(), Event()
    save, wait = torch.save, run.writer.wait

    def late(*arguments: Any) -> None:
        begun.append(len(begun))
        may_write.wait(10)
        save(*arguments)

    def waits() -> None:
        is_waiting.set()
        wait()

    monkeypatch.setattr(torch, "save", late)
    run.save(1)
    monkeypatch.setattr(run.writer, "wait", waits)
    second = Thread(target=run.save, args=(2,))
    second.start()
    assert is_waiting.wait(10)
    assert second.is_alive()
    assert len(begun) <= 1
    may_write.set()
    second.join()
    run.finish()
    assert len(begun) == 2
    assert run.steps == [1, 2]


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (Retention(newest=1, best=False), [6]),
        (Retention(newest=3, best=False), [4, 5, 6]),
        (Retention(newest=1), [2, 6]),
        (Retention(newest=1, best=False, every_steps=2), [2, 4, 6]),
        (Retention(newest=2, every_steps=3), [2, 3, 5, 6]),
    ],
)
def test_the_newest_the_best_and_every_nth_are_kept(tmp_path: Path, keep: Retention, expected: list[int]) -> None:
    run = Run(tmp_path / "run", keep)
    for step, loss in enumerate((3.0, 1.0, None, 2.0, 1.5, 4.0), start=1):
        run.save(step, loss)
    run.finish()
    assert run.steps == expected


def test_milestones_are_kept(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", Retention(newest=1, best=False), milestones={2, 3, 9})
    for step in range(1, 6):
        run.save(step)
    run.finish()
    assert run.steps == [2, 3, 5]


def test_resuming_from_an_earlier_step_removes_later_checkpoints(tmp_path: Path) -> None:
    first = Run(tmp_path / "run", Retention(newest=3))
    for step in (10, 20, 30):
        first.save(step)
    first.finish()
    second = Run(tmp_path / "run", Retention(newest=1, best=False), begin=10)
    assert second.steps == [10]
    second.save(15)
    second.finish()
    assert second.steps == [15]


def test_an_error_in_the_thread_is_raised_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise MemoryError("none left")

    run = Run(tmp_path / "run")
    monkeypatch.setattr(torch, "save", broken)
    run.save(1)
    with pytest.raises(MemoryError):
        run.finish()
    assert "NOT SAVED (none left)" in run.said[0]
    assert "make room" not in run.said[0]


def test_a_failed_removal_costs_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path / "run", Retention(newest=1, best=False))
    run.save(1)
    run.finish()

    def held(path: Path, **_: Any) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(shutil, "rmtree", held)
    run.save(2)
    run.finish()
    assert "cannot be removed" in run.said[0]
    assert run.steps[-1] == 2


def test_a_checkpoint_that_was_moved_to_another_disk_leaves_its_link_alone_when_it_goes(tmp_path: Path) -> None:
    first = Run(tmp_path / "run")
    first.save(1)
    first.finish()
    moved = checkpoint.step_folder(first.folder, 1).rename(tmp_path / "moved")
    checkpoint.step_folder(first.folder, 1).symlink_to(moved)
    half = first.folder / "checkpoints" / "step-000000000.removed.partial"
    half.symlink_to(moved)  # as earlier versions left it
    second = Run(tmp_path / "run", Retention(newest=1, best=False), begin=1)
    second.save(2)
    second.finish()
    assert second.steps == [2]
    assert not second.said
    assert [path.name for path in (second.folder / "checkpoints").iterdir()] == ["step-000000002"]
    assert verify(moved, [checkpoint.WEIGHTS]).step == 1


def test_a_checkpoint_that_cannot_be_read_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(tmp_path / "run", Retention(newest=2))
    run.save(1)
    run.save(2)
    run.finish()
    manifest = checkpoint.step_folder(run.folder, 2) / "manifest.json"
    manifest.unlink()
    manifest.mkdir()  # to read it is an error of the system, as that of a bad disk
    assert checkpoint.newest_undamaged(run.folder) == checkpoint.step_folder(run.folder, 1)
    assert "skipped: " in caplog.text


def test_half_written_checkpoints_of_killed_processes_are_removed(tmp_path: Path) -> None:
    half = tmp_path / "run" / "checkpoints" / "step-000000007.partial"
    half.mkdir(parents=True)
    (half / checkpoint.WEIGHTS).write_bytes(b"half")
    run = Run(tmp_path / "run")
    assert not half.exists()
    with pytest.raises(UserError, match="has no checkpoint"):
        checkpoint.newest(run.folder)
