"""Masked language modelling as a task of the training loop (Devlin et al. 2019, section 3.1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlm.data import IGNORED, Batch, PackedRows
from mlm.distributed import World
from mlm.masking import Masking
from mlm.model.attention import Layout

LOSS_ROWS = 128
HELDOUT_SEED = 20181011
"""Seed of the held-out masks: the same for every run, so that runs on the same shards can be compared."""


@dataclass(frozen=True)
class MaskedLanguageModelling:
    """Predict the masked tokens of a corpus."""

    train: PackedRows
    heldout: Sequence[Batch]
    masking: Masking
    world: World
    seed: int
    batch_rows: int
    """Rows of a step, over all ranks and micro-batches."""
    micro_batch_rows: int
    """Rows that are computed at once on each rank."""

    def micro_batches(self, step: int, progress: float) -> Sequence[Batch]:
        """Return this rank's micro-batches: a function of seed and step, and of progress through the mask rate."""
        rows_B, epochs_B = self.train.step_rows(self.seed, step, self.batch_rows)
        rows_B, epochs_B = rows_B[self.world.rank :: self.world.size], epochs_B[self.world.rank :: self.world.size]
        rate = self.masking.rate_at(progress)
        return [
            self.train.masked(rows_B[cut], epochs_B[cut], self.masking, rate, self.seed).to(self.world.device)
            for cut in _cuts(len(rows_B), self.micro_batch_rows)
        ]

    def losses(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Return the summed cross-entropy in nats, and how many predictions were right."""
        scores_MV = score(model, batch, self.world)
        return {
            "loss": summed_cross_entropy(scores_MV, batch.labels_M),
            # max finds the same index as argmax, and in bfloat16 on CPU five times as fast
            "correct": (scores_MV.detach().max(dim=-1).indices == batch.labels_M).sum(),
        }

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        """Return mean loss in nats and accuracy on the held-out rows, whose masks are drawn once and fixed."""
        totals = [self.losses(model, batch) for batch in self.heldout]
        targets = sum(batch.targets for batch in self.heldout)
        return {
            "loss": sum(total["loss"].item() for total in totals) / targets,
            "accuracy": sum(total["correct"].item() for total in totals) / targets,
        }


def summed_cross_entropy(scores_MV: Tensor, labels_M: Tensor) -> Tensor:
    """Return the summed cross-entropy in nats, in float32; IGNORED labels weigh nothing.

    It is taken a few rows at a time: the float32 scores then stay in the cache, and below the size from which the
    C library gives memory back to the system after every use (three times as fast on CPU at a vocabulary of 8,192).
    """
    parts = zip(torch.split(scores_MV, LOSS_ROWS), torch.split(labels_M, LOSS_ROWS), strict=True)
    losses = [F.cross_entropy(s.float(), labels, reduction="sum", ignore_index=IGNORED) for s, labels in parts]
    return torch.stack(losses).sum()


def score(model: nn.Module, batch: Batch, world: World) -> Tensor:
    """Return the model's scores of the vocabulary for each of the batch's slots, (M, V), in the world's precision."""
    with world.autocast():
        layout = Layout.of(batch.segments_BL, batch.positions_BL, world.dtype)
        scores_MV: Tensor = model(batch.ids_BL, layout, batch.predicted_M)
    return scores_MV


def heldout_batches(
    rows: PackedRows, masking: Masking, world: World, *, most_rows: int, micro_batch_rows: int
) -> list[Batch]:
    """Mask the first `most_rows` held-out rows, in an order of their own, once and for all."""
    rows_B, _ = rows.step_rows(HELDOUT_SEED, 0, min(most_rows, len(rows)))
    return [
        rows.masked(rows_B[cut], np.zeros_like(rows_B[cut]), masking, masking.rate, HELDOUT_SEED).to(world.device)
        for cut in _cuts(len(rows_B), micro_batch_rows)
    ]


def _cuts(rows: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, rows, size)]
