"""Masked language modelling in some rows, and the detection of swapped and random tokens in the others."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mlm.data.batches import IGNORED, Batch
from mlm.data.detection import KEPT, Detection
from mlm.data.masking import row_keys, uniform
from mlm.distributed.device import autocast
from mlm.model.attention import SegmentMask
from mlm.objectives.masked import MaskedLMTask

SUMS = ("loss/detection", "targets/detection", "recall/changed", "targets/changed")
"""Names of the sums over all tokens that are asked for, and over the swapped and random ones among them."""
_STREAM = 0x646574656374
"""Makes the keys of steps other numbers than those of rows."""


@dataclass(frozen=True)
class DetectionTask(MaskedLMTask):
    """Predict the masked tokens of some rows of a step, and detect swapped and random tokens in the others."""

    detection: Detection = field(kw_only=True)

    def are_for_detection(self, first: int, rows: int) -> NDArray[np.bool_]:
        """Return which of some rows have tokens to detect, evenly spread; `first` is the first one's number."""
        step, place = divmod(first, self.batch_rows)
        # A random place to begin at: a regular one could meet one corpus of a mixture alone.
        begin = uniform(row_keys(self.seed ^ _STREAM, np.array([step]), np.zeros(1, np.int64)))
        ends = np.floor(np.arange(place, place + rows + 1) * self.detection.row_share + begin)
        chosen_B: NDArray[np.bool_] = np.diff(ends) > 0
        return chosen_B

    def batch(self, rows_B: NDArray[np.int64], epochs_B: NDArray[np.int64], first: int, fraction: float) -> Batch:
        """Return the rows of both kinds, apart; before `begin` all of them are masked."""
        if fraction < self.detection.begin:
            return super().batch(rows_B, epochs_B, first, fraction)
        chosen_B = self.are_for_detection(first, len(rows_B))
        masked = super().batch(rows_B[~chosen_B], epochs_B[~chosen_B], first, fraction)
        others = self.train.with_changes(rows_B[chosen_B], epochs_B[chosen_B], self.detection, self.seed)
        return replace(masked, detection=others, tokens=masked.tokens + others.tokens)

    def losses(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Return the sums of the masked tokens, and `loss/detection` and `recall/changed`.

        The latter is the number of swapped and random tokens that are told as such. The gradient of `loss` is that of
        both losses; its value is that of the masked tokens alone, to be compared with the held-out loss.
        """
        others = batch.detection
        if others is None:
            return {**super().losses(model, batch), **dict.fromkeys(SUMS, batch.ids_BL.new_zeros(()))}
        dtype = self.world.dtype
        with autocast(self.world.device, dtype):
            masked_mask, others_mask = (
                SegmentMask.of(rows.segments_BL, rows.positions_BL, dtype, compiled=self.compiled)
                for rows in (batch, others)
            )
            scores_MV, scores_BLC = model(batch.ids_BL, masked_mask, batch.predicted_BM, (others.ids_BL, others_mask))
        sums, classes_N = self.sums(scores_MV, batch), others.labels_BM.flatten()
        scores_NC = scores_BLC.flatten(0, 1).to(torch.promote_types(scores_BLC.dtype, torch.float32))
        loss = F.cross_entropy(scores_NC, classes_N, ignore_index=IGNORED, reduction="sum")
        changed_N = classes_N > KEPT
        found_N = changed_N & (scores_NC.argmax(dim=1) == classes_N)
        sums["loss"] = sums["loss"] + self.detection.weight * (loss - loss.detach())
        counted = loss, (classes_N != IGNORED).sum(), found_N.sum(), changed_N.sum()
        return sums | dict(zip(SUMS, counted, strict=True))
