"""Saving while training goes on: one checkpoint in flight, a failure said and tried again, old ones removed."""

import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from threading import Thread

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule

from configs import UserError
from mlm.checkpoint import checkpoint
from mlm.checkpoint.checkpoint import Snapshot
from mlm.checkpoint.manifest import PARTIAL, Manifest, manifest_of, remove
from mlm.config import PretrainConfig
from mlm.distributed.world import World
from mlm.training.budget import TrainingProgress
from mlm.training.optim import Optimizer


class CheckpointWriter:
    """Writes a run's checkpoints, in a thread of its own."""

    def __init__(
        self,
        run: Path,
        recipe: PretrainConfig,
        tokenizer: Path,
        world: World,
        say: Callable[[str], None],
        begin: TrainingProgress,
    ) -> None:
        """Save into `run`, which goes on from `begin`; every process makes one at the same time.

        Checkpoints of later steps, which were damaged where there is any, are removed: their steps are trained anew.
        `say` tells the user of what failed.
        """
        self.folder, self.recipe, self.tokenizer, self.say = run / "checkpoints", recipe, tokenizer, say
        self.run, self.world = run, world
        # Of its own, so that what is said while saving never meets what training says.
        timeout = timedelta(minutes=recipe.train.silence_minutes)
        self.group = dist.new_group(backend="gloo", timeout=timeout) if dist.is_initialized() else None
        self.thread = Thread()
        self.failure: Exception | None = None
        if world.is_main:
            self._sweep(begin.step)

    def save(
        self, progress: TrainingProgress, model: nn.Module, optimizer: Optimizer, heldout_loss: float | None
    ) -> None:
        """Copy the run as it stands, and write that while training goes on; the one before is waited for.

        Args:
            progress: how far training has come.
            model: whose weights are saved.
            optimizer: whose state is saved.
            heldout_loss: of these weights in nats, where it is known.

        """
        self.wait()
        if not self.world.is_main and not isinstance(model, FSDPModule):
            return
        taken = checkpoint.snapshot(model, optimizer, progress, whole=self.world.is_main)
        # A daemon: who stops the command by a second Ctrl-C does not wait for the disk. What is half written then has
        # no final name yet.
        self.thread = Thread(target=self._write, args=(taken, heldout_loss), name="saver", daemon=True)
        self.thread.start()

    def wait(self) -> None:
        """Return when nothing is being written."""
        if self.thread.ident is not None:
            self.thread.join()

    def finish(self) -> None:
        """Wait for the last checkpoint of all processes.

        Raises:
            OSError: it could not be written, here or by another process.
            Exception: what else went wrong while it was written.

        """
        self.wait()
        failed = self.world.max(int(self.failure is not None))
        if self.failure is not None:
            raise self.failure
        if failed:
            raise OSError("another process could not write the last checkpoint")

    def _write(self, taken: Snapshot, heldout_loss: float | None) -> None:
        if self.world.device.type == "cuda":
            torch.cuda.set_device(self.world.device)  # each thread has a current one
        try:
            folder = checkpoint.folder_of(self.run, taken.step)
            checkpoint.save(folder, taken, self.recipe, self.tokenizer, heldout_loss, self.group)
        except Exception as error:  # it would be lost with the thread: `finish` raises it
            self.failure = error
            self.say(
                f"CHECKPOINT OF STEP {taken.step} NOT SAVED ({error}): training goes on, the older ones stay, and the"
                f" next is tried after {self.recipe.train.intervals.checkpoint_steps} steps: make room in {self.run}"
            )
        else:
            self.failure = None
            if self.world.is_main:
                self._prune()

    def _prune(self) -> None:
        """Remove the checkpoints that need not be kept."""
        keep, folders = self.recipe.train.keep, checkpoint.finished(self.run)
        kept = set(folders[-keep.newest :])
        manifests = {folder: _manifest(folder) for folder in folders}
        if keep.every_steps is not None:
            kept |= {folder for folder, found in manifests.items() if found and found.step % keep.every_steps == 0}
        losses = {folder: found.heldout_loss for folder, found in manifests.items() if found}
        known = {folder: loss for folder, loss in losses.items() if loss is not None}
        if keep.best and known:
            kept.add(min(known, key=known.__getitem__))
        for folder in set(folders) - kept:
            try:
                remove(folder)
            except OSError as error:
                self.say(f"{folder} is not needed any more and cannot be removed ({error}): training goes on")

    def _sweep(self, step: int) -> None:
        """Remove what killed processes left half written, and what is of later steps."""
        for later in checkpoint.finished(self.run):
            if later > checkpoint.folder_of(self.run, step):
                remove(later)
        for killed in self.folder.glob(f"{checkpoint.NAMES}*{PARTIAL}"):
            shutil.rmtree(killed)


def _manifest(folder: Path) -> Manifest | None:
    try:
        return manifest_of(folder)
    except UserError:
        return None  # damaged: kept as long as it is among the newest
