"""Multi-head attention within segments (Vaswani et al. 2017, section 3.2; rotary positions: Su et al. 2021).

Local attention reaches half a window to each side, and never leaves the segment (Beltagy et al. 2020).
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from mlm.model.dropout import drop

BLOCK = 128
"""Positions of a block of scores, which is computed or skipped as a whole."""
CHOSEN_BLOCK, LONG = 32, 512
"""Chosen queries of a block, in rows of more than `LONG` positions; in shorter ones they read all keys as fast."""
NARROWEST_HEAD = 16
"""Smallest head width that the kernel of FlexAttention supports."""

KeyBlock = tuple[slice, Tensor]
"""The range of keys that a block of queries attends to, in any row, and their additive mask, (B, 1, M, keys)."""


@dataclass(frozen=True)
class SegmentMask:
    """The segments of rows: attention never leaves a segment.

    A segment is one text to the model. Padding is a separate segment, which attends to itself: no softmax is empty.
    """

    segments_BL: Tensor
    """Number of the segment that each position belongs to, from 1; 0 is padding. int32"""
    positions_BL: Tensor
    """Position within the segment, from 0. int64"""
    dtype: torch.dtype
    """Type of the attention scores."""
    compiled: bool
    """True for compiled layers, which need constant shapes."""
    reach: int | None
    """The farthest position that a query attends to, on each side; None for all of the segment."""
    bias_B1LL: Tensor | None
    """Additive attention mask: 0 within a segment and reach, else -3e4; None if `bias()` is to build it. Score dtype"""
    blocks: BlockMask | None
    """The blocks with any scores within a segment and reach, for layers compiled for CUDA; else None."""
    key_blocks: tuple[KeyBlock, ...]
    """For each `BLOCK` of query positions their keys (CPU only; empty if attention is not computed in blocks)."""

    @classmethod
    def of(
        cls,
        segments_BL: Tensor,
        positions_BL: Tensor,
        dtype: torch.dtype,
        *,
        compiled: bool = False,
        reach: int | None = None,
    ) -> Self:
        """Return the mask of rows of segments.

        For layers that are `compiled`, segments must ascend in each row, with padding last.
        """
        same = segments_BL, positions_BL, dtype, compiled, reach
        if compiled and segments_BL.device.type == "cuda" and dtype == torch.bfloat16:
            return cls(*same, None, segment_blocks(segments_BL, reach), ())
        # A graph that is exported takes rows of any length.
        split = not (compiled or torch.compiler.is_exporting()) and segments_BL.device.type == "cpu"
        if not split or segments_BL.shape[1] <= BLOCK:
            return cls(*same, _bias(masked_out(segments_BL, None, reach), dtype), None, ())
        places_BL = torch.arange(segments_BL.shape[1]).expand_as(segments_BL)
        return cls(*same, None, None, _key_blocks(cls(*same, None, None, ()), places_BL, BLOCK))

    def within(self, reach: int) -> Self:
        """Return the mask of the same rows for local attention."""
        return self.of(self.segments_BL, self.positions_BL, self.dtype, compiled=self.compiled, reach=reach)

    def bias(self, queries_BM: Tensor | None) -> Tensor:
        """Return the additive mask of all positions, (B, 1, L, L), or of the queries alone, (B, 1, M, L)."""
        if self.bias_B1LL is None:
            return _bias(masked_out(self.segments_BL, queries_BM, self.reach), self.dtype)
        return self.bias_B1LL if queries_BM is None else gather_positions(self.bias_B1LL[:, 0], queries_BM)[:, None]


def masked_out(segments_BL: Tensor, queries_BM: Tensor | None, reach: int | None, keys: slice = slice(None)) -> Tensor:
    """Return True for each query and key of different segments or beyond `reach`, (B, M, L); queries None are all."""
    query_segments_BM = segments_BL if queries_BM is None else segments_BL.gather(1, queries_BM)
    masked_BML = query_segments_BM[:, :, None] != segments_BL[:, None, keys]
    if reach is None:
        return masked_BML
    places_L = torch.arange(segments_BL.shape[1], device=segments_BL.device)
    queries_BM = places_L[None] if queries_BM is None else queries_BM
    return masked_BML | ((queries_BM[:, :, None] - places_L[keys]).abs() > reach)


def segment_blocks(segments_BL: Tensor, reach: int | None = None) -> BlockMask:
    """Return the blocks of `BLOCK` by `BLOCK` scores with any within segment and reach, and the mask within blocks.

    The segments ascend in each row; 0 is padding, at the end.
    """
    B, L = segments_BL.shape
    last = torch.iinfo(segments_BL.dtype).max
    numbers_BL = F.pad(segments_BL.masked_fill(segments_BL == 0, last), (0, -L % BLOCK), value=last)
    first_BN, last_BN = numbers_BL.view(B, -1, BLOCK).aminmax(dim=2)
    apart_BNN = (first_BN[:, :, None] > last_BN[:, None, :]) | (last_BN[:, :, None] < first_BN[:, None, :])
    if reach is not None:
        numbers_N = torch.arange(first_BN.shape[1], device=segments_BL.device)
        apart_BNN |= (numbers_N[:, None] - numbers_N).abs() * BLOCK - (BLOCK - 1) > reach
    counts_B1N = (~apart_BNN).sum(dim=2, dtype=torch.int32)[:, None]
    order_B1NN = apart_BNN.int().argsort(dim=2, stable=True).int()[:, None]

    def together(b: Tensor, _h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return segments_BL[b, i] == segments_BL[b, j]

    mask = together
    if (near := reach) is not None:

        def together_nearby(b: Tensor, _h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return together(b, _h, i, j) & ((i - j).abs() <= near)

        mask = together_nearby
    return BlockMask.from_kv_blocks(counts_B1N, order_B1NN, BLOCK_SIZE=BLOCK, mask_mod=mask, seq_lengths=(L, L))


def _bias(masked_BML: Tensor, dtype: torch.dtype) -> Tensor:
    # Finite, so that bf16 scores never reach inf - inf; exp(-30,000) is 0 in every floating-point type.
    return torch.zeros(masked_BML.shape, dtype=dtype, device=masked_BML.device).masked_fill_(masked_BML, -3e4)[:, None]


def _key_blocks(mask: SegmentMask, queries_BM: Tensor, size: int) -> tuple[KeyBlock, ...]:
    """Return the keys of each block of `size` queries, found without a look at all pairs of positions."""
    owners_BL, reach = mask.segments_BL.long(), mask.reach or mask.segments_BL.shape[1]
    places_BL, own_BM = torch.arange(owners_BL.shape[1]).expand_as(owners_BL), owners_BL.gather(1, queries_BM)
    ends_BS = owners_BL.new_zeros(len(owners_BL), int(owners_BL.max()) + 1)
    first_BM, last_BM = (
        ends_BS.scatter_reduce(1, owners_BL, places_BL, end, include_self=False).gather(1, own_BM)
        for end in ("amin", "amax")
    )
    found = torch.stack([queries_BM, first_BM.maximum(queries_BM - reach), last_BM.minimum(queries_BM + reach)])
    ranges = [(part, slice(int(low.min()), int(high.max()) + 1)) for part, low, high in torch.split(found, size, 2)]
    segments_BL, dtype = mask.segments_BL, mask.dtype
    return tuple((keys, _bias(masked_out(segments_BL, part, mask.reach, keys), dtype)) for part, keys in ranges)


Rotation = tuple[Tensor, Tensor]
"""Cosine and sine of every position's angles, each (B, 1, L, K); the sine is negated in the first half of K."""


def gather_positions(states_BLX: Tensor, positions_BM: Tensor) -> Tensor:
    """Return the states at the chosen positions of each row, (B, M, X)."""
    rows_B1 = torch.arange(len(positions_BM), device=positions_BM.device)[:, None]
    return states_BLX[rows_B1, positions_BM]


class Rotary(nn.Module):
    """Rotate queries and keys by an angle that grows with the position, so that scores depend on distance.

    The two halves of a head's width are the two coordinates of each rotated plane (as in GPT-NeoX and ModernBERT).
    """

    inverse_frequency_k: Tensor

    def __init__(self, head_width: int, theta: float) -> None:
        super().__init__()
        exponents_k = torch.arange(0, head_width, 2, dtype=torch.float64) / head_width
        self.register_buffer("inverse_frequency_k", (theta**-exponents_k).float(), persistent=False)
        # MKL chooses its cosine and sine in their first call; two threads that make it together get other last digits.
        _ = torch.zeros(1).cos(), torch.zeros(1).sin()

    def forward(self, positions_BL: Tensor, dtype: torch.dtype) -> Rotation:
        """Return cosine and sine of every position's angles."""
        angles_BLk = positions_BL[..., None].float() * self.inverse_frequency_k
        cosine_BLk, sine_BLk = angles_BLk.cos(), angles_BLk.sin()
        cosine_BLK, sine_BLK = torch.cat([cosine_BLk, cosine_BLk], dim=-1), torch.cat([-sine_BLk, sine_BLk], dim=-1)
        return cosine_BLK[:, None].to(dtype), sine_BLK[:, None].to(dtype)


def rotate(states_BHLK: Tensor, cosine_B1LK: Tensor, sine_B1LK: Tensor) -> Tensor:
    """Rotate each plane of each head by its position's angle; further dimensions may come before B."""
    halves_changed_BHLK = states_BHLK.roll(states_BHLK.shape[-1] // 2, dims=-1)
    # Not by addcmul, whose last bit depends on a number's place in memory.
    return states_BHLK * cosine_B1LK + halves_changed_BHLK * sine_B1LK


def _matrix_products(
    query_BHMK: Tensor, key_BHLK: Tensor, value_BHLK: Tensor, bias_B1ML: Tensor, dropout: float
) -> Tensor:
    scores_BHML = (query_BHMK * query_BHMK.shape[-1] ** -0.5) @ key_BHLK.transpose(-1, -2)
    weights_BHML = scores_BHML.add_(bias_B1ML).softmax(dim=-1)  # in place: the product's own backward needs no scores
    return drop(weights_BHML, dropout) @ value_BHLK


class _Ranges(torch.autograd.Function):
    """Ranges of positions, whose gradients are summed in place: each slice's own would be as long as the row."""

    @staticmethod
    def forward(ctx: Any, states_BHLK: Tensor, *ranges: slice) -> tuple[Tensor, ...]:
        ctx.ranges, ctx.shape = ranges, states_BHLK.shape
        return tuple(states_BHLK[:, :, part] for part in ranges)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        summed_BHLK = gradients[0].new_zeros(ctx.shape)
        for part, gradient in zip(reversed(ctx.ranges), reversed(gradients), strict=True):
            summed_BHLK[:, :, part] += gradient
        return summed_BHLK, *(None for _ in ctx.ranges)


def _products_by_key_range(
    query_BHMK: Tensor, key_BHLK: Tensor, value_BHLK: Tensor, key_blocks: tuple[KeyBlock, ...], dropout: float
) -> Tensor:
    """Attend block by block of queries, each over the range of keys in its segments."""
    ranges, biases = zip(*key_blocks, strict=True)
    queries = torch.split(query_BHMK, biases[0].shape[2], 2)
    keys, values = (_Ranges.apply(states, *ranges) for states in (key_BHLK, value_BHLK))  # type: ignore[no-untyped-call]
    blocks = zip(queries, keys, values, biases, strict=True)
    return torch.cat([_matrix_products(*block, dropout) for block in blocks], dim=2)


def fast_attention(
    query_BHMK: Tensor,
    key_BHLK: Tensor,
    value_BHLK: Tensor,
    segment_mask: SegmentMask,
    queries_BM: Tensor | None,
    dropout: float,
) -> Tensor:
    """Return softmax(QK^T / sqrt(K))V within segment and reach, by the method that was measured to be fastest.

    On CPU the backward pass of masked SDPA takes a third of a training step for a twentieth of its FLOPs, and plain
    matrix products are faster. On CUDA compiled FlexAttention skips blocks of scores that are all across segments, but
    has no dropout. Masked SDPA serves the rest: a few queries, and layers that are not compiled.

    The queries are those at the positions `queries_BM`, or at all positions if it is None.
    """
    if segment_mask.key_blocks and queries_BM is None:
        return _products_by_key_range(query_BHMK, key_BHLK, value_BHLK, segment_mask.key_blocks, dropout)
    if segment_mask.key_blocks and queries_BM is not None and queries_BM.shape[1] and key_BHLK.shape[2] > LONG:
        queries_BM, order_BM = queries_BM.sort(dim=1)  # the queries of a block are then neighbors
        order_BHMK = order_BM[:, None, :, None].expand_as(query_BHMK)
        blocks = _key_blocks(segment_mask, queries_BM, CHOSEN_BLOCK)
        mixed_BHMK = _products_by_key_range(query_BHMK.gather(2, order_BHMK), key_BHLK, value_BHLK, blocks, dropout)
        return torch.zeros_like(mixed_BHMK).scatter(2, order_BHMK, mixed_BHMK)
    if query_BHMK.device.type == "cpu":
        return _matrix_products(query_BHMK, key_BHLK, value_BHLK, segment_mask.bias(queries_BM), dropout)
    if segment_mask.blocks is None or queries_BM is not None or dropout or query_BHMK.shape[-1] < NARROWEST_HEAD:
        bias_B1ML = segment_mask.bias(queries_BM)
        return F.scaled_dot_product_attention(query_BHMK, key_BHLK, value_BHLK, bias_B1ML, dropout_p=dropout)
    mixed_BHLK: Tensor = flex_attention(query_BHMK, key_BHLK, value_BHLK, block_mask=segment_mask.blocks)
    return mixed_BHLK


class Attention(nn.Module):
    """Project to queries, keys and values, attend head by head within segments, project back."""

    def __init__(self, width: int, heads: int, biases: bool, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width, bias=biases)
        self.output = nn.Linear(width, width, bias=biases)

    def forward(
        self, hidden_BLD: Tensor, segment_mask: SegmentMask, rotation: Rotation | None, queries_BM: Tensor | None
    ) -> Tensor:
        """Return the attended states, (B, L, D), or those of the queries alone, (B, M, D).

        `rotation` is the result of `Rotary`; None for other kinds of positions.
        """
        if queries_BM is None:
            query_BHMK, key_BHLK, value_BHLK = self.by_head(self.qkv(hidden_BLD), 2, rotation)
        else:
            sizes = [hidden_BLD.shape[-1], 2 * hidden_BLD.shape[-1]]
            query_weight, key_value_weight = torch.split(self.qkv.weight, sizes)
            query_bias, key_value_bias = (None, None) if self.qkv.bias is None else torch.split(self.qkv.bias, sizes)
            key_BHLK, value_BHLK = self.by_head(F.linear(hidden_BLD, key_value_weight, key_value_bias), 1, rotation)
            if rotation is not None:
                cosine_B1MK, sine_B1MK = [gather_positions(part[:, 0], queries_BM)[:, None] for part in rotation]
                rotation = cosine_B1MK, sine_B1MK
            chosen_BMD = gather_positions(hidden_BLD, queries_BM)
            (query_BHMK,) = self.by_head(F.linear(chosen_BMD, query_weight, query_bias), 1, rotation)
        dropout = self.dropout if self.training else 0.0
        mixed_BHMK = fast_attention(query_BHMK, key_BHLK, value_BHLK, segment_mask, queries_BM, dropout)
        output_BMD: Tensor = self.output(mixed_BHMK.transpose(1, 2).flatten(2))
        return output_BMD

    def by_head(self, projected_BLX: Tensor, rotated: int, rotation: Rotation | None) -> tuple[Tensor, ...]:
        """Return the concatenated projections, each by head, (B, H, L, K); the first `rotated` of them rotated."""
        B, L, X = projected_BLX.shape
        D = self.qkv.in_features
        projected = projected_BLX.view(B, L, X // D, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        if rotation is None:
            return projected.unbind(0)
        return (*rotate(projected[:rotated], *rotation).unbind(0), *projected[rotated:].unbind(0))
