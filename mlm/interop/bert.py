"""BERT in transformers (Devlin et al. 2019): post-norm, learned positions, a head with a transform."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mlm.interop.architecture import Architecture, check, model_config, our_activation
from mlm.interop.renaming import Names, to_theirs
from mlm.model.encoder import LearnedPositions
from mlm.model.feedforward import Activation
from mlm.model.heads import ModelConfig

if TYPE_CHECKING:
    from transformers import BertConfig

_LAYER, _OUR_LAYER = "bert.encoder.layer.*", "encoder.blocks.*"
NAMES: Names = {
    "encoder.embeddings.tokens": "bert.embeddings.word_embeddings",
    "encoder.embeddings.positions": "bert.embeddings.position_embeddings",
    "encoder.embeddings.norm": "bert.embeddings.LayerNorm",
    f"{_OUR_LAYER}.attention.sublayer.qkv": (
        f"{_LAYER}.attention.self.query",
        f"{_LAYER}.attention.self.key",
        f"{_LAYER}.attention.self.value",
    ),
    f"{_OUR_LAYER}.attention.sublayer.output": f"{_LAYER}.attention.output.dense",
    f"{_OUR_LAYER}.attention.norm": f"{_LAYER}.attention.output.LayerNorm",
    f"{_OUR_LAYER}.feedforward.sublayer.input": f"{_LAYER}.intermediate.dense",
    f"{_OUR_LAYER}.feedforward.sublayer.output": f"{_LAYER}.output.dense",
    f"{_OUR_LAYER}.feedforward.norm": f"{_LAYER}.output.LayerNorm",
    "transform.dense": "cls.predictions.transform.dense",
    "transform.norm": "cls.predictions.transform.LayerNorm",
    "output_bias": "cls.predictions.bias",
}
_TOKEN_TYPES = "bert.embeddings.token_type_embeddings.weight"
THEIR_ACTIVATIONS: dict[Activation, str] = {"gelu": "gelu", "swish": "silu", "relu": "relu"}
"""Our names of activations, and those of transformers."""


def our_config(theirs: "BertConfig") -> ModelConfig:
    """Return the shape of a published model, or of a relative with the same keys."""
    check(
        theirs,
        {"is_decoder": [False], "add_cross_attention": [False], "position_embedding_type": ["absolute"]},
    )
    return model_config(
        width=theirs.hidden_size,
        heads=theirs.num_attention_heads,
        feedforward_width=theirs.intermediate_size,
        layers=theirs.num_hidden_layers,
        norm="post",
        norm_epsilon=theirs.layer_norm_eps,
        activation=our_activation(theirs, "hidden_act"),
        positions=LearnedPositions(),
        dropout=theirs.hidden_dropout_prob,
    )


def with_types_in_positions(theirs: Mapping[str, Tensor], trunk: str, first: int = 0) -> dict[str, Tensor]:
    """Return tensors whose positions hold the vector of token type 0, without the `first` positions."""
    positions, types = (f"{trunk}embeddings.{name}_embeddings.weight" for name in ("position", "token_type"))
    tensors = dict(theirs)
    type_ND = tensors.pop(types, torch.zeros(1, 1))
    if positions in tensors:
        tensors[positions] = tensors[positions][first:] + type_ND[0]
    return tensors


ARCHITECTURE = Architecture(
    trunk="bert.",
    names=NAMES,
    our_config=our_config,
    dropouts=("hidden_dropout_prob", "attention_probs_dropout_prob"),
    prepared=lambda tensors, _: with_types_in_positions(tensors, "bert."),
    tied={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    unused=("position_ids",),
)


def refusal(config: ModelConfig) -> str | None:
    """Return the settings that BERT needs and a model lacks, or None if it has an exact counterpart."""
    encoder = config.encoder
    needed = {
        "encoder.norm=post": encoder.norm == "post",
        "encoder.positions.kind=learned": encoder.positions.kind == "learned",
        "encoder.embedding_norm=true": encoder.embedding_norm,
        "encoder.embedding_width=null": encoder.embedding_width is None,
        "encoder.gated=false": not encoder.gated,
        "encoder.biases=true": encoder.biases,
        "transform=true": config.transform,
    }
    return " ".join(f"model.{setting}" for setting, is_so in needed.items() if not is_so) or None


def their_config(config: ModelConfig, vocabulary_size: int, row_length: int, **special: Any) -> "BertConfig":
    """Return the configuration of a BERT of the same shape; `special` are ids of tokens by transformers' names."""
    from transformers import BertConfig

    encoder = config.encoder
    return BertConfig(
        vocab_size=vocabulary_size,
        hidden_size=encoder.width,
        num_hidden_layers=encoder.layers,
        num_attention_heads=encoder.heads,
        intermediate_size=encoder.feedforward_width,
        hidden_act=THEIR_ACTIVATIONS[encoder.activation],
        hidden_dropout_prob=encoder.dropout,
        attention_probs_dropout_prob=encoder.dropout,
        max_position_embeddings=row_length,
        type_vocab_size=2,
        layer_norm_eps=encoder.norm_epsilon,
        **special,
    )


def their_tensors(ours: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Return our tensors under BERT's names; token types, which ours lacks, are zero."""
    found = to_theirs(ours, NAMES, config.encoder.layers)
    return found | {_TOKEN_TYPES: torch.zeros(2, config.encoder.width)}
