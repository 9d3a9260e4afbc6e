"""The costs of a model: parameters by part, FLOPs, memory, communication."""

from dataclasses import dataclass

from torch import nn

from mlm.data.packing import Rows
from mlm.model.encoder import EncoderConfig
from mlm.model.heads import MaskedLanguageModel, ModelConfig


def parameters_by_part(model: MaskedLanguageModel) -> dict[str, int]:
    """Return the number of parameters of each part; the output embedding is the token embedding, counted once."""

    def count(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    encoder = model.encoder
    parts = {
        "token embeddings (input and output)": count(encoder.embeddings.tokens),
        "other embeddings and their norm": count(encoder.embeddings) - count(encoder.embeddings.tokens),
        "encoder layers": count(encoder.blocks),
        "final norm": count(encoder.final_norm),
        "output transform": count(model.transform),
        "output bias": model.output_bias.numel(),
    }
    return {part: number for part, number in parts.items() if number} | {"total": count(model)}


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


@dataclass(frozen=True)
class Memory:
    """Estimated bytes of training, by what they hold."""

    weights_and_optimizer: int
    activations: int
    scores: int

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return self.weights_and_optimizer + self.activations + self.scores


def memory(
    config: EncoderConfig,
    parameters: int,
    micro_batch_tokens: int,
    kept_length: int,
    scores: int,
    number_bytes: int,
    threads: int,
) -> Memory:
    """Estimate the memory of a training step.

    Args:
        config: the encoder.
        parameters: parameters of the model; each has a weight and two moments, and for every thread a gradient and a
            copy in low precision.
        micro_batch_tokens: slots of the rows computed at once.
        kept_length: keys of a query; attention keeps two scores a head for each. 0 on CUDA, which keeps none.
        scores: predicted tokens of a micro-batch times vocabulary size; kept with their gradient, which is scaled.
        number_bytes: bytes of a number in matrix products.
        threads: micro-batches computed at the same time.

    """
    widths = 12 * config.width + (4 if config.gated else 3) * config.feedforward_width
    attention = 2 * config.heads * kept_length
    activations = micro_batch_tokens * config.layers * (widths + attention) * number_bytes
    weights = parameters * (12 + threads * (4 + number_bytes % 4))
    return Memory(weights, threads * activations, threads * scores * 3 * number_bytes)


@dataclass(frozen=True)
class Server:
    """GPUs that train together, for projections."""

    name: str
    gpus: int
    peak_flops: float
    """Of each GPU in bfloat16, dense."""
    bandwidth: float
    """Bytes a second that each GPU sends to its neighbours."""


H100S = Server("8 H100s with NVLink", 8, 989e12, 450e9)
"""NVIDIA's data sheet: 989 TFLOP/s dense, 900 GB/s in both directions together."""
STATE_BYTES = 16
"""Bytes a parameter of weight, gradient and Adam's two moments in float32: on every GPU, or divided among them."""


def communicated_bytes(parameters: int, gpus: int) -> float:
    """Return the bytes that each GPU sends in a step, replicated and sharded alike.

    Replicated: a ring sums float32 gradients (reduce-scatter and all-gather of 4 bytes each). Sharded: bfloat16 weights
    are gathered for the forward and for the backward pass (2 + 2), and float32 gradients scattered (4).
    """
    return 8 * parameters * (gpus - 1) / gpus


def communication_share(parameters: int, flops_per_gpu: float, server: Server, peak_share: float) -> float:
    """Return the projected share of a step that communication takes if it does not overlap with computing.

    Args:
        parameters: parameters of the model.
        flops_per_gpu: floating-point operations of each GPU in a step.
        server: the GPUs.
        peak_share: share of the GPUs' peak at which they compute.

    """
    computing = flops_per_gpu / (server.peak_flops * peak_share)
    sending = communicated_bytes(parameters, server.gpus) / server.bandwidth
    return sending / (sending + computing)
