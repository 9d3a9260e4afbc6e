"""Masked language modelling beside telling moved tokens from the others (Shuffle + Random of Yamaguchi et al. 2021)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from mlm.data.batches import IGNORED, Batch
from mlm.data.moving import KEPT, MovedTokens
from mlm.distributed.device import autocast
from mlm.model.attention import SegmentMask
from mlm.objectives.masked import MaskedLMTask, plain_cross_entropy

MOVED_SUMS = ("loss/moved", "targets/moved", "recall/changed", "targets/changed")


@dataclass(frozen=True)
class MovedTokensTask(MaskedLMTask):
    """Predict the masked tokens of most rows of a step, and tell those that were moved in the others."""

    settings: MovedTokens = field(kw_only=True)

    def are_moved(self, first: int, rows: int) -> NDArray[np.bool_]:
        """Return whether each of some rows of a step has moved tokens: kinds of rows are spread evenly."""
        ends = np.floor(np.arange(first, first + rows + 1) * self.settings.row_share)
        moved_B: NDArray[np.bool_] = np.diff(ends) > 0
        return moved_B

    def batch(self, rows_B: NDArray[np.int64], epochs_B: NDArray[np.int64], first: int, fraction: float) -> Batch:
        """Return the rows of both kinds, apart; before the second kind begins, all of the first."""
        if fraction < self.settings.begin:
            return super().batch(rows_B, epochs_B, first, fraction)
        moved_B = self.are_moved(first, len(rows_B))
        hidden = super().batch(rows_B[~moved_B], epochs_B[~moved_B], first, fraction)
        moved = self.train.moved(rows_B[moved_B], epochs_B[moved_B], self.settings, self.seed)
        return replace(hidden, moved=moved, tokens=hidden.tokens + moved.tokens)

    def losses(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Return those of the masked tokens, and `loss/moved` and `recall/changed`, the moved and foreign tokens found.

        The gradient of `loss` is that of both losses; its value is that of masked tokens, to be compared with held-out
        ones.
        """
        if batch.moved is None:
            nothing = batch.ids_BL.new_zeros(())
            return {**super().losses(model, batch), **dict.fromkeys(MOVED_SUMS, nothing)}
        dtype = self.world.dtype
        with autocast(self.world.device, dtype):
            hidden_mask, moved_mask = (
                SegmentMask.of(rows.segments_BL, rows.positions_BL, dtype, compiled=self.compiled)
                for rows in (batch, batch.moved)
            )
            scores_MV, scores_BLC = model(
                batch.ids_BL, hidden_mask, batch.predicted_BM, (batch.moved.ids_BL, moved_mask)
            )
        sums = self.sums(scores_MV, batch)
        classes_N = batch.moved.labels_BM.flatten()
        loss, _, _ = plain_cross_entropy(scores_BLC.flatten(0, 1), classes_N)
        changed_N = classes_N > KEPT
        found_N = changed_N & (scores_BLC.flatten(0, 1).argmax(dim=1) == classes_N)
        sums["loss"] = sums["loss"] + self.settings.weight * (loss - loss.detach())
        counted = loss, (classes_N != IGNORED).sum(), found_N.sum(), changed_N.sum()
        return sums | dict(zip(MOVED_SUMS, counted, strict=True))
