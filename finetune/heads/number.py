"""A head that predicts a number instead of scores of classes."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from finetune.evaluation.metrics import deviation_of


class NumberHead(nn.Module):
    """A network whose one output counts standard deviations of the training numbers from their mean.

    So a rate that suits the scores of classes suits prices and years too. It is computed in float32: in bfloat16 most
    predictions would be equal to others.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("deviation", torch.ones(()))

    def scale_to(self, numbers_N: NDArray[np.float64]) -> None:
        """Take mean and deviation of the training numbers."""
        self.mean.fill_(float(numbers_N.mean()))
        self.deviation.fill_(deviation_of(numbers_N))

    def forward(self, hidden_BLD: Tensor, real_BL: Tensor, ids_BL: Tensor) -> Tensor:
        """Return the numbers, (B, 1)."""
        with torch.autocast(hidden_BLD.device.type, enabled=False):
            number_B1: Tensor = self.network(hidden_BLD.float(), real_BL, ids_BL) * self.deviation + self.mean
        return number_B1
