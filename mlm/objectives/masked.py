"""Masked language modelling as a task of the training loop (Devlin et al. 2019, section 3.1)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mlm.data.batches import IGNORED, Batch, PackedRows
from mlm.data.masking import Masking
from mlm.distributed.device import autocast
from mlm.distributed.world import World
from mlm.model.attention import SegmentMask

CHUNK, CHUNK_ON_DEVICE = 64, 4096
"""Predictions whose loss is computed at once: few on CPU, so that their float32 values stay in the cache."""
HELDOUT_SEED = 20181011
"""Seed of the held-out masks: the same for every run, so that runs on the same shards can be compared."""


@dataclass(frozen=True)
class MaskedLMTask:
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
    compiled: bool = False
    """True if the model's layers are compiled; on CUDA the loss is then compiled as well."""
    corpora: Sequence[str] = ()
    """Names of the corpora of a mixture, whose losses are told apart."""

    def micro_batches(self, step: int, fraction: float) -> Sequence[Batch]:
        """Return this rank's micro-batches, by seed and step, and by `fraction` if the mask rate changes."""
        rows_B, epochs_B = self.train.order.rows(self.seed, step, self.batch_rows)
        rate = self.masking.rate_at(fraction)
        # Compiled layers need steps of the same shapes; all others save the slots that a falling rate leaves empty.
        slots = self.masking.slots(self.train.row_length, None if self.compiled else rate)

        def masked(cut: slice) -> Batch:
            batch = self.train.masked(rows_B[cut], epochs_B[cut], self.masking, rate, self.seed)
            return batch.with_slots(slots).to(self.world.device)

        # A rank without rows computes a batch without targets: the ranks compute together.
        cuts = self.world.share(len(rows_B), self.micro_batch_rows)
        return [masked(cut) if cut.start < len(rows_B) else masked(slice(1)).without_targets() for cut in cuts]

    def documents(self, step: int) -> str:
        """Return the numbers of the documents that a step reads from, and their folders."""
        rows_B, _ = self.train.order.rows(self.seed, step, self.batch_rows)
        return self.train.documents(rows_B)

    def losses(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Return the summed cross-entropy in nats, and the number of correct predictions.

        Of a mixture, return also loss and targets of each corpus, as `loss/NAME` and `targets/NAME`.
        """
        logits_MV = compute_logits(model, batch, self.world, compiled=self.compiled)
        fused = self.compiled and self.world.device.type == "cuda"
        cross_entropy = compiled_cross_entropy() if fused else chunked_cross_entropy
        loss, correct, losses_M = cross_entropy(logits_MV, batch.labels_BM.flatten())
        sums = {"loss": loss, "correct": correct}
        if batch.corpora_B is not None:
            filled_BM = (batch.labels_BM != IGNORED).to(losses_M.dtype)
            for number, name in enumerate(self.corpora):
                mine_B = batch.corpora_B == number
                sums[f"loss/{name}"] = losses_M.view_as(filled_BM)[mine_B].sum()
                sums[f"targets/{name}"] = filled_BM[mine_B].sum()
        return sums

    def corpus_progress(self, step: int) -> Mapping[str, Mapping[str, float]]:
        """Return how often each corpus of a mixture has been read after `step` steps, and about how many tokens."""
        rows, order = step * self.batch_rows, self.train.order
        each = zip(self.corpora, order.shares, order.sizes, self.train.tokens_per_row_of_corpora.tolist(), strict=False)
        return {
            name: {"epochs": rows * share / size, "tokens": rows * share * tokens} for name, share, size, tokens in each
        }

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        """Return mean loss in nats and accuracy on the held-out rows, whose masks are fixed; of each corpus too.

        Each rank computes some of the batches, and every row counts once.
        """
        mine = self.heldout[self.world.rank :: self.world.size]
        idle = [self.heldout[0].without_targets()] * (len(self.world.share(len(self.heldout), 1)) - len(mine))
        totals = [self.losses(model, batch) for batch in (*mine, *idle)]
        summed = self.world.sum([sum(total[name].item() for total in totals) for name in totals[0]])
        sums = dict(zip(totals[0], summed, strict=True))
        targets = sum(batch.targets for batch in self.heldout)
        of_corpora = {f"loss/{name}": sums[f"loss/{name}"] / sums[f"targets/{name}"] for name in self.corpora}
        return {"loss": sums["loss"] / targets, "accuracy": sums["correct"] / targets} | of_corpora


def chunked_cross_entropy(logits_MV: Tensor, labels_M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the summed cross-entropy in nats, the number of correct predictions, and each label's loss.

    IGNORED labels count as zero. The losses of labels have no gradient.

    The sum is computed in float32 or better, and so is its gradient, in the same pass.
    """
    loss, correct, losses_M = _ChunkedCrossEntropy.apply(logits_MV, labels_M)  # type: ignore[no-untyped-call]
    return loss, correct, losses_M


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The loss and its gradient, which need the same exponentials: computed together, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, logits_MV: Tensor, labels_M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dtype = torch.promote_types(logits_MV.dtype, torch.float32)
        loss, correct = logits_MV.new_zeros((), dtype=dtype), labels_M.new_zeros(())
        losses_M = logits_MV.new_empty(len(logits_MV), dtype=dtype)
        gradient_MV = torch.empty_like(logits_MV) if ctx.needs_input_grad[0] else None
        chunk = CHUNK if logits_MV.device.type == "cpu" else CHUNK_ON_DEVICE
        for start in range(0, len(logits_MV), chunk):
            part = slice(start, start + chunk)
            scores, filled = logits_MV[part], labels_M[part] != IGNORED
            labels = labels_M[part].clamp(min=0)[:, None]
            highest, best = scores.max(dim=-1, keepdim=True)  # in bfloat16 on CPU five times as fast as argmax
            probabilities = scores.softmax(dim=-1, dtype=dtype)
            # -log p(label) by the best one, whose probability is at least 1 / V; that of the label may underflow.
            margin = highest.to(dtype) - scores.gather(1, labels).to(dtype)
            losses_M[part] = (margin - probabilities.gather(1, best).log()).squeeze(1) * filled
            loss += losses_M[part].sum()
            correct += ((best == labels).squeeze(1) & filled).sum()
            if gradient_MV is not None:
                probabilities.scatter_add_(1, labels, probabilities.new_full(labels.shape, -1.0))
                gradient_MV[part] = probabilities.mul_(filled[:, None])
        ctx.save_for_backward(gradient_MV)
        ctx.mark_non_differentiable(correct, losses_M)
        return loss, correct, losses_M

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor, None]:
        (gradient_MV,) = ctx.saved_tensors
        return gradient_MV * upstream, None


def eager_cross_entropy(logits_MV: Tensor, labels_M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same as `chunked_cross_entropy`, in more memory if eager, and in less time if compiled for CUDA."""
    exact_MV = logits_MV.to(torch.promote_types(logits_MV.dtype, torch.float32))
    losses_M = F.cross_entropy(exact_MV, labels_M, ignore_index=IGNORED, reduction="none")
    return losses_M.sum(), (logits_MV.argmax(dim=-1) == labels_M).sum(), losses_M.detach()


@cache
def compiled_cross_entropy() -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Return `eager_cross_entropy` as two kernels that read the scores once each."""
    return torch.compile(eager_cross_entropy, dynamic=False)


def compute_logits(model: nn.Module, batch: Batch, world: World, *, compiled: bool = False) -> Tensor:
    """Return the logits of each slot, (B * M, V), in the world's precision; `compiled` if the model's layers are."""
    with autocast(world.device, world.dtype):
        segment_mask = SegmentMask.of(batch.segments_BL, batch.positions_BL, world.dtype, compiled=compiled)
        logits_MV: Tensor = model(batch.ids_BL, segment_mask, batch.predicted_BM)
    return logits_MV


def heldout_batches(
    rows: PackedRows, masking: Masking, world: World, *, most_rows: int, micro_batch_rows: int
) -> list[Batch]:
    """Return the first `most_rows` held-out rows of a fixed shuffle, with fixed masks; of a mixture those of each."""
    rows_B = rows.order.first_rows(HELDOUT_SEED, most_rows)
    epochs_B = np.zeros_like(rows_B)
    cuts = [slice(start, start + micro_batch_rows) for start in range(0, len(rows_B), micro_batch_rows)]
    batches = [rows.masked(rows_B[cut], epochs_B[cut], masking, masking.rate, HELDOUT_SEED) for cut in cuts]
    return [batch.to(world.device) for batch in batches]
