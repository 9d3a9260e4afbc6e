"""BERT in transformers (Devlin et al. 2019): post-norm, learned positions, a head with a transform."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mlm.interop.renaming import Names, to_ours, to_theirs
from mlm.model.encoder import EncoderConfig, LearnedPositions
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
ACTIVATIONS: dict[Activation, str] = {"gelu": "gelu", "swish": "silu", "relu": "relu"}
"""Our names of activations, and those of transformers."""


def our_config(theirs: "BertConfig") -> ModelConfig:
    """Return the shape of a published model."""
    activations = {name: own for own, name in ACTIVATIONS.items()}
    encoder = EncoderConfig(
        width=theirs.hidden_size,
        heads=theirs.num_attention_heads,
        feedforward_width=theirs.intermediate_size,
        layers=theirs.num_hidden_layers,
        norm="post",
        norm_epsilon=theirs.layer_norm_eps,
        activation=activations[theirs.hidden_act],
        positions=LearnedPositions(),
        dropout=theirs.hidden_dropout_prob,
    )
    return ModelConfig(encoder=encoder, transform=True)


def our_tensors(theirs: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Return a published model's tensors under our names; the vector of token type 0 is added to each position's."""
    found = to_ours(theirs, NAMES, config.encoder.layers)
    found["encoder.embeddings.positions.weight"] += theirs[_TOKEN_TYPES][0]
    return found


def refusal(config: ModelConfig) -> str | None:
    """Return the reason why BERT has no exact counterpart of a model, with the settings that have one; or None."""
    encoder = config.encoder
    needed = {
        "norm": (encoder.norm, "post"),
        "positions.kind": (encoder.positions.kind, "learned"),
        "embedding_norm": (encoder.embedding_norm, True),
        "gated": (encoder.gated, False),
        "biases": (encoder.biases, True),
    }
    wrong = [f"model.encoder.{name}={right}" for name, (own, right) in needed.items() if own != right]
    return " ".join([*wrong, *(["model.transform=true"] if not config.transform else [])]) or None


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
        hidden_act=ACTIVATIONS[encoder.activation],
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
