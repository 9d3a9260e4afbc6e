"""The floating-point operations of training."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlm.config import PretrainConfig
from mlm.data.corpus import Corpus
from mlm.model.encoder import LocalAttention
from mlm.model.heads import ModelConfig


def mean_context(segments: NDArray[Any], local: LocalAttention | None = None) -> float:
    """Return the mean number of tokens that a token attends to: its segment, or the part of it that is near.

    `segments` is the number of segments of each length, from 0 tokens.
    """
    lengths = np.arange(len(segments), dtype=float)
    reach = lengths - 1 if local is None else np.minimum(local.reach, lengths - 1)
    pairs = lengths * (2 * reach + 1) - reach * (reach + 1)  # at both ends of a segment some are missing
    return float(segments @ pairs / (segments @ lengths))


def flops_per_token(
    config: ModelConfig,
    vocabulary_size: int,
    context: float,
    predicted_share: float,
    *,
    local_context: float | None = None,
    frozen_encoder: bool = False,
) -> float:
    """Return the floating-point operations that training on a token needs: forward, and twice that backward.

    Only matrix products that the loss needs are counted, two operations a multiply-add. Attention covers the
    `context`, in local layers the `local_context`. The output over the vocabulary and the last layer, except for its
    keys and values, are counted for the predicted share of tokens. A frozen encoder has no backward pass.
    """
    encoder = config.encoder
    D, F, E = encoder.width, encoder.feedforward_width, encoder.embedding_width or encoder.width
    keys_values = 2 * D * D
    near = context if local_context is None else local_context
    contexts = [near if encoder.is_local(layer) else context for layer in range(encoder.layers)]
    *layers, last = (2 * D * D + (3 if encoder.gated else 2) * D * F + 2 * seen * D for seen in contexts)
    projection = 0 if encoder.embedding_width is None else E * D
    trunk = projection + sum(keys_values + layer for layer in layers) + keys_values + predicted_share * last
    output = predicted_share * (E * vocabulary_size + (D * E if config.transform else 0))
    if frozen_encoder:
        return 2 * trunk + (4 if config.transform else 2) * output
    return 6 * (trunk + output)


def flops_at(config: PretrainConfig, corpus: Corpus) -> Callable[[float], float]:
    """Return the function from the used share of the budget to the operations that training on a token then needs."""
    segments = corpus.train.segments_per_row
    context = mean_context(segments)
    local_context = mean_context(segments, config.model.encoder.local_attention)

    def operations(fraction: float) -> float:
        return flops_per_token(
            config.model,
            corpus.manifest.vocabulary_size,
            context,
            config.masking.rate_at(fraction),
            local_context=local_context,
            frozen_encoder=config.train.frozen_encoder,
        )

    return operations
