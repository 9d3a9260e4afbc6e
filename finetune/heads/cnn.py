"""Convolutions over an encoder's hidden states, maximum over the text, linear (Kim 2014, section 2)."""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from configs import Config
from finetune.encoders.encoder import TextEncoder
from mlm.model.dropout import Dropout


class CnnHead(Config):
    """Parallel convolutions, ReLU, maximum over the text, dropout, linear (Kim 2014, section 2)."""

    kind: Literal["cnn"] = "cnn"
    widths: tuple[Annotated[int, Field(gt=0, le=1000)], ...] = Field((3, 4, 5), min_length=1)
    """Width of the filters of each convolution, in tokens."""
    filters: int = Field(100, gt=0)
    """Number of filters of each width."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """Probability of dropping a filter's maximum before the linear layer."""

    def build(self, encoder: TextEncoder, num_classes: int) -> "KimCnn":
        """Return the network for hidden states of `encoder`'s width, with freshly drawn weights."""
        return KimCnn(self, encoder.width, num_classes)


class KimCnn(nn.Module):
    """The network of `CnnHead`."""

    def __init__(self, config: CnnHead, width: int, num_classes: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv1d(width, config.filters, span) for span in config.widths)
        self.spans = config.widths
        self.dropout = Dropout(config.dropout)
        self.output = nn.Linear(config.filters * len(config.widths), num_classes)

    def forward(self, hidden_BLD: Tensor, real_BL: Tensor, ids_BL: Tensor) -> Tensor:
        """Return the scores of the classes, (B, C).

        A window counts if its first position is real. Beyond the end of the text it reads zeros, padding or not: a text
        shorter than a filter still has a maximum, and padding does not change it.
        """
        states_BDL = hidden_BLD.masked_fill(~real_BL[:, :, None], 0.0).transpose(1, 2)
        maxima_BF = []
        for convolution, span in zip(self.convolutions, self.spans, strict=True):
            windows_BFL = convolution(F.pad(states_BDL, (0, span - 1)))
            maxima_BF.append(windows_BFL.relu().masked_fill(~real_BL[:, None, :], 0.0).amax(dim=-1))
        logits_BC: Tensor = self.output(self.dropout(torch.cat(maxima_BF, dim=-1)))
        return logits_BC
