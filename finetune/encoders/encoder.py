"""The interface of encoders: texts to tokens, padded rows of tokens to hidden states."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """One example as an encoder reads it."""

    ids: tuple[int, ...]
    types: tuple[int, ...]
    """0 for the first text and 1 for the second."""
    truncated: bool
    """Whether the end of the text was cut off."""


class TextEncoder(nn.Module, ABC):
    """A pretrained trunk with its tokenizer."""

    width: int
    """Width of the hidden states, D."""
    pad_id: int
    cls_id: int | None
    """Id of the token that stands for the whole text, if the tokenizer puts one."""
    mask_text: str | None
    """How a hidden word is written in a text; None for an encoder that knows none."""
    longest: int
    """Most tokens of an example, special ones counted."""

    @abstractmethod
    def tokenise(self, texts: Sequence[tuple[str, ...]], longest: int) -> list[EncodedExample]:
        """Return the tokens of texts or pairs of texts, each cut to `longest` with special tokens counted."""

    @abstractmethod
    def forward(self, ids_BL: Tensor, real_BL: Tensor, types_BL: Tensor) -> Tensor:
        """Return the hidden states, (B, L, D); what stands where `real_BL` is false changes none of the others."""

    @abstractmethod
    def layers(self) -> list[list[nn.Parameter]]:
        """Return every parameter once: those of the embeddings, then of each layer from the first to the last."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what `restore` needs but for the weights."""
