"""Held-out loss by kind of mask, by the token that the model sees in place of the target, and by position."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs import UserError
from mlm.config import PretrainConfig
from mlm.data.batches import IGNORED, Batch
from mlm.data.corpus import Corpus
from mlm.distributed.world import World
from mlm.objectives.masked import compute_logits, heldout_batches
from mlm.training.loop import ratio

UNITS = ("token", "word", "span")
NEAR = 128
"""Positions of the first range."""


def masked_by(unit: str, config: PretrainConfig, corpus: Corpus, world: World) -> list[Batch]:
    """Return the held-out rows masked by tokens, whole words or spans, otherwise as in the run.

    Raises:
        UserError: no token is hidden.
    """
    masking = config.masking.model_copy(update={"unit": unit})
    micro = config.train.micro_batch_rows or config.train.batch_rows
    most = config.evaluation.most_rows
    batches = heldout_batches(corpus.heldout, masking, world, most_rows=most, micro_batch_rows=micro)
    if not any(batch.targets for batch in batches):
        raise UserError(f"masking.rate = {masking.rate:g} hides no token of the held-out rows: raise it")
    return batches


@dataclass(frozen=True)
class Targets:
    """The predicted tokens of held-out rows, and the model's predictions."""

    loss_M: Tensor
    """Cross-entropy in nats."""
    correct_M: Tensor
    """True where the token has the highest score."""
    labels_M: Tensor
    """The original tokens."""
    seen_M: Tensor
    """The tokens that the model sees in their place."""
    positions_M: Tensor
    """Positions within their segments, from 0."""

    @classmethod
    @torch.no_grad()
    def of(cls, model: nn.Module, batches: Sequence[Batch], world: World) -> Self:
        """Return the targets of batches, in which the model predicts them."""
        found = []
        for batch in batches:
            logits_MV, labels_M = compute_logits(model, batch, world).float(), batch.labels_BM.flatten()
            loss_M = F.cross_entropy(logits_MV, labels_M, reduction="none", ignore_index=IGNORED)
            seen_M, positions_M = (
                of_BL.gather(1, batch.predicted_BM).flatten() for of_BL in (batch.ids_BL, batch.positions_BL)
            )
            parts = (loss_M, logits_MV.argmax(dim=-1) == labels_M, labels_M, seen_M, positions_M)
            found.append([part[labels_M != IGNORED].cpu() for part in parts])
        return cls(*map(torch.cat, zip(*found, strict=True)))

    def scores(self, chosen_M: Tensor) -> Mapping[str, float | None]:
        """Return number, loss in nats, perplexity and accuracy of chosen targets; the measures of none are None."""
        targets = int(chosen_M.sum())
        loss, accuracy = (
            ratio(of_M[chosen_M].double().sum().item(), targets) for of_M in (self.loss_M, self.correct_M)
        )
        perplexity = None if loss is None else torch.tensor(loss, dtype=torch.float64).exp().item()
        return {"targets": targets, "loss": loss, "perplexity": perplexity, "accuracy": accuracy}


def by_corruption(targets: Targets, mask_id: int) -> Mapping[str, Mapping[str, float | None]]:
    """Return the scores of all targets, then by the token seen in their place."""
    seen_M, labels_M = targets.seen_M, targets.labels_M
    kinds = {
        "all": torch.ones_like(targets.correct_M),
        "[MASK]": seen_M == mask_id,
        "random": (seen_M != mask_id) & (seen_M != labels_M),
        "itself": seen_M == labels_M,
    }
    return {kind: targets.scores(chosen_M) for kind, chosen_M in kinds.items()}


def by_position(targets: Targets) -> Mapping[str, Mapping[str, float | None]]:
    """Return the scores by the position in the segment: 0-127, then 128-255, 256-511 and so on, each twice as many."""
    found, start, end = {}, 0, NEAR
    while start <= targets.positions_M.max():
        found[f"{start}-{end - 1}"] = targets.scores((start <= targets.positions_M) & (targets.positions_M < end))
        start, end = end, 2 * end
    return found
