"""Position-wise feed-forward layers (Vaswani et al. 2017, section 3.3; gated: Shazeer 2020)."""

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["relu", "gelu", "swish"]

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "swish": F.silu}
"""swish: x * sigmoid(x) (Ramachandran et al. 2017); gelu: with the exact error function (Hendrycks & Gimpel 2016)"""


class FeedForward(nn.Module):
    """Widen, activate, narrow: activation(xW + b)V + c."""

    def __init__(self, width: int, feedforward_width: int, activation: Activation, biases: bool) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.input = nn.Linear(width, feedforward_width, bias=biases)
        self.output = nn.Linear(feedforward_width, width, bias=biases)

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """Return the transformed states, (B, L, D)."""
        output_BLD: Tensor = self.output(self.activation(self.input(hidden_BLD)))
        return output_BLD


class GatedFeedForward(nn.Module):
    """Widen twice, gate one by the other's activation, narrow: (activation(xW) * xU)V."""

    def __init__(self, width: int, feedforward_width: int, activation: Activation, biases: bool) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.input = nn.Linear(width, 2 * feedforward_width, bias=biases)
        self.output = nn.Linear(feedforward_width, width, bias=biases)

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """Return the transformed states, (B, L, D)."""
        activated_BLF, gate_BLF = self.input(hidden_BLD).chunk(2, dim=-1)
        output_BLD: Tensor = self.output(self.activation(activated_BLF) * gate_BLF)
        return output_BLD
