"""Every initial weight, in one function."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mlm.model.attention import Attention
from mlm.model.encoder import Encoder, EncoderConfig
from mlm.model.feedforward import FeedForward, GatedFeedForward
from mlm.model.heads import MaskedLanguageModel


@torch.no_grad()
def initialize(
    model: MaskedLanguageModel, config: EncoderConfig, seed: int, counted: Mapping[str, Tensor] | None = None
) -> None:
    """Draw the initial weights; the same seed gives the same weights.

    `counted` has `embeddings` of length 1, which get the mean length of drawn ones and replace them where they are not
    0, and the `output_bias`.

    | weights                                        | distribution                                           |
    |------------------------------------------------|--------------------------------------------------------|
    | token embeddings                               | normal, standard deviation 0.02; with sinusoidal       |
    |                                                | positions, which scale them by sqrt(E), 1 / sqrt(E)    |
    | learned positions                              | normal, standard deviation 0.02                        |
    | linear layers (with that from E to D)          | normal, standard deviation 1 / sqrt(inputs)            |
    | the last linear layer of each sublayer of a    | the same divided by sqrt(2 * layers), so that the sum  |
    | pre-norm encoder                               | over all sublayers keeps its size (Radford et al. 2019)|
    | norms                                          | 1                                                      |
    | biases                                         | 0                                                      |
    """
    weight_VE = model.encoder.embeddings.tokens.weight
    generator = torch.Generator().manual_seed(seed)

    def normal(parameter: Tensor, deviation: float) -> None:
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation)

    encoder: Encoder = model.encoder
    depth = (2 * config.layers) ** -0.5 if config.norm == "pre" else 1.0
    sublayers = (Attention, FeedForward, GatedFeedForward)
    lasts = {module.output for module in encoder.blocks.modules() if isinstance(module, sublayers)}
    for module in model.modules():
        if isinstance(module, nn.Linear):
            normal(module.weight, module.in_features**-0.5 * (depth if module in lasts else 1.0))
        elif isinstance(module, nn.LayerNorm):
            module.weight.fill_(1.0)
        elif isinstance(module, nn.Embedding):
            scaled = module is encoder.embeddings.tokens and config.positions.kind == "sinusoidal"
            normal(module.weight, module.embedding_dim**-0.5 if scaled else 0.02)
        if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
            module.bias.zero_()
    model.output_bias.zero_()
    if counted is not None:
        counted_VE = counted["embeddings"] * weight_VE.norm(dim=1).mean()
        weight_VE.copy_(torch.where(counted_VE.any(dim=1, keepdim=True), counted_VE, weight_VE))
        model.output_bias.copy_(counted["output_bias"])
