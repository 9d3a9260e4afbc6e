"""One linear layer over an encoder's pooled hidden states (Devlin et al. 2019, section 4.1)."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from configs import Config, UserError
from finetune.encoders.encoder import TextEncoder
from mlm.model.dropout import Dropout

Pooling = Literal["cls", "mean", "max"]


class LinearHead(Config):
    """Pool the hidden states, dropout, linear."""

    kind: Literal["linear"] = "linear"
    pooling: Pooling = "mean"
    """The pooled state of a text: that of its [CLS], or the mean or the maximum over its tokens."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Probability of dropping an element of the pooled state."""

    def build(self, encoder: TextEncoder, num_classes: int) -> "PooledLinear":
        """Return the network with freshly drawn weights; a UserError if [CLS] is pooled and the tokenizer adds none."""
        if self.pooling == "cls" and encoder.cls_id is None:
            raise UserError("head.pooling=cls: this encoder's tokenizer adds no [CLS]: set head.pooling=mean or max")
        return PooledLinear(self, encoder.width, encoder.cls_id, num_classes)


class PooledLinear(nn.Module):
    """The network of `LinearHead`."""

    def __init__(self, config: LinearHead, width: int, cls_id: int | None, num_classes: int) -> None:
        super().__init__()
        self.pooling, self.cls_id = config.pooling, -1 if cls_id is None else cls_id
        self.dropout = Dropout(config.dropout)
        self.output = nn.Linear(width, num_classes)

    def forward(self, hidden_BLD: Tensor, real_BL: Tensor, ids_BL: Tensor) -> Tensor:
        """Return the scores of the classes, (B, C)."""
        real_BL1 = real_BL[:, :, None]
        if self.pooling == "cls":
            first_B = (ids_BL.eq(self.cls_id) & real_BL).int().argmax(dim=1)
            rows_B = torch.arange(hidden_BLD.shape[0], device=hidden_BLD.device)  # ONNX takes len for a constant
            pooled_BD = hidden_BLD[rows_B, first_B]
        elif self.pooling == "mean":
            pooled_BD = hidden_BLD.masked_fill(~real_BL1, 0.0).sum(dim=1) / real_BL1.sum(dim=1)
        else:
            pooled_BD = hidden_BLD.masked_fill(~real_BL1, float("-inf")).amax(dim=1)
        logits_BC: Tensor = self.output(self.dropout(pooled_BD))
        return logits_BC
