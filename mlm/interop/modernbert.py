"""ModernBERT in transformers (Warner et al. 2024): pre-norm, rotary positions, gated feed-forward layers."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from configs import UserError
from mlm.interop.architecture import Architecture, check, model_config, our_activation
from mlm.interop.bert import THEIR_ACTIVATIONS
from mlm.interop.renaming import Names, to_theirs
from mlm.model.encoder import LocalAttention, RotaryPositions
from mlm.model.heads import ModelConfig

if TYPE_CHECKING:
    from transformers import ModernBertConfig

_Kind = Literal["full_attention", "sliding_attention"]
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
    """Return the shape of a published model; it has all biases if it has any, those that it lacks being zero."""
    check(theirs, {"is_decoder": [False], "add_cross_attention": [False]})
    rope = theirs.rope_parameters or {}
    for kind, settings in rope.items():
        if settings["rope_type"] != "default":
            raise UserError(f"its config.json says rope_type = {settings['rope_type']!r} of {kind}: we have no scaling")
    return model_config(
        width=theirs.hidden_size,
        heads=theirs.num_attention_heads,
        feedforward_width=theirs.intermediate_size,
        layers=theirs.num_hidden_layers,
        norm="pre",
        norm_epsilon=theirs.norm_eps,
        activation=our_activation(theirs, "hidden_activation"),
        gated=True,
        positions=RotaryPositions(theta=rope["full_attention"]["rope_theta"]),
        local_attention=_our_local_attention(theirs),
        biases=any(_biased(theirs).values()),
        dropout=theirs.mlp_dropout,
    )


def _our_local_attention(theirs: "ModernBertConfig") -> LocalAttention | None:
    kinds = theirs.layer_types or []
    everywhere = [layer for layer, kind in enumerate(kinds) if kind == "full_attention"]
    if len(everywhere) == len(kinds):
        return None
    near, everything = (
        (theirs.rope_parameters or {})[kind]["rope_theta"] for kind in ("sliding_attention", "full_attention")
    )
    if theirs.local_attention >= 2 * theirs.max_position_embeddings and near == everything:
        return None  # as we write models without local attention
    every = everywhere[1] if len(everywhere) > 1 else len(kinds)
    if everywhere != list(range(0, len(kinds), every)):
        raise UserError(f"its config.json has layer_types {kinds}: ours are global at multiples of one number alone")
    return LocalAttention(window=theirs.local_attention, global_every=every, theta=near)


def _biased(theirs: "ModernBertConfig") -> dict[str, bool]:
    """Return whether modules with a part of a name have biases."""
    return {
        "norm.": theirs.norm_bias,
        ".attn.": theirs.attention_bias,
        ".mlp.": theirs.mlp_bias,
        "head.dense": theirs.classifier_bias,
    }


def prepared(theirs: Mapping[str, Tensor], config: "ModernBertConfig") -> dict[str, Tensor]:
    """Return tensors with zero for each bias that the model lacks by its configuration, if it has any other."""
    tensors = dict(theirs)
    biased = _biased(config)
    lacking = [part for part, has in biased.items() if not has] if any(biased.values()) else []
    for name, weight in theirs.items():
        if name.endswith(".weight") and any(part in name for part in lacking):
            tensors.setdefault(name.removesuffix("weight") + "bias", weight.new_zeros(weight.shape[:1]))
    if not config.decoder_bias and "head.dense.weight" in tensors:
        tensors.setdefault(_OUTPUT_BIAS, torch.zeros(config.vocab_size))
    return tensors


ARCHITECTURE = Architecture(
    trunk="model.",
    names={**NAMES, "output_bias": _OUTPUT_BIAS},
    our_config=our_config,
    dropouts=("mlp_dropout", "attention_dropout", "embedding_dropout"),
    prepared=prepared,
    tied={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
    unused=("inv_freq",),
    head_activation=lambda theirs: str(theirs.classifier_activation),
)


def refusal(config: ModelConfig) -> str | None:
    """Return the settings that ModernBERT needs and a model lacks, or None if it has an exact counterpart."""
    encoder = config.encoder
    needed = {
        "norm=pre": encoder.norm == "pre",
        "positions.kind=rotary": encoder.positions.kind == "rotary",
        "embedding_norm=true": encoder.embedding_norm,
        "embedding_width=null": encoder.embedding_width is None,
    }
    return " ".join(f"model.encoder.{setting}" for setting, is_so in needed.items() if not is_so) or None


def their_config(config: ModelConfig, vocabulary_size: int, row_length: int, **special: Any) -> "ModernBertConfig":
    """Return the configuration of a ModernBERT of the same shape; `special` are ids of tokens by transformers' names.

    A head without a transform has its counterpart in a linear one.
    """
    from transformers import ModernBertConfig

    encoder, local = config.encoder, config.encoder.local_attention
    assert isinstance(encoder.positions, RotaryPositions)
    theta = encoder.positions.theta
    local_theta = theta if local is None else local.theta
    kinds: tuple[_Kind, _Kind] = ("full_attention", "sliding_attention")
    bases = zip(kinds, (theta, local_theta), strict=True)
    rope: dict[_Kind, Any] = {kind: {"rope_type": "default", "rope_theta": base} for kind, base in bases}
    theirs = ModernBertConfig(
        vocab_size=vocabulary_size,
        hidden_size=encoder.width,
        num_hidden_layers=encoder.layers,
        num_attention_heads=encoder.heads,
        intermediate_size=encoder.feedforward_width,
        hidden_activation=THEIR_ACTIVATIONS[encoder.activation],
        max_position_embeddings=row_length,
        norm_eps=encoder.norm_epsilon,
        norm_bias=encoder.biases,
        attention_bias=encoder.biases,
        mlp_bias=encoder.biases or not encoder.gated,
        classifier_bias=encoder.biases,
        classifier_activation=THEIR_ACTIVATIONS[encoder.activation] if config.transform else "linear",
        embedding_dropout=encoder.dropout,
        attention_dropout=encoder.dropout,
        mlp_dropout=encoder.dropout,
        layer_types=[kinds[layer > 0 if local is None else encoder.is_local(layer)] for layer in range(encoder.layers)],
        rope_parameters=rope,
        # Without local attention the window holds a whole row: from 5.4 to 5.17, transformers refuses a configuration
        # whose layers are all of one kind.
        local_attention=2 * row_length if local is None else local.window,
        **{"classifier_pooling": "mean"} | special,  # masked language modelling does not train the first position
    )
    # Version 4 reads these instead of layer_types and rope_parameters; version 5 drops them as arguments.
    every = encoder.layers if local is None else local.global_every
    version_4 = {"global_attn_every_n_layers": every, "global_rope_theta": theta, "local_rope_theta": local_theta}
    for name, value in version_4.items():
        setattr(theirs, name, value)
    return theirs


def their_tensors(ours: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Return our tensors under ModernBERT's names.

    An ungated layer gets a gate that is 1 for every input. A head without a transform becomes one that undoes the scale
    and shift of the last norm, normalizes the normalized again, and scales and shifts as that norm does.
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
        # The variance of a normalized vector is 1, to which the second norm adds epsilon.
        again = scale * (1 + encoder.norm_epsilon) ** 0.5
        tensors |= {"transform.dense.weight": torch.diag(1 / scale), "transform.norm.weight": again}
        if encoder.biases:
            shift = tensors["encoder.final_norm.bias"]
            tensors |= {"transform.dense.bias": -shift / scale, "transform.norm.bias": shift}
    return to_theirs(tensors, NAMES, encoder.layers) | {_OUTPUT_BIAS: ours["output_bias"]}
