"""The encoder and the masked language model of a pretraining run."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from configs import dump, read
from finetune.data.augment import MASKED
from finetune.data.augment_contextual import is_word
from finetune.encoders.encoder import EncodedExample, TextEncoder, padded
from mlm.checkpoint import checkpoint
from mlm.config import PretrainConfig
from mlm.data.batches import IGNORED, Batch
from mlm.distributed.device import autocast_dtype
from mlm.distributed.world import World
from mlm.model.attention import SegmentMask
from mlm.model.heads import MaskedLanguageModel
from mlm.model.initialize import initialize
from mlm.objectives.masked import compute_logits
from mlm.tracking import run_directory
from tokenizer import vocabulary
from tokenizer.cleaning import as_read_by
from tokenizer.special_tokens import SpecialTokens


class RunEncoder(TextEncoder):
    """The encoder of a pretraining run."""

    has_mask = True
    trains_on_threads = True

    def __init__(self, recipe: PretrainConfig, tokenizer: Tokenizer, dropout: float | None) -> None:
        """Build the trunk of `recipe`'s shape; `dropout`, unless None, replaces that of pretraining."""
        super().__init__()
        config = recipe.model
        if dropout is not None:
            config = config.model_copy(update={"encoder": config.encoder.model_copy(update={"dropout": dropout})})
        self.recipe, self.tokenizer = recipe.model_copy(update={"model": config}), tokenizer
        self.encoder = MaskedLanguageModel(config, tokenizer.get_vocab_size(), recipe.data.row_length).encoder
        self.width = config.encoder.width
        self._special = SpecialTokens.of(tokenizer)
        self.pad_id, self.cls_id = self._special.pad, self._special.cls if self._special.adds_cls_sep else None
        self.longest = recipe.data.row_length

    @classmethod
    def load(cls, run: Path, *, random: bool, seed: int, dropout: float | None) -> "RunEncoder":
        """Return the encoder of a checkpoint or of a run's newest one; `random` draws its weights by `seed` instead."""
        model, tokenizer, recipe = checkpoint.load_model(checkpoint.resolve(run), torch.device("cpu"))
        encoder = cls(recipe, tokenizer, dropout)
        if random:
            initialize(model, recipe.model.encoder, seed)
        encoder.encoder.load_state_dict(model.encoder.state_dict())
        return encoder

    @classmethod
    def restore(cls, folder: Path) -> "RunEncoder":
        """Return the encoder that `save` described, with weights still to be loaded."""
        recipe = read(PretrainConfig, folder / checkpoint.CONFIG)
        return cls(recipe, vocabulary.load(folder / checkpoint.TOKENIZER), None)

    def save(self, folder: Path) -> None:
        """Write the recipe and the tokenizer."""
        (folder / checkpoint.CONFIG).write_text(dump(self.recipe), encoding="utf-8")
        (folder / checkpoint.TOKENIZER).write_bytes(vocabulary.serialize(self.tokenizer))

    def tokenize(self, texts: Sequence[tuple[str, ...]], longest: int) -> list[EncodedExample]:
        """Return the tokens; the two texts of a pair share one segment, with the tokenizer's separator between them."""
        flat = [text for pair in texts for text in pair]
        encoded = iter(vocabulary.encode_masked(self.tokenizer, flat, MASKED))
        return [_joined([next(encoded) for _ in pair], longest, self._special) for pair in texts]

    def as_read(self, text: str) -> str:
        """Return the normalized text."""
        return as_read_by(self.tokenizer.normalizer)(text)

    def forward(self, ids_BL: Tensor, real_BL: Tensor, types_BL: Tensor) -> Tensor:
        """Return the hidden states, (B, L, D); token types are ignored."""
        dtype = autocast_dtype(ids_BL.device, self.encoder.embeddings.tokens.weight.dtype)
        positions_BL = torch.arange(ids_BL.shape[1], device=ids_BL.device).expand_as(ids_BL)
        hidden_BLD: Tensor = self.encoder(ids_BL, SegmentMask.of(real_BL.int(), positions_BL, dtype))
        return hidden_BLD

    def layers(self) -> list[list[nn.Parameter]]:
        """Return every parameter once; the norm after the last layer belongs to that layer."""
        levels = [list(self.encoder.embeddings.parameters())]
        levels += [list(block.parameters()) for block in self.encoder.blocks]
        levels[-1] += self.encoder.final_norm.parameters()
        return levels


class RunPredictor:
    """The masked language model of a pretraining run, which predicts masked words."""

    def __init__(self, model: MaskedLanguageModel, tokenizer: Tokenizer, row_length: int, world: World) -> None:
        """Wrap a model in evaluation mode on the world's device."""
        assert not model.training
        self.model, self.tokenizer, self.row_length, self.world = model, tokenizer, row_length, world
        self._special = SpecialTokens.of(tokenizer)
        decoded = [vocabulary.continuing_text(tokenizer, [token]) for token in range(tokenizer.get_vocab_size())]
        self.words = [text[1:] if text.startswith(" ") and is_word(text[1:]) else None for text in decoded]

    @classmethod
    def load(cls, run: Path, world: World) -> "RunPredictor":
        """Return the masked language model of a checkpoint or of a run's newest one; a UserError without a head."""
        folder = checkpoint.resolve(run)
        run_directory.check_head(checkpoint.run_of(folder))
        model, tokenizer, recipe = checkpoint.load_model(folder, world.device)
        return cls(model, tokenizer, recipe.data.row_length, world)

    @torch.no_grad()
    def predict(self, texts: Sequence[str]) -> list[Tensor]:
        """Return the vocabulary's scores at the masks of each text, in order, (masks, V); float32 on CPU."""
        encoded = vocabulary.encode_masked(self.tokenizer, texts, MASKED)
        special = self._special
        ids_BL, real_BL, _ = padded([_joined([ids], self.row_length, special) for ids in encoded], special.pad)
        masks = [row_L.nonzero().flatten() for row_L in ids_BL == special.mask]
        predicted_BM = pad_sequence(masks, batch_first=True, padding_value=-1)
        is_mask_BM = predicted_BM >= 0
        predicted_BM.clamp_(min=0)
        positions_BL = torch.arange(ids_BL.shape[1]).expand_as(ids_BL)
        labels_BM = torch.full_like(predicted_BM, IGNORED)
        targets, tokens = int(is_mask_BM.sum()), int(real_BL.sum())
        batch = Batch(ids_BL, real_BL.int(), positions_BL, predicted_BM, labels_BM, targets=targets, tokens=tokens)
        logits_MV = compute_logits(self.model, batch.to(self.world.device), self.world)
        logits_MV = logits_MV[is_mask_BM.flatten().to(logits_MV.device)].float().cpu()
        return list(torch.split(logits_MV, [len(places) for places in masks]))


def _joined(parts: Sequence[list[int]], longest: int, special: SpecialTokens) -> EncodedExample:
    """Return a text's or pair's tokens with the special ones, truncated to `longest`."""
    room = longest - 2 * special.adds_cls_sep - len(special.between) * (len(parts) - 1)
    truncated = sum(map(len, parts)) > room
    if len(parts) == 2:
        first, second = parts
        kept = min(len(first), max(room - len(second), -(-room // 2)))  # the longer text is truncated first
        parts = [first[:kept], second[: room - kept]]
    else:
        parts = [part[:room] for part in parts]
    ids, types = list(parts[0]), [0] * len(parts[0])
    for part in parts[1:]:
        ids += [*special.between, *part]
        types += [0] * len(special.between) + [1] * len(part)
    frame = int(special.adds_cls_sep)
    types = [0] * frame + types + [len(parts) - 1] * frame
    return EncodedExample(tuple(special.framed(ids)), tuple(types), truncated)
