"""Encoders as fine-tuning sees them: texts to padded rows of tokens, rows to hidden states; and our own as one."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from configs import dump, read
from mlm.checkpoint import checkpoint
from mlm.config import PretrainConfig
from mlm.distributed.device import autocast_dtype
from mlm.model.attention import SegmentMask
from mlm.model.heads import MaskedLanguageModel
from mlm.model.initialise import initialise
from tokenizer import vocabulary
from tokenizer.vocabulary import CLS, PAD, SEP, SPECIAL_TOKENS


@dataclass(frozen=True, slots=True)
class Tokens:
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
    def tokenise(self, texts: Sequence[tuple[str, ...]], longest: int) -> list[Tokens]:
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


class RunEncoder(TextEncoder):
    """The encoder of a pretraining run."""

    def __init__(self, recipe: PretrainConfig, tokenizer: Tokenizer, dropout: float | None) -> None:
        """Build the trunk of `recipe`'s shape; `dropout` replaces the one of pretraining."""
        super().__init__()
        self.recipe, self.tokenizer = recipe, tokenizer
        config = recipe.model
        if dropout is not None:
            config = config.model_copy(update={"encoder": config.encoder.model_copy(update={"dropout": dropout})})
        self._model_config = config
        self.encoder = MaskedLanguageModel(config, tokenizer.get_vocab_size(), recipe.data.row_length).encoder
        self.width = config.encoder.width
        self._cls_sep = tokenizer.num_special_tokens_to_add(is_pair=False) > 0
        self.pad_id, self.cls_id = PAD, CLS if self._cls_sep else None
        self.mask_text = SPECIAL_TOKENS[-1]
        self.longest = recipe.data.row_length

    @classmethod
    def load(cls, run: Path, *, random: bool, seed: int, dropout: float | None) -> "RunEncoder":
        """Return the encoder of a checkpoint or a run's newest one, or one of its shape with weights drawn anew.

        Raises:
            UserError: there is no such run, or its checkpoint is damaged.

        """
        model, tokenizer, recipe = checkpoint.load_model(checkpoint.of(run), torch.device("cpu"))
        encoder = cls(recipe, tokenizer, dropout)
        if random:
            initialise(model, recipe.model.encoder, seed)
        encoder.encoder.load_state_dict(model.encoder.state_dict())
        return encoder

    @classmethod
    def restore(cls, folder: Path) -> "RunEncoder":
        """Return the encoder that `save` described, its weights still to be filled in.

        Raises:
            UserError: a file is missing or damaged.

        """
        return cls(
            read(PretrainConfig, folder / checkpoint.CONFIG), vocabulary.load(folder / checkpoint.TOKENIZER), None
        )

    def save(self, folder: Path) -> None:
        """Write the recipe and the tokenizer."""
        recipe = self.recipe.model_copy(update={"model": self._model_config})
        (folder / checkpoint.CONFIG).write_text(dump(recipe), encoding="utf-8")
        (folder / checkpoint.TOKENIZER).write_bytes(vocabulary.serialise(self.tokenizer))

    def tokenise(self, texts: Sequence[tuple[str, ...]], longest: int) -> list[Tokens]:
        """Return the tokens; the two texts of a pair stand in one segment, with [SEP] between them."""
        flat = [text for pair in texts for text in pair]
        encoded = iter(self.tokenizer.encode_batch(flat, add_special_tokens=False))
        return [self._joined([next(encoded).ids for _ in pair], longest) for pair in texts]

    def _joined(self, parts: Sequence[list[int]], longest: int) -> Tokens:
        room = longest - 2 * int(self._cls_sep) - (len(parts) - 1)
        truncated = sum(map(len, parts)) > room
        if len(parts) == 2:
            first, second = parts
            kept = min(len(first), max(room - len(second), -(-room // 2)))  # the longer text is cut first
            parts = [first[:kept], second[: room - kept]]
        else:
            parts = [part[:room] for part in parts]
        ids = [CLS] if self._cls_sep else []
        types = [0] * len(ids)
        for number, part in enumerate(parts):
            separator = [SEP] if number else []
            ids += separator + part
            types += [0] * len(separator) + [number] * len(part)
        last = [SEP] if self._cls_sep else []
        return Tokens(tuple(ids + last), tuple(types + [len(parts) - 1] * len(last)), truncated)

    def forward(self, ids_BL: Tensor, real_BL: Tensor, types_BL: Tensor) -> Tensor:
        """Return the hidden states, (B, L, D); ours know no token types."""
        dtype = autocast_dtype(ids_BL.device, self.encoder.embeddings.tokens.weight.dtype)
        positions_BL = torch.arange(ids_BL.shape[1], device=ids_BL.device).expand_as(ids_BL)
        hidden_BLD: Tensor = self.encoder(ids_BL, SegmentMask.of(real_BL.int(), positions_BL, dtype))
        return hidden_BLD

    def layers(self) -> list[list[nn.Parameter]]:
        """Return every parameter once, from the embeddings to the last layer and the norm behind it."""
        levels = [list(self.encoder.embeddings.parameters())]
        levels += [list(block.parameters()) for block in self.encoder.blocks]
        levels[-1] += self.encoder.final_norm.parameters()
        return levels
