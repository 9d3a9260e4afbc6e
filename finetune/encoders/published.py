"""Published encoders, through the transformers library and with their own tokenizers."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from finetune.encoders.encoder import EncodedExample, TextEncoder
from finetune.encoders.hub import fetch, read_config, read_tokenizer, read_weights, without_pooler

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

LONGEST_WITHOUT_LIMIT = 8192
"""Most tokens of an example for an encoder that declares no limit."""


class PublishedEncoder(TextEncoder):
    """An encoder of the transformers library."""

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
        """Wrap a trunk without a head, and its tokenizer."""
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        config = model.config
        self.width = int(config.hidden_size)
        self.pad_id = pad_id(model, tokenizer)
        self.mask_text = tokenizer.mask_token
        self.longest = min(position_limit(model), tokenizer.model_max_length)
        put = tokenizer("a").input_ids  # a tokenizer may declare a [CLS] that it does not put
        self.cls_id = tokenizer.cls_token_id if tokenizer.cls_token_id in put else None
        self._takes_types = takes_types(model)
        self.train(False)

    def tokenise(self, texts: Sequence[tuple[str, ...]], longest: int) -> list[EncodedExample]:
        """Return the tokens; of a pair that is too long, the longer text is cut first."""
        return tokenise(self.tokenizer, texts, longest)

    def forward(self, ids_BL: Tensor, real_BL: Tensor, types_BL: Tensor) -> Tensor:
        """Return the hidden states of the last layer, (B, L, D)."""
        types = {"token_type_ids": types_BL} if self._takes_types else {}
        hidden_BLD: Tensor = self.model(input_ids=ids_BL, attention_mask=real_BL.long(), **types)[0]
        return hidden_BLD

    def layers(self) -> list[list[nn.Parameter]]:
        """Return every parameter once: what stands before the layers, then each layer; what follows goes with the last.

        Layers that share their weights (ALBERT) are one level.
        """
        inside: dict[int, int] = {}
        layers = _layers(self.model)
        for number, layer in enumerate(layers, start=1):
            for parameter in layer.parameters():
                inside.setdefault(id(parameter), number)
        embeddings = {id(p) for m in self.model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        levels: list[list[nn.Parameter]] = [[] for _ in range(len(layers) + 1)]
        current = 0
        for parameter in self.model.parameters():
            if id(parameter) in inside:
                levels[inside[id(parameter)]].append(parameter)
                current = len(layers)
            else:
                levels[0 if id(parameter) in embeddings else current].append(parameter)
        return [level for level in levels if level]

    def save(self, folder: Path) -> None:
        """Write the configuration and the files of the tokenizer."""
        self.model.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(str(folder))


def load_published(
    name_or_folder: str, revision: str | None, random: bool, seed: int, *, dropout: float | None = None
) -> PublishedEncoder:
    """Return a published encoder, without the head that it was published with.

    Args:
        name_or_folder: a folder in transformers' format, or a name of the hub.
        revision: a commit, branch or tag of the hub's; None: the newest.
        random: whether to draw the weights anew, in the same shape and as the architecture wants them.
        seed: what they are drawn by.
        dropout: every dropout inside the encoder; None: as it was published.

    Raises:
        UserError: it is not there, is damaged or lacks weights, or would have code of its own run.

    """
    folder = fetch(name_or_folder, revision)
    config = read_config(folder, dropout)
    tokenizer = read_tokenizer(folder, config)
    if random:
        return PublishedEncoder(_drawn(config, seed), tokenizer)
    model_class = _trunk(config)
    return PublishedEncoder(read_weights(model_class, folder, config, **without_pooler(model_class)), tokenizer)


def restore_published(folder: Path) -> PublishedEncoder:
    """Return the encoder that `PublishedEncoder.save` described, its weights still to be filled in.

    Raises:
        UserError: a file is missing or damaged.

    """
    folder = fetch(str(folder.absolute()), None)
    config = read_config(folder)
    return PublishedEncoder(_drawn(config, seed=0), read_tokenizer(folder, config))


def tokenise(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[tuple[str, ...]], longest: int
) -> list[EncodedExample]:
    """Return the tokens of texts or of pairs, each cut to `longest` with special tokens counted."""
    if not texts:
        return []
    rows = _encode(tokenizer, texts, None)
    long = [index for index, (ids, _) in enumerate(rows) if len(ids) > longest]
    cut = dict(zip(long, _encode(tokenizer, [texts[index] for index in long], longest), strict=True))
    chosen = [(cut.get(index, row), index in cut) for index, row in enumerate(rows)]
    return [EncodedExample(tuple(ids), tuple(types), truncated) for (ids, types), truncated in chosen]


def takes_types(model: nn.Module) -> bool:
    """Return whether a model tells a pair's texts apart by token types (RoBERTa's has one type only)."""
    types = getattr(model.config, "type_vocab_size", None)
    return "token_type_ids" in inspect.signature(model.forward).parameters and types not in (0, 1)


def pad_id(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the id that fills up rows: the model's, by which RoBERTa counts its positions, or the tokenizer's."""
    configured = getattr(model.config, "pad_token_id", None)
    pad = configured if configured is not None else tokenizer.pad_token_id
    return int(pad) if pad is not None else 0


def position_limit(model: nn.Module) -> int:
    """Return how many positions a model knows; where one is padding's, those up to it are not for tokens (RoBERTa)."""
    tables = [m for name, m in model.named_modules() if name.endswith("position_embeddings")]
    learned = [m.num_embeddings - (-1 if m.padding_idx is None else m.padding_idx) - 1 for m in tables]
    declared = getattr(model.config, "max_position_embeddings", None) or 0
    limits = [limit for limit in (*learned, declared) if limit > 0]
    return int(min(limits, default=LONGEST_WITHOUT_LIMIT))


def _encode(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[tuple[str, ...]], longest: int | None
) -> list[tuple[list[int], list[int]]]:
    if not texts:
        return []
    firsts_and_seconds = [list(column) for column in zip(*texts, strict=True)]
    rows = tokenizer(
        *firsts_and_seconds,
        truncation=longest is not None,
        max_length=longest,
        return_token_type_ids=True,
        return_attention_mask=False,
        verbose=False,
    )
    return list(zip(rows["input_ids"], rows["token_type_ids"], strict=True))


def _trunk(config: "PreTrainedConfig") -> "type[PreTrainedModel]":
    from transformers import MODEL_MAPPING

    return cast("type[PreTrainedModel]", MODEL_MAPPING[type(config)])


def _drawn(config: "PreTrainedConfig", seed: int) -> "PreTrainedModel":
    model_class = _trunk(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = model_class(config, **without_pooler(model_class))
    model.train(False)
    return model


def _layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers: the list of modules that holds most of the weights, and of equals the outermost."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    weights = [sum(parameter.numel() for parameter in found.parameters()) for found in lists]
    return list(lists[weights.index(max(weights))]) if lists else []
