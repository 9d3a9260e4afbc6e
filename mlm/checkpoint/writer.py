"""Save checkpoints while training continues: one at a time, failures logged, old ones removed."""

import logging
import math
from collections.abc import Callable, Mapping, Set
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from threading import Thread

import torch
import torch.distributed as dist
from torch import nn

from configs import UserError
from configs.files import PARTIAL
from mlm.checkpoint import checkpoint
from mlm.checkpoint.checkpoint import Snapshot
from mlm.checkpoint.manifest import delete, read_manifest, remove
from mlm.config import PretrainConfig
from mlm.distributed.parallel import is_sharded
from mlm.distributed.world import World
from mlm.training.budget import TrainingProgress
from mlm.training.loop import Observer
from mlm.training.optim import Optimizer

logger = logging.getLogger(__name__)


class CheckpointWriter(Observer):
    """Writes a run's checkpoints in a background thread, on every rank of the run."""

    def __init__(
        self,
        run: Path,
        config: PretrainConfig,
        tokenizer: Path,
        world: World,
        start: TrainingProgress,
        milestones: Set[int] = frozenset(),
    ) -> None:
        """Save into `run`, which is resumed from `start`; all processes create their writers together.

        The checkpoints of `milestones`, steps, are kept. Checkpoints of later steps were skipped as damaged, and are
        removed: their steps are trained again. Those that cannot be read are left to be written again.
        """
        self.folder, self.config, self.tokenizer = run / "checkpoints", config, tokenizer
        self.run, self.world, self.milestones = run, world, milestones
        # A separate group keeps the messages of saving apart from those of training.
        timeout = timedelta(minutes=config.train.silence_minutes)
        self.group = dist.new_group(backend="gloo", timeout=timeout) if dist.is_initialized() else None
        self.thread = Thread()
        self.failure: Exception | None = None
        self.heldout_losses: dict[int, float] = {}
        if world.is_main:
            self._sweep(start.step)

    def evaluated(self, progress: TrainingProgress, metrics: Mapping[str, float], model: nn.Module) -> None:
        """Keep the held-out loss for a checkpoint of the same step, if it is one."""
        self.heldout_losses = {progress.step: metrics["loss"]} if math.isfinite(metrics["loss"]) else {}

    def checkpoint(self, progress: TrainingProgress, model: nn.Module, optimizer: Optimizer) -> None:
        """Wait for the previous checkpoint, copy the state of the run, and write the copy while training continues."""
        self.wait()
        if not self.world.is_main and not is_sharded(model):
            return
        taken = checkpoint.snapshot(model, optimizer, progress, whole=self.world.is_main)
        # A daemon: a second Ctrl-C does not wait for the disk. A half-written checkpoint has no final name yet.
        arguments = (taken, self.heldout_losses.get(progress.step))
        self.thread = Thread(target=self._write, args=arguments, name="checkpoint writer", daemon=True)
        self.thread.start()

    def wait(self) -> None:
        """Return when nothing is being written."""
        if self.thread.ident is not None:
            self.thread.join()

    def ended(self, progress: TrainingProgress) -> None:
        """Wait for the last checkpoint on all processes; raise its failure, or an OSError if another process failed."""
        self.wait()
        failed = self.world.max(int(self.failure is not None))
        if self.failure is not None:
            raise self.failure
        if failed:
            raise OSError("another process could not write the last checkpoint")

    def _write(self, taken: Snapshot, heldout_loss: float | None) -> None:
        if self.world.device.type == "cuda":
            torch.cuda.set_device(self.world.device)  # the current device is a setting of each thread
        try:
            folder = checkpoint.step_folder(self.run, taken.step)
            checkpoint.save(folder, taken, self.config, self.tokenizer, heldout_loss, self.group)
        except Exception as error:  # it would be lost with the thread: `ended` raises it
            self.failure = error
            logger.warning(
                "CHECKPOINT OF STEP %d NOT SAVED (%s): training continues, the older ones stay, and the next is tried"
                " after %d steps%s",
                taken.step,
                error,
                self.config.train.intervals.checkpoint_steps,
                f": make room in {self.run}" if isinstance(error, OSError) else "",
            )
        else:
            self.failure = None
            if self.world.is_main:
                self._prune(folder)

    def _prune(self, saved: Path) -> None:
        """Remove the checkpoints up to the one just saved that need not be kept."""
        keep, folders = self.config.train.keep, [one for one in checkpoint.completed(self.run) if one <= saved]
        kept = set(folders[-keep.newest :])
        losses = dict[Path, float]()
        for folder in folders:
            with suppress(UserError, OSError):  # damaged: kept as long as it is among the newest
                manifest = read_manifest(folder)
                is_multiple = keep.every_steps is not None and manifest.step % keep.every_steps == 0
                if is_multiple or manifest.step in self.milestones:
                    kept.add(folder)
                if manifest.heldout_loss is not None:
                    losses[folder] = manifest.heldout_loss
        if keep.best and losses:
            kept.add(min(losses, key=losses.__getitem__))
        for folder in set(folders) - kept:
            _try(remove, folder)

    def _sweep(self, step: int) -> None:
        """Remove half-written checkpoints of killed processes, and of steps after `step` those that can be read."""
        for later in checkpoint.completed(self.run):
            if later > checkpoint.step_folder(self.run, step):
                try:
                    with suppress(UserError):
                        checkpoint.verify_whole(later)
                except OSError as error:
                    logger.warning("%s cannot be read (%s): its steps are trained again", later, error)
                else:
                    _try(remove, later)
        for killed in self.folder.glob(f"{checkpoint.NAMES}*{PARTIAL}"):
            _try(delete, killed)


def _try(removal: Callable[[Path], None], folder: Path) -> None:
    """Remove a folder that is not needed any more; where that fails, a warning says so."""
    try:
        removal(folder)
    except OSError as error:
        logger.warning("%s is not needed any more and cannot be removed (%s): training continues", folder, error)
