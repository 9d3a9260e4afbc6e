"""The attention weights of every layer and head, from the written-out attention, to be looked at."""

from typing import Any

import torch
from torch import Tensor, nn

from mlm.data.batches import Batch
from mlm.model.attention import Attention, SegmentMask, masked_out
from mlm.model.encoder import Encoder


@torch.no_grad()
def attention_weights(encoder: Encoder, batch: Batch) -> list[Tensor]:
    """Return the weights of each layer, (B, H, L, L); the queries are in rows, which sum to 1.

    The hidden states are those of the fast path, on the encoder's device. Each layer's weights are computed from the
    input that its attention gets there.
    """
    weights = list[Tensor]()

    def weigh(attention: nn.Module, given: tuple[Any, ...], _output: Tensor) -> None:
        assert isinstance(attention, Attention)
        hidden_BLD, segment_mask, rotation, _ = given
        query, key, value = attention.by_head(attention.qkv(hidden_BLD), 2, rotation)
        weights.append(reference_attention(query, key, value, segment_mask.segments_BL, segment_mask.reach)[1])

    dtype = encoder.embeddings.tokens.weight.dtype
    hooks = [module.register_forward_hook(weigh) for module in encoder.modules() if isinstance(module, Attention)]
    try:
        encoder(batch.ids_BL, SegmentMask.of(batch.segments_BL, batch.positions_BL, dtype))
    finally:
        for hook in hooks:
            hook.remove()
    return weights


def reference_attention(
    query_BHLK: Tensor, key_BHLK: Tensor, value_BHLK: Tensor, segments_BL: Tensor, reach: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return softmax(QK^T / sqrt(K))V within segment and reach, computed literally, and the softmax's weights."""
    scores_BHLL = query_BHLK @ key_BHLK.transpose(-1, -2) / query_BHLK.shape[-1] ** 0.5
    masked_B1LL = masked_out(segments_BL, None, reach)[:, None]
    weights_BHLL = scores_BHLL.masked_fill(masked_B1LL, float("-inf")).softmax(dim=-1)
    return weights_BHLL @ value_BHLK, weights_BHLL
