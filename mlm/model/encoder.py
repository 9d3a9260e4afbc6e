"""The encoder: embeddings with positions, then a stack of blocks (Vaswani et al. 2017, section 3)."""

from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from configs import Config
from mlm.model.attention import Attention, Rotary, Rotation, SegmentMask, gather_positions
from mlm.model.dropout import Dropout
from mlm.model.feedforward import Activation, FeedForward, GatedFeedForward


class SinusoidalPositions(Config):
    """Fixed sines and cosines, added to embeddings scaled by sqrt(width) (Vaswani et al. 2017, sections 3.4, 3.5)."""

    kind: Literal["sinusoidal"] = "sinusoidal"


class LearnedPositions(Config):
    """A learned vector for each position, added to the embeddings (Devlin et al. 2019, section 3)."""

    kind: Literal["learned"] = "learned"


class RotaryPositions(Config):
    """Queries and keys rotated by their position (Su et al. 2021, section 3.2)."""

    kind: Literal["rotary"] = "rotary"
    theta: float = Field(10_000.0, gt=1)
    """Base of the wavelengths: the longest is about 2 pi theta positions."""


class LocalAttention(Config):
    """Attention to near tokens only, in all layers but some (Warner et al. 2024, section 2.1)."""

    window: int = Field(128, gt=1)
    """Each token attends to `window` // 2 tokens on each side, and to itself."""
    global_every: int = Field(3, gt=0)
    """Layers 0, `global_every`, 2 `global_every`, ... attend to the whole segment."""
    theta: float = Field(10_000.0, gt=1)
    """Base of the wavelengths of the local layers' rotary positions."""

    @property
    def reach(self) -> int:
        """Return the farthest position that a token attends to, on each side."""
        return self.window // 2


class EncoderConfig(Config):
    """The encoder's shape."""

    width: int = Field(128, gt=0, le=65_536)
    """Width of the hidden states, D."""
    embedding_width: int | None = Field(None, gt=0, le=65_536)
    """Width of the embeddings, E, which are then projected to D (Clark et al. 2020); null takes D."""
    heads: int = Field(4, gt=0)
    """Attention heads in each layer; they divide the width."""
    feedforward_width: int = Field(512, gt=0, le=1_048_576)
    """Width inside the feed-forward layers, F; a gated one has two matrices of this width."""
    layers: int = Field(3, gt=0, le=1000)
    """Number of encoder layers."""
    norm: Literal["pre", "post"] = "pre"
    """Layer norm before each sublayer and at the end (pre), or after each residual sum (post, as in BERT)."""
    embedding_norm: bool = True
    """Normalize the embeddings as well; a pre-norm encoder's first attention then has no further norm."""
    norm_epsilon: float = Field(1e-5, gt=0, lt=1)
    """Added to the variance that a layer norm divides by."""
    activation: Activation = "swish"
    """Activation of the feed-forward layers."""
    gated: bool = False
    """Gated feed-forward layers (Shazeer 2020)."""
    positions: Annotated[SinusoidalPositions | LearnedPositions | RotaryPositions, Field(discriminator="kind")] = (
        RotaryPositions()
    )
    """The encoding of a token's position in its segment."""
    local_attention: LocalAttention | None = None
    """Local attention in most layers; null attends to the whole segment in all. It needs rotary positions."""
    biases: bool = True
    """Biases in the linear layers and norms of the encoder; the output over the vocabulary always has one."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability of dropping an embedding, an attention weight, or an element of a sublayer's output."""

    @model_validator(mode="after")
    def _shape_is_possible(self) -> "EncoderConfig":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}")
        if self.positions.kind == "rotary" and self.width // self.heads % 2:
            raise ValueError(f"rotary positions need an even head width, not {self.width // self.heads}")
        if self.positions.kind == "sinusoidal" and (self.embedding_width or self.width) % 2:
            raise ValueError(f"sinusoidal positions need an even width, not {self.embedding_width or self.width}")
        if self.positions.kind != "rotary" and self.local_attention is not None:
            raise ValueError(f"local_attention needs rotary positions, not {self.positions.kind} ones")
        return self

    def is_local(self, layer: int) -> bool:
        """Return whether a layer, from 0, has local attention."""
        return self.local_attention is not None and layer % self.local_attention.global_every > 0


class Embeddings(nn.Module):
    """Token embeddings, with positions added unless these are rotary, projected to the width if they are narrower."""

    sinusoids_LE: Tensor | None

    def __init__(self, config: EncoderConfig, vocabulary_size: int, row_length: int) -> None:
        super().__init__()
        width = config.embedding_width or config.width
        self.tokens = nn.Embedding(vocabulary_size, width)
        self.positions = nn.Embedding(row_length, width) if config.positions.kind == "learned" else None
        sinusoids = sinusoidal_positions(row_length, width) if config.positions.kind == "sinusoidal" else None
        self.register_buffer("sinusoids_LE", sinusoids, persistent=False)
        self.norm = layer_norm(config, width) if config.embedding_norm else nn.Identity()
        self.dropout = Dropout(config.dropout)
        narrow = config.embedding_width is not None
        self.projection = nn.Linear(width, config.width, bias=config.biases) if narrow else nn.Identity()

    def forward(self, ids_BL: Tensor, positions_BL: Tensor) -> Tensor:
        """Return the embedded rows, (B, L, D)."""
        embedded_BLE: Tensor = self.tokens(ids_BL)
        if self.positions is not None:
            embedded_BLE = embedded_BLE + self.positions(positions_BL)
        elif self.sinusoids_LE is not None:
            embedded_BLE = embedded_BLE * embedded_BLE.shape[-1] ** 0.5 + self.sinusoids_LE[positions_BL]
        hidden_BLD: Tensor = self.projection(self.dropout(self.norm(embedded_BLE)))
        return hidden_BLD


class Residual(nn.Module):
    """A sublayer with its norm and dropout, whose output is added to the residual stream.

    Its input and the stream are given apart: in the last layer the input is of every position, and the stream of the
    predicted ones alone.
    """

    def __init__(self, sublayer: nn.Module, norm: nn.Module, dropout: float) -> None:
        super().__init__()
        self.sublayer = sublayer
        self.norm = norm
        self.dropout = Dropout(dropout)


class PreNorm(Residual):
    """Normalize the sublayer's input (Xiong et al. 2020)."""

    def forward(self, hidden_BLD: Tensor, residual_BMD: Tensor, *context: object) -> Tensor:
        """Return the residual stream plus the sublayer's output for `hidden_BLD` and `context`, (B, M, D)."""
        added_BMD: Tensor = self.dropout(self.sublayer(self.norm(hidden_BLD), *context))
        return residual_BMD + added_BMD


class PostNorm(Residual):
    """Normalize the sum of residual stream and sublayer (Vaswani et al. 2017)."""

    def forward(self, hidden_BLD: Tensor, residual_BMD: Tensor, *context: object) -> Tensor:
        """Return the norm of the residual stream plus the sublayer's output, (B, M, D)."""
        added_BMD: Tensor = self.dropout(self.sublayer(hidden_BLD, *context))
        normed_BMD: Tensor = self.norm(residual_BMD + added_BMD)
        return normed_BMD


class Block(nn.Module):
    """One encoder layer: attention within segments, then feed-forward."""

    def __init__(self, attention: Residual, feedforward: Residual) -> None:
        super().__init__()
        self.attention = attention
        self.feedforward = feedforward

    def forward(
        self, hidden_BLD: Tensor, segment_mask: SegmentMask, rotation: Rotation | None, queries_BM: Tensor | None = None
    ) -> Tensor:
        """Return the next hidden states, (B, L, D), or those of the queries alone, (B, M, D)."""
        residual_BMD = hidden_BLD if queries_BM is None else gather_positions(hidden_BLD, queries_BM)
        hidden_BMD: Tensor = self.attention(hidden_BLD, residual_BMD, segment_mask, rotation, queries_BM)
        hidden_BMD = self.feedforward(hidden_BMD, hidden_BMD)
        return hidden_BMD


class Encoder(nn.Module):
    """Turn rows of token ids into hidden states, each segment by itself."""

    def __init__(self, config: EncoderConfig, vocabulary_size: int, row_length: int) -> None:
        super().__init__()
        self.embeddings = Embeddings(config, vocabulary_size, row_length)
        positions, head_width = config.positions, config.width // config.heads
        self.rotary = Rotary(head_width, positions.theta) if isinstance(positions, RotaryPositions) else None
        self.local = config.local_attention
        self.local_rotary = None if self.local is None else Rotary(head_width, self.local.theta)
        self.local_layers = [config.is_local(layer) for layer in range(config.layers)]
        self.blocks = nn.ModuleList(_block(config, layer) for layer in range(config.layers))
        self.final_norm = layer_norm(config) if config.norm == "pre" else nn.Identity()

    def forward(self, ids_BL: Tensor, segment_mask: SegmentMask, queries_BM: Tensor | None = None) -> Tensor:
        """Return the hidden states of every position, (B, L, D), or those of the queries alone, (B, M, D).

        In the last layer, all other positions serve only as keys and values.
        """
        hidden_BLD: Tensor = self.embeddings(ids_BL, segment_mask.positions_BL)
        *contexts, last_context = self._contexts(segment_mask)
        *blocks, last = self.blocks
        for block, context in zip(blocks, contexts, strict=True):
            hidden_BLD = block(hidden_BLD, *context)
        hidden_BMD: Tensor = self.final_norm(last(hidden_BLD, *last_context, queries_BM))
        return hidden_BMD

    def _contexts(self, segment_mask: SegmentMask) -> list[tuple[SegmentMask, Rotation | None]]:
        """Return the mask and the rotation of every layer."""

        def context(segment_mask: SegmentMask, rotary: nn.Module | None) -> tuple[SegmentMask, Rotation | None]:
            rotation = None if rotary is None else rotary(segment_mask.positions_BL, segment_mask.dtype)
            return segment_mask, rotation

        global_context = context(segment_mask, self.rotary)
        if self.local is None:
            return [global_context] * len(self.blocks)
        local_context = context(segment_mask.within(self.local.reach), self.local_rotary)
        return [local_context if is_local else global_context for is_local in self.local_layers]


def layer_norm(config: EncoderConfig, width: int | None = None) -> nn.LayerNorm:
    """Return a layer norm over `width`, or over the hidden width (Ba et al. 2016)."""
    return nn.LayerNorm(width or config.width, eps=config.norm_epsilon, bias=config.biases)


def sinusoidal_positions(length: int, width: int) -> Tensor:
    """Return the table of Vaswani et al. 2017, section 3.5: sines in even columns, cosines in odd ones, (L, E)."""
    frequencies = 10_000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).float()


def _block(config: EncoderConfig, layer: int) -> Block:
    attention = Attention(config.width, config.heads, config.biases, config.dropout)
    feedforward_layer = GatedFeedForward if config.gated else FeedForward
    feedforward = feedforward_layer(config.width, config.feedforward_width, config.activation, config.biases)
    residual = PreNorm if config.norm == "pre" else PostNorm
    reads_normed_embeddings = config.norm == "pre" and config.embedding_norm and layer == 0
    reads_normed_embeddings &= config.embedding_width is None
    return Block(
        residual(attention, nn.Identity() if reads_normed_embeddings else layer_norm(config), config.dropout),
        residual(feedforward, layer_norm(config), config.dropout),
    )
