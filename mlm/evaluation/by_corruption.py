"""Held-out loss by kind of mask, and by the token that the model sees in place of the target."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from mlm.config import PretrainConfig
from mlm.data.batches import IGNORED, Batch
from mlm.data.corpus import Corpus
from mlm.distributed.world import World
from mlm.objectives.masked import heldout_batches, score
from mlm.training.loop import ratio

UNITS = ("token", "word", "span")


def masked_by(unit: str, config: PretrainConfig, corpus: Corpus, world: World) -> list[Batch]:
    """Return the held-out rows masked by tokens, whole words or spans, otherwise as in the run."""
    masking = config.masking.model_copy(update={"unit": unit})
    micro = config.train.micro_batch_rows or config.train.batch_rows
    most = config.evaluation.most_rows
    return heldout_batches(corpus.heldout, masking, world, most_rows=most, micro_batch_rows=micro)


@torch.no_grad()
def by_corruption(
    model: nn.Module, batches: Sequence[Batch], world: World, mask_id: int
) -> Mapping[str, Mapping[str, float | None]]:
    """Return targets, loss in nats, perplexity and accuracy: of all targets, then by the token seen in their place.

    The measures of a kind without targets are None.
    """
    losses, correct, seen, labels = [], [], [], []
    for batch in batches:
        scores_MV = score(model, batch, world).float()
        labels_M = batch.labels_BM.flatten()
        losses.append(F.cross_entropy(scores_MV, labels_M, reduction="none", ignore_index=IGNORED))
        correct.append(scores_MV.argmax(dim=-1) == labels_M)
        seen.append(batch.ids_BL.gather(1, batch.predicted_BM).flatten())
        labels.append(labels_M)
    loss_M, correct_M, seen_M, labels_M = (torch.cat(parts).cpu() for parts in (losses, correct, seen, labels))
    real_M = labels_M != IGNORED
    kinds = {
        "all": real_M,
        "[MASK]": real_M & (seen_M == mask_id),
        "random": real_M & (seen_M != mask_id) & (seen_M != labels_M),
        "itself": real_M & (seen_M == labels_M),
    }
    scores: dict[str, dict[str, float | None]] = {}
    for kind, chosen_M in kinds.items():
        targets = int(chosen_M.sum())
        loss, accuracy = (ratio(of_M[chosen_M].double().sum().item(), targets) for of_M in (loss_M, correct_M))
        perplexity = None if loss is None else torch.tensor(loss, dtype=torch.float64).exp().item()
        scores[kind] = {"targets": targets, "loss": loss, "perplexity": perplexity, "accuracy": accuracy}
    return scores
