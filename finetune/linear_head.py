"""One linear layer over an encoder's pooled outputs: the head of Devlin et al. 2019, section 4.1."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from configs import UserError, command
from finetune import command_line
from finetune.config import FinetuneConfig
from finetune.encoders.encoder import TextEncoder
from finetune.heads import HeadConfig

Pooling = Literal["cls", "mean", "max"]


class LinearHead(HeadConfig):
    """Pool the hidden states, dropout, linear."""

    kind: Literal["linear"] = "linear"
    pooling: Pooling = "mean"
    """What stands for the text: the state of its [CLS], or the mean or the maximum over its tokens."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Probability of dropping an element of the pooled state."""

    def build(self, encoder: TextEncoder, classes: int) -> nn.Module:
        """Return the head for `encoder`'s hidden states, with freshly drawn weights.

        Raises:
            UserError: [CLS] is asked of an encoder whose tokenizer puts none.

        """
        if self.pooling == "cls" and encoder.cls_id is None:
            raise UserError("head.pooling=cls: this encoder's tokenizer puts no [CLS]: set head.pooling=mean or max")
        return Linear(self, encoder.width, encoder.cls_id, classes)


class Linear(nn.Module):
    """The head's network."""

    def __init__(self, config: LinearHead, width: int, cls_id: int | None, classes: int) -> None:
        super().__init__()
        self.pool, self.cls_id = POOLINGS[config.pooling], cls_id
        self.dropout = nn.Dropout(config.dropout)
        self.output = nn.Linear(width, classes)

    def forward(self, hidden_BLD: Tensor, real_BL: Tensor, ids_BL: Tensor) -> Tensor:
        """Return the scores of the classes, (B, C)."""
        pooled_BD = self.pool(hidden_BLD, real_BL, ids_BL.eq(-1 if self.cls_id is None else self.cls_id))
        scores_BC: Tensor = self.output(self.dropout(pooled_BD))
        return scores_BC


def _cls(hidden_BLD: Tensor, real_BL: Tensor, cls_BL: Tensor) -> Tensor:
    first_B = (cls_BL & real_BL).int().argmax(dim=1)
    return hidden_BLD[torch.arange(len(hidden_BLD), device=hidden_BLD.device), first_B]


def _mean(hidden_BLD: Tensor, real_BL: Tensor, cls_BL: Tensor) -> Tensor:
    return hidden_BLD.masked_fill(~real_BL[:, :, None], 0.0).sum(dim=1) / real_BL.sum(dim=1, keepdim=True)


def _max(hidden_BLD: Tensor, real_BL: Tensor, cls_BL: Tensor) -> Tensor:
    return hidden_BLD.masked_fill(~real_BL[:, :, None], float("-inf")).amax(dim=1)


POOLINGS: dict[Pooling, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"cls": _cls, "mean": _mean, "max": _max}


class Recipe(FinetuneConfig):
    """Every setting of fine-tuning with this head."""

    head: LinearHead = LinearHead()
    """The head."""


parse = partial(command_line.parse, "linear_head", __doc__, Recipe)
main = partial(command_line.main, "linear_head", __doc__, Recipe)

if __name__ == "__main__":
    command.run(main)
