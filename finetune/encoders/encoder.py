"""The interface of encoders: texts to tokens, padded rows of tokens to hidden states."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """The tokens of one example."""

    ids: tuple[int, ...]
    types: tuple[int, ...]
    """Token types: 0 for the first text and 1 for the second."""
    truncated: bool
    """True if the text was truncated."""


class TextEncoder(nn.Module, ABC):
    """A pretrained trunk with its tokenizer; a module, so that a classifier holds its parameters."""

    width: int
    """Width of the hidden states, D."""
    pad_id: int
    cls_id: int | None
    """Id of [CLS]; None if the tokenizer adds none."""
    mask_text: str | None
    """The mask token as text; None for an encoder without one."""
    longest: int
    """Largest number of tokens of an example, with special tokens."""

    @abstractmethod
    def tokenise(self, texts: Sequence[tuple[str, ...]], longest: int) -> list[EncodedExample]:
        """Return the tokens of texts or pairs, each truncated to `longest` tokens with special ones."""

    @abstractmethod
    def forward(self, ids_BL: Tensor, real_BL: Tensor, types_BL: Tensor) -> Tensor:
        """Return the hidden states, (B, L, D); positions where `real_BL` is false do not change the others."""

    @abstractmethod
    def layers(self) -> list[list[nn.Parameter]]:
        """Return every parameter once: the embeddings' parameters, then each layer's from the first to the last."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write all that restoring the encoder takes except the weights."""
