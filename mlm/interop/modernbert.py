"""ModernBERT in transformers (Warner et al. 2024): pre-norm, rotary positions, gated feed-forward layers."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mlm.interop.bert import ACTIVATIONS
from mlm.interop.renaming import Names, to_ours, to_theirs
from mlm.model.encoder import EncoderConfig, RotaryPositions
from mlm.model.heads import ModelConfig

if TYPE_CHECKING:
    from transformers import ModernBertConfig

_LAYER, _OUR_LAYER = "model.layers.*", "encoder.blocks.*"
NAMES: Names = {
    "encoder.embeddings.tokens": "model.embeddings.tok_embeddings",
    "encoder.embeddings.norm": "model.embeddings.norm",
    f"{_OUR_LAYER}.attention.norm": f"{_LAYER}.attn_norm",
    f"{_OUR_LAYER}.attention.sublayer.qkv": f"{_LAYER}.attn.Wqkv",
    f"{_OUR_LAYER}.attention.sublayer.output": f"{_LAYER}.attn.Wo",
    f"{_OUR_LAYER}.feedforward.norm": f"{_LAYER}.mlp_norm",
    f"{_OUR_LAYER}.feedforward.sublayer.input": f"{_LAYER}.mlp.Wi",
    f"{_OUR_LAYER}.feedforward.sublayer.output": f"{_LAYER}.mlp.Wo",
    "encoder.final_norm": "model.final_norm",
    "transform.dense": "head.dense",
    "transform.norm": "head.norm",
}
_OUTPUT_BIAS = "decoder.bias"


def our_config(theirs: "ModernBertConfig") -> ModelConfig:
    """Return the shape of a published model."""
    activations = {name: own for own, name in ACTIVATIONS.items()}
    encoder = EncoderConfig(
        width=theirs.hidden_size,
        heads=theirs.num_attention_heads,
        feedforward_width=theirs.intermediate_size,
        layers=theirs.num_hidden_layers,
        norm="pre",
        norm_epsilon=theirs.norm_eps,
        activation=activations[theirs.hidden_activation],
        gated=True,
        positions=RotaryPositions(theta=theirs.rope_parameters["full_attention"]["rope_theta"]),
        biases=theirs.attention_bias,
        dropout=theirs.mlp_dropout,
    )
    return ModelConfig(encoder=encoder, transform=True)


def our_tensors(theirs: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Return a published model's tensors under our names."""
    return to_ours(theirs, NAMES, config.encoder.layers) | {"output_bias": theirs[_OUTPUT_BIAS]}


def refusal(config: ModelConfig) -> str | None:
    """Return the settings that ModernBERT needs and a model lacks, or None if it has an exact counterpart."""
    encoder = config.encoder
    needed = {
        "norm": (encoder.norm, "pre"),
        "positions.kind": (encoder.positions.kind, "rotary"),
        "embedding_norm": (encoder.embedding_norm, True),
    }
    wrong = [f"model.encoder.{name}={right}" for name, (own, right) in needed.items() if own != right]
    return " ".join(wrong) or None


def their_config(config: ModelConfig, vocabulary_size: int, row_length: int, **special: Any) -> "ModernBertConfig":
    """Return the configuration of a ModernBERT of the same shape; `special` are ids of tokens by transformers' names.

    A head without a transform has its counterpart in a linear one.
    """
    from transformers import ModernBertConfig

    encoder = config.encoder
    assert isinstance(encoder.positions, RotaryPositions)
    rope = {"rope_type": "default", "rope_theta": encoder.positions.theta}
    return ModernBertConfig(
        vocab_size=vocabulary_size,
        hidden_size=encoder.width,
        num_hidden_layers=encoder.layers,
        num_attention_heads=encoder.heads,
        intermediate_size=encoder.feedforward_width,
        hidden_activation=ACTIVATIONS[encoder.activation],
        max_position_embeddings=row_length,
        norm_eps=encoder.norm_epsilon,
        norm_bias=encoder.biases,
        attention_bias=encoder.biases,
        mlp_bias=encoder.biases or not encoder.gated,
        classifier_bias=encoder.biases,
        classifier_activation=ACTIVATIONS[encoder.activation] if config.transform else "linear",
        embedding_dropout=encoder.dropout,
        attention_dropout=encoder.dropout,
        mlp_dropout=encoder.dropout,
        layer_types=["full_attention"] * encoder.layers,
        rope_parameters={"full_attention": rope, "sliding_attention": rope},
        **special,
    )


def their_tensors(ours: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Return our tensors under ModernBERT's names.

    An ungated layer gets a gate that is 1 for every input. A head without a transform becomes one that undoes the scale
    and shift of the last norm, normalises the normalised again, and scales and shifts as that norm does.
    """
    encoder = config.encoder
    tensors = dict(ours)
    if not encoder.gated:
        for layer in range(encoder.layers):
            name = f"encoder.blocks.{layer}.feedforward.sublayer"
            weight = tensors[f"{name}.input.weight"]
            bias = tensors.get(f"{name}.input.bias", weight.new_zeros(len(weight)))
            tensors[f"{name}.input.weight"] = torch.cat([weight, torch.zeros_like(weight)])
            tensors[f"{name}.input.bias"] = torch.cat([bias, torch.ones_like(bias)])
            tensors.setdefault(f"{name}.output.bias", weight.new_zeros(encoder.width))
    if not config.transform:
        scale = tensors["encoder.final_norm.weight"]
        # The variance of a normalised vector is 1, to which the second norm adds epsilon.
        again = scale * (1 + encoder.norm_epsilon) ** 0.5
        tensors |= {"transform.dense.weight": torch.diag(1 / scale), "transform.norm.weight": again}
        if encoder.biases:
            shift = tensors["encoder.final_norm.bias"]
            tensors |= {"transform.dense.bias": -shift / scale, "transform.norm.bias": shift}
    return to_theirs(tensors, NAMES, encoder.layers) | {_OUTPUT_BIAS: ours["output_bias"]}
