"""Rename the tensors of a model between our names and those of another architecture."""

import itertools
from collections.abc import Iterator, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

Names: TypeAlias = Mapping[str, str | tuple[str, ...]]
"""Our name of a module, and that of the other architecture; `*` stands for the number of a layer. Several names are
those of modules whose weights are laid end to end in ours."""
ALONE = {"output_bias"}
"""Names of tensors that are no module's weight or bias."""


def to_theirs(ours: Mapping[str, Tensor], names: Names, layers: int) -> dict[str, Tensor]:
    """Return the tensors under the names of the other architecture; tensors without a name there stay out."""
    found: dict[str, Tensor] = {}
    for own, others in pairs(names, layers):
        if own in ours:
            parts = ours[own].chunk(len(others)) if len(others) > 1 else (ours[own],)
            found |= {other: part.clone() for other, part in zip(others, parts, strict=True)}
    return found


def to_ours(theirs: Mapping[str, Tensor], names: Names, layers: int) -> dict[str, Tensor]:
    """Return the tensors under our names; tensors without a name here stay out."""
    return {
        own: torch.cat([theirs[other] for other in others])
        for own, others in pairs(names, layers)
        if all(other in theirs for other in others)
    }


def pairs(names: Names, layers: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield our name of each tensor, and the other ones."""
    for own, other in names.items():
        others = (other,) if isinstance(other, str) else other
        numbers = range(layers) if "*" in own else range(1)
        for number, suffix in itertools.product(map(str, numbers), ("",) if own in ALONE else (".weight", ".bias")):
            yield own.replace("*", number) + suffix, tuple(other.replace("*", number) + suffix for other in others)
