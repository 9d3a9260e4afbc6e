"""Heads: networks that turn an encoder's hidden states into scores of the classes.

Here: one file a head, with its settings and its network, the union of their settings, which is the registry, and the
scale of numbers.
Not here: encoders, training, commands.
"""

from collections.abc import Mapping
from typing import Annotated, get_args

from pydantic import Field
from torch import nn

from finetune.encoders.encoder import TextEncoder
from finetune.heads.cnn import CnnHead
from finetune.heads.linear import LinearHead
from finetune.heads.number import NumberHead as NumberHead

Head = Annotated[CnnHead | LinearHead, Field(discriminator="kind")]
"""The settings of a head. `build(encoder, num_classes)` returns the network with freshly drawn weights; it maps hidden
states (B, L, D), where they are real (B, L) and token ids (B, L) to scores (B, C)."""


def network_of(head: CnnHead | LinearHead, encoder: TextEncoder, num_classes: int) -> nn.Module:
    """Return the network of a head with freshly drawn weights; a single class is a number."""
    network = head.build(encoder, num_classes)
    return network if num_classes > 1 else NumberHead(network)


HEADS: Mapping[str, type[CnnHead | LinearHead]] = {head().kind: head for head in get_args(get_args(Head)[0])}
"""The settings of each head by its kind."""
