"""The floating-point operations of training."""

from mlm.data.packing import Rows
from mlm.model.heads import ModelConfig


def mean_context(rows: Rows) -> float:
    """Return the mean number of tokens that a token attends to: the length of its segment."""
    lengths = rows.lengths.astype(float)
    return float((lengths**2).sum() / lengths.sum())


def flops_per_token(config: ModelConfig, vocabulary_size: int, context: float, predicted_share: float) -> float:
    """Return the floating-point operations that training on a token needs: forward, and twice that backward.

    Only matrix products that the loss needs are counted, two operations a multiply-add. Attention covers the token's
    own segment. The output over the vocabulary and the last layer, except for its keys and values, are counted for
    the predicted share of tokens.
    """
    encoder = config.encoder
    D, F = encoder.width, encoder.feedforward_width
    keys_values = 2 * D * D
    queries = 2 * D * D + (3 if encoder.gated else 2) * D * F + 2 * context * D
    output = D * vocabulary_size + (D * D if config.transform else 0)
    return 6 * ((encoder.layers - 1) * (keys_values + queries) + keys_values + predicted_share * (queries + output))
