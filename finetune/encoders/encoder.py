"""The interface of encoders: texts to tokens, padded rows of tokens to hidden states."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """The tokens of one example."""

    ids: tuple[int, ...]
    types: tuple[int, ...]
    """Token types: 0 for the first text and 1 for the second."""
    truncated: bool


class TextEncoder(nn.Module, ABC):
    """A pretrained trunk with its tokenizer; a module, so that a classifier holds its parameters."""

    width: int
    """Width of the hidden states, D."""
    pad_id: int
    cls_id: int | None
    """Id of [CLS]; None if the tokenizer adds none."""
    has_mask: bool
    """True if the tokenizer has a mask token, which MASKED in a text stands for."""
    longest: int
    """Largest number of tokens of an example, with special tokens."""
    trains_on_threads = False
    """True if threads may train replicas of it: its dropout does not draw from one source of random numbers for all."""

    @abstractmethod
    def tokenize(self, texts: Sequence[tuple[str, ...]], longest: int) -> list[EncodedExample]:
        """Return the tokens of texts or pairs, each truncated to `longest` tokens with special ones.

        Special tokens in a text are plain text, but for MASKED.
        """

    @abstractmethod
    def as_read(self, text: str) -> str:
        """Return what the tokenizer reads of a text that has single spaces: texts that it reads alike are equal."""

    @abstractmethod
    def forward(self, ids_BL: Tensor, real_BL: Tensor, types_BL: Tensor) -> Tensor:
        """Return the hidden states, (B, L, D); positions where `real_BL` is false do not change the others."""

    @abstractmethod
    def layers(self) -> list[list[nn.Parameter]]:
        """Return every parameter once: the embeddings' parameters, then each layer's from the first to the last."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write all that restoring the encoder takes except the weights."""


def padded(tokens: Sequence[EncodedExample], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the examples in rows as long as the longest: ids, true for tokens and false for padding, types; (B, L)."""
    lengths_B = np.array([len(example.ids) for example in tokens])
    real_BL = np.arange(lengths_B.max()) < lengths_B[:, None]
    ids_BL, types_BL = np.full(real_BL.shape, pad_id, np.int64), np.zeros(real_BL.shape, np.int64)
    ids_BL[real_BL] = np.concatenate([example.ids for example in tokens])
    types_BL[real_BL] = np.concatenate([example.types for example in tokens])
    return torch.from_numpy(ids_BL), torch.from_numpy(real_BL), torch.from_numpy(types_BL)
