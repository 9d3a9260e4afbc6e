"""Multi-head attention within segments (Vaswani et al. 2017, section 3.2; rotary positions: Su et al. 2021)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FLASH_WIDTHS = range(8, 257, 8)
"""Head widths that the kernel for segments of any length takes."""


@dataclass(frozen=True)
class Layout:
    """Which positions of a row belong together: attention never leaves a segment.

    A segment is what the model reads as one text. Padding is a segment of its own, which nothing else sees and
    which sees itself, so that no softmax is ever taken over nothing.
    """

    segments_BL: Tensor
    """Number of the segment that each position belongs to, from 1 in the order they stand in; 0 is padding. int32"""
    positions_BL: Tensor
    """Position within the segment, from 0. int64"""
    dtype: torch.dtype
    """Type of the attention scores."""
    bias_B1LL: Tensor | None
    """What is added to the attention scores: 0 within a segment, a large negative number across; None where
    `borders_X` says as much. Score dtype"""
    borders_X: Tensor | None
    """What `borders` returns of all positions, for a kernel that takes segments of any length; else None."""

    @classmethod
    def of(
        cls, segments_BL: Tensor, positions_BL: Tensor, dtype: torch.dtype, most_segments: int | None = None
    ) -> "Layout":
        """Lay out rows of segments.

        Args:
            segments_BL: the segment of each position.
            positions_BL: its place in there.
            dtype: type of the attention scores.
            most_segments: how many segments a row has at the most, padding counted; None where nobody knows.

        """
        if most_segments is not None and segments_BL.device.type == "cuda" and dtype == torch.bfloat16:
            return cls(segments_BL, positions_BL, dtype, None, borders(segments_BL, most_segments))
        return cls(segments_BL, positions_BL, dtype, _bias(segments_BL, segments_BL, dtype), None)

    def bias(self, asked_BM: Tensor | None) -> Tensor:
        """Return what is added to the scores, (B, 1, L, L), or to those of the positions asked for, (B, 1, M, L)."""
        if self.bias_B1LL is None:
            return _bias(self._segments_of(asked_BM), self.segments_BL, self.dtype)
        return self.bias_B1LL if asked_BM is None else gather_positions(self.bias_B1LL[:, 0], asked_BM)[:, None]

    def borders_of(self, asked_BM: Tensor | None) -> Tensor:
        """Return the borders of all positions' segments, or of what they have of the positions asked for."""
        assert self.borders_X is not None
        if asked_BM is None:
            return self.borders_X
        return borders(self._segments_of(asked_BM), (len(self.borders_X) - 1) // len(asked_BM))

    def _segments_of(self, asked_BM: Tensor | None) -> Tensor:
        return self.segments_BL if asked_BM is None else self.segments_BL.gather(1, asked_BM)


def borders(segments_BX: Tensor, most_segments: int) -> Tensor:
    """Return where each segment begins in the rows laid one after the other, and where the last one ends. int32

    Of every row these are `most_segments`, so that the shape is static, and many are empty.

    Args:
        segments_BX: segments of positions that stand in order, from 1; 0 is padding, which stands last.
        most_segments: how many a row has at the most, padding counted.

    """
    places_BX = (segments_BX.long() - 1) % most_segments
    counts_BS = segments_BX.new_zeros(len(segments_BX), most_segments)
    counts_BS.scatter_add_(1, places_BX, torch.ones_like(segments_BX))
    return F.pad(counts_BS.flatten().cumsum(0, dtype=torch.int32), (1, 0))


def _bias(asking_BM: Tensor, segments_BL: Tensor, dtype: torch.dtype) -> Tensor:
    apart_BML = asking_BM[:, :, None] != segments_BL[:, None, :]
    # Finite, so that bf16 scores never reach inf - inf; exp(-30,000) is 0 in every floating-point type.
    return torch.zeros(apart_BML.shape, dtype=dtype, device=segments_BL.device).masked_fill_(apart_BML, -3e4)[:, None]


Rotation = tuple[Tensor, Tensor]
"""Cosine and sine of every position's angles, each (B, 1, L, K); in the first half of K the sine of minus the angle."""


def gather_positions(states_BLX: Tensor, positions_BM: Tensor) -> Tensor:
    """Return what stands at the chosen positions of each row, (B, M, X)."""
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

    def forward(self, positions_BL: Tensor, dtype: torch.dtype) -> Rotation:
        """Return cosine and sine of every position's angles."""
        angles_BLk = positions_BL[..., None].float() * self.inverse_frequency_k
        cosine_BLk, sine_BLk = angles_BLk.cos(), angles_BLk.sin()
        cosine_BLK, sine_BLK = torch.cat([cosine_BLk, cosine_BLk], dim=-1), torch.cat([-sine_BLk, sine_BLk], dim=-1)
        return cosine_BLK[:, None].to(dtype), sine_BLK[:, None].to(dtype)


def rotate(states_BHLK: Tensor, cosine_B1LK: Tensor, sine_B1LK: Tensor) -> Tensor:
    """Rotate each plane of each head by its position's angle; further dimensions may stand before B."""
    halves_changed_BHLK = states_BHLK.roll(states_BHLK.shape[-1] // 2, dims=-1)
    # Not by addcmul, whose results depend in the last bit on where in memory a number stands.
    return states_BHLK * cosine_B1LK + halves_changed_BHLK * sine_B1LK


def reference_attention(
    query_BHLK: Tensor, key_BHLK: Tensor, value_BHLK: Tensor, segments_BL: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute softmax(QK^T / sqrt(K))V within segments as it is written, and return it with the softmax's weights."""
    scores_BHLL = query_BHLK @ key_BHLK.transpose(-1, -2) / query_BHLK.shape[-1] ** 0.5
    apart_B1LL = (segments_BL[:, :, None] != segments_BL[:, None, :])[:, None]
    weights_BHLL = scores_BHLL.masked_fill(apart_B1LL, float("-inf")).softmax(dim=-1)
    return weights_BHLL @ value_BHLK, weights_BHLL


def _matrix_products(
    query_BHMK: Tensor, key_BHLK: Tensor, value_BHLK: Tensor, bias_B1ML: Tensor, dropout: float
) -> Tensor:
    scores_BHML = (query_BHMK * query_BHMK.shape[-1] ** -0.5) @ key_BHLK.transpose(-1, -2)
    weights_BHML = scores_BHML.add_(bias_B1ML).softmax(dim=-1)  # in place: the product's own backward needs no scores
    return F.dropout(weights_BHML, dropout) @ value_BHLK


def fast_attention(
    query_BHMK: Tensor, key_BHLK: Tensor, value_BHLK: Tensor, layout: Layout, asked_BM: Tensor | None, dropout: float
) -> Tensor:
    """Compute the same as `reference_attention` by what was measured to be fastest on the device.

    On CPU the masked SDPA kernel's backward takes a third of a training step for a twentieth of its FLOPs, and
    plain matrix products win. On CUDA the kernel for segments of any length computes nothing across them; it
    knows no dropout and takes no float32, so that there is the masked one for what is left.

    Args:
        query_BHMK: queries of all positions, or of those asked for.
        key_BHLK: keys of all positions.
        value_BHLK: their values.
        layout: which of them belong together.
        asked_BM: the positions asked for, ascending in each row; None for all.
        dropout: probability of dropping an attention weight.

    """
    if layout.borders_X is not None and not dropout and query_BHMK.shape[-1] in FLASH_WIDTHS:
        return _by_segment(query_BHMK, key_BHLK, value_BHLK, layout.borders_of(asked_BM), layout.borders_X)
    if query_BHMK.device.type == "cpu":
        return _matrix_products(query_BHMK, key_BHLK, value_BHLK, layout.bias(asked_BM), dropout)
    return F.scaled_dot_product_attention(query_BHMK, key_BHLK, value_BHLK, layout.bias(asked_BM), dropout_p=dropout)


def _by_segment(query_BHMK: Tensor, key_BHLK: Tensor, value_BHLK: Tensor, queries_X: Tensor, keys_X: Tensor) -> Tensor:
    """Attend with the rows laid one after the other, each segment by itself (FlashAttention 2: Dao 2023)."""
    from torch.nn.attention.varlen import varlen_attn  # here because it takes a second, and CPU never needs it

    B, H, M, K = query_BHMK.shape
    query, key, value = (states.transpose(1, 2).flatten(0, 1) for states in (query_BHMK, key_BHLK, value_BHLK))
    mixed = varlen_attn(query, key, value, queries_X, keys_X, M, key_BHLK.shape[2])
    assert isinstance(mixed, Tensor)
    return mixed.view(B, M, H, K).transpose(1, 2)


class Attention(nn.Module):
    """Project to queries, keys and values, attend head by head within segments, project back."""

    def __init__(self, width: int, heads: int, biases: bool, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width, bias=biases)
        self.output = nn.Linear(width, width, bias=biases)

    def forward(self, hidden_BLD: Tensor, layout: Layout, rotation: Rotation | None, asked_BM: Tensor | None) -> Tensor:
        """Return the attended states, (B, L, D), or those of the positions asked for alone, (B, M, D).

        `rotation` is what `Rotary` returns, None for other positions.
        """
        if asked_BM is None:
            query_BHMK, key_BHLK, value_BHLK = self._by_head(self.qkv(hidden_BLD), 2, rotation)
        else:
            sizes = [hidden_BLD.shape[-1], 2 * hidden_BLD.shape[-1]]
            query_weight, key_value_weight = torch.split(self.qkv.weight, sizes)
            query_bias, key_value_bias = (None, None) if self.qkv.bias is None else torch.split(self.qkv.bias, sizes)
            key_BHLK, value_BHLK = self._by_head(F.linear(hidden_BLD, key_value_weight, key_value_bias), 1, rotation)
            if rotation is not None:
                rotation = (
                    gather_positions(rotation[0][:, 0], asked_BM)[:, None],
                    gather_positions(rotation[1][:, 0], asked_BM)[:, None],
                )
            (query_BHMK,) = self._by_head(
                F.linear(gather_positions(hidden_BLD, asked_BM), query_weight, query_bias), 1, rotation
            )
        dropout = self.dropout if self.training else 0.0
        mixed_BHMK = fast_attention(query_BHMK, key_BHLK, value_BHLK, layout, asked_BM, dropout)
        output_BMD: Tensor = self.output(mixed_BHMK.transpose(1, 2).flatten(2))
        return output_BMD

    def _by_head(self, projected_BLX: Tensor, rotated: int, rotation: Rotation | None) -> tuple[Tensor, ...]:
        """Return the projections that stand side by side, each by head, (B, H, L, K); the first `rotated` rotated."""
        B, L, X = projected_BLX.shape
        D = self.qkv.in_features
        projected = projected_BLX.view(B, L, X // D, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        if rotation is None:
            return projected.unbind(0)
        return (*rotate(projected[:rotated], *rotation).unbind(0), *projected[rotated:].unbind(0))
