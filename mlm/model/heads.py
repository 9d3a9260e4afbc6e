"""The head: logits over the vocabulary, at the predicted positions only."""

from typing import Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from configs import Config
from mlm.model.attention import SegmentMask
from mlm.model.encoder import Encoder, EncoderConfig, layer_norm
from mlm.model.feedforward import ACTIVATIONS


class ModelConfig(Config):
    """An encoder with its masked-language-model head."""

    encoder: EncoderConfig = EncoderConfig()
    """The encoder."""
    transform: bool = False
    """Dense layer, activation and norm between the encoder and the output embedding (Devlin et al. 2019's code)."""

    @model_validator(mode="after")
    def _transform_meets_embedding(self) -> Self:
        if self.encoder.embedding_width is not None and not self.transform:
            raise ValueError("encoder.embedding_width needs transform=true, which maps the width to that of embeddings")
        return self


class Transform(nn.Module):
    """Dense layer to the width of the embeddings, activation, layer norm."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.embedding_width or config.width
        self.dense = nn.Linear(config.width, width, bias=config.biases)
        self.activation = ACTIVATIONS[config.activation]
        self.norm = layer_norm(config, width)

    def forward(self, hidden_MD: Tensor) -> Tensor:
        """Return the transformed states, (M, D)."""
        transformed_MD: Tensor = self.norm(self.activation(self.dense(hidden_MD)))
        return transformed_MD


class MaskedLanguageModel(nn.Module):
    """Predict tokens from their context; the output embedding is the input embedding (Press & Wolf 2017)."""

    def __init__(self, config: ModelConfig, vocabulary_size: int, row_length: int) -> None:
        super().__init__()
        self.encoder = Encoder(config.encoder, vocabulary_size, row_length)
        self.transform = Transform(config.encoder) if config.transform else nn.Identity()
        self.output_bias = nn.Parameter(torch.zeros(vocabulary_size))

    def forward(self, ids_BL: Tensor, segment_mask: SegmentMask, predicted_BM: Tensor) -> Tensor:
        """Return the logits of every vocabulary entry at the predicted positions, row by row, (B * M, V)."""
        hidden_MD = self.transform(self.encoder(ids_BL, segment_mask, predicted_BM).flatten(0, 1))
        return nn.functional.linear(hidden_MD, self.encoder.embeddings.tokens.weight, self.output_bias)
