import math

import torch
from torch import Tensor, nn

from mlm.data.batches import IGNORED, Batch
from mlm.evaluation.by_target import Targets, by_corruption, by_position
from mlm.model.attention import SegmentMask
from tests.mlm.samples import CPU

MASK, VOCABULARY = 3, 7


class KnowsThePosition(nn.Module):
    """Gives the token 5 a score that is the position of the target, and the others 0."""

    def forward(self, ids_BL: Tensor, segment_mask: SegmentMask, predicted_BM: Tensor) -> Tensor:
        logits_MV = torch.zeros(predicted_BM.numel(), VOCABULARY)
        logits_MV[:, 5] = segment_mask.positions_BL.gather(1, predicted_BM).flatten()
        return logits_MV


def test_targets_are_scored_by_position_in_the_segment_and_by_the_token_seen() -> None:
    length = 700
    positions_BL = torch.cat([torch.arange(100), torch.arange(600)])[None]
    segments_BL = torch.cat([torch.ones(100), torch.full((600,), 2)]).int()[None]
    predicted_BM = torch.tensor([[99, 100 + 128, 100 + 255, 100 + 511, 100 + 512, 0, 0]])
    labels_BM = torch.tensor([[5, 5, 6, 6, 5, IGNORED, IGNORED]])
    ids_BL = torch.full((1, length), MASK)
    ids_BL[0, 100 + 255], ids_BL[0, 100 + 511] = 4, 6
    batch = Batch(ids_BL, segments_BL, positions_BL, predicted_BM, labels_BM, targets=5, tokens=length)
    targets = Targets.of(KnowsThePosition(), [batch, batch], CPU)

    def loss(position: int, right: bool) -> float:
        return math.log(math.exp(position) + VOCABULARY - 1) - position * right

    near, *others = by_position(targets).items()
    assert near[0] == "0-127"
    assert (near[1]["targets"], near[1]["accuracy"]) == (2, 1)
    assert [(name, scores["targets"], scores["accuracy"]) for name, scores in others] == [
        ("128-255", 4, 0.5),
        ("256-511", 2, 0),
        ("512-1023", 2, 1),
    ]
    expected = [loss(99, True), (loss(128, True) + loss(255, False)) / 2, loss(511, False), loss(512, True)]
    found = [scores["loss"] for scores in by_position(targets).values()]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected))
    assert {kind: scores["targets"] for kind, scores in by_corruption(targets, MASK).items()} == {
        "all": 10,
        "[MASK]": 6,
        "random": 2,
        "itself": 2,
    }
