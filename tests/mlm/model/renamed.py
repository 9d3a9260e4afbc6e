"""Our weights, or their gradients, under the names that other models give them."""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

BERT = (
    (r"^output_bias", "cls.predictions.bias"),
    (r"^transform\.dense", "cls.predictions.transform.dense"),
    (r"^transform\.norm", "cls.predictions.transform.LayerNorm"),
    (r"^encoder\.embeddings\.tokens", "bert.embeddings.word_embeddings"),
    (r"^encoder\.embeddings\.positions", "bert.embeddings.position_embeddings"),
    (r"^encoder\.embeddings\.norm", "bert.embeddings.LayerNorm"),
    (r"^encoder\.blocks", "bert.encoder.layer"),
    (r"attention\.sublayer\.output", "attention.output.dense"),
    (r"attention\.norm", "attention.output.LayerNorm"),
    (r"feedforward\.sublayer\.input", "intermediate.dense"),
    (r"feedforward\.sublayer\.output", "output.dense"),
    (r"feedforward\.norm", "output.LayerNorm"),
)
MODERNBERT = (
    (r"^output_bias", "decoder.bias"),
    (r"^transform", "head"),
    (r"^encoder\.embeddings\.tokens", "model.embeddings.tok_embeddings"),
    (r"^encoder\.blocks", "model.layers"),
    (r"^encoder", "model"),
    (r"attention\.sublayer\.qkv", "attn.Wqkv"),
    (r"attention\.sublayer\.output", "attn.Wo"),
    (r"attention\.norm", "attn_norm"),
    (r"feedforward\.sublayer\.input", "mlp.Wi"),
    (r"feedforward\.sublayer\.output", "mlp.Wo"),
    (r"feedforward\.norm", "mlp_norm"),
)
TORCH_ENCODER = (
    (r"^transform\.dense", "transform.0"),
    (r"^transform\.norm", "transform.2"),
    (r"^encoder\.embeddings\.", ""),
    (r"^encoder\.blocks", "layers.layers"),
    (r"attention\.sublayer\.qkv\.", "self_attn.in_proj_"),
    (r"attention\.sublayer\.output", "self_attn.out_proj"),
    (r"attention\.norm", "norm1"),
    (r"feedforward\.sublayer\.input", "linear1"),
    (r"feedforward\.sublayer\.output", "linear2"),
    (r"feedforward\.norm", "norm2"),
)


def renamed(tensors: Mapping[str, Tensor], renamings: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """Return the tensors by other names; those of queries, keys and values apart where their name is not changed."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for pattern, replacement in renamings:
            name = re.sub(pattern, replacement, name)
        if "sublayer.qkv" in name:
            for part, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                found[name.replace("sublayer.qkv", f"self.{part}")] = third
        else:
            found[name] = tensor
    return found
