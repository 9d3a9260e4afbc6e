"""The reference models: as large as ours, with the defaults of their authors."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mlm.data.batches import IGNORED, Batch
from mlm.model.encoder import EncoderConfig
from tokenizer.vocabulary import CLS, PAD, SEP

if TYPE_CHECKING:
    from transformers import BertForMaskedLM, ModernBertForMaskedLM


def bert(encoder: EncoderConfig, vocabulary_size: int, row_length: int) -> "BertForMaskedLM":
    """Return BERT in the size of `encoder` and with its dropout; other settings are the library's defaults."""
    from transformers import BertConfig, BertForMaskedLM

    sizes = _sizes(encoder, vocabulary_size, row_length, encoder.feedforward_width)
    dropout: dict[str, Any] = {"hidden_dropout_prob": encoder.dropout, "attention_probs_dropout_prob": encoder.dropout}
    return BertForMaskedLM(BertConfig(**sizes, **dropout))


def modernbert(encoder: EncoderConfig, vocabulary_size: int, row_length: int) -> "ModernBertForMaskedLM":
    """Return ModernBERT in the size of `encoder`, scoring predicted tokens only, else with the library's defaults.

    Its feed-forward layers are gated: a third matrix makes up for a width that is smaller by a third.
    """
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    sizes = _sizes(encoder, vocabulary_size, row_length, 2 * encoder.feedforward_width // 3)
    special = {"pad": PAD, "bos": CLS, "cls": CLS, "eos": SEP, "sep": SEP}
    ids: dict[str, Any] = {f"{name}_token_id": number for name, number in special.items()}
    return ModernBertForMaskedLM(ModernBertConfig(**sizes, **ids, sparse_prediction=True))


def _sizes(encoder: EncoderConfig, vocabulary_size: int, row_length: int, feedforward_width: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary_size,
        "hidden_size": encoder.width,
        "intermediate_size": feedforward_width,
        "num_hidden_layers": encoder.layers,
        "num_attention_heads": encoder.heads,
        "max_position_embeddings": row_length,
    }


class TorchEncoder(nn.Module):
    """BERT made of torch's encoder layers; it scores the vocabulary at every position."""

    def __init__(self, encoder: EncoderConfig, vocabulary_size: int, row_length: int) -> None:
        super().__init__()
        width = encoder.width
        self.tokens = nn.Embedding(vocabulary_size, width)
        self.positions = nn.Embedding(row_length, width)
        self.norm = nn.LayerNorm(width)
        layer = nn.TransformerEncoderLayer(
            width, encoder.heads, encoder.feedforward_width, encoder.dropout, encoder.activation, batch_first=True
        )
        self.layers = nn.TransformerEncoder(layer, encoder.layers, enable_nested_tensor=False)
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.output_bias = nn.Parameter(torch.zeros(vocabulary_size))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the mean loss in nats over the labels (B, L) that are not IGNORED, and the scores (B, L, V)."""
        positions_L = torch.arange(input_ids.shape[1], device=input_ids.device)
        hidden_BLD = self.norm(self.tokens(input_ids) + self.positions(positions_L))
        hidden_BLD = self.layers(hidden_BLD, src_key_padding_mask=attention_mask == 0)
        scores_BLV = nn.functional.linear(self.transform(hidden_BLD), self.tokens.weight, self.output_bias)
        scores = scores_BLV.flatten(0, 1).to(torch.promote_types(scores_BLV.dtype, torch.float32))
        loss = nn.functional.cross_entropy(scores, labels.flatten(), ignore_index=IGNORED)
        return {"loss": loss, "logits": scores_BLV}


def labelled(batch: Batch) -> dict[str, Tensor]:
    """Return a batch with a label at every position, as those models read it; they attend to the whole row."""
    labels_BL = torch.full_like(batch.ids_BL, IGNORED)
    rows, slots = (batch.labels_BM != IGNORED).nonzero(as_tuple=True)
    labels_BL[rows, batch.predicted_BM[rows, slots]] = batch.labels_BM[rows, slots]
    return {"input_ids": batch.ids_BL, "attention_mask": (batch.segments_BL > 0).long(), "labels": labels_BL}


def unpacked(batch: Batch) -> dict[str, Tensor]:
    """Return the same with every segment in a row of its own."""
    real_BL = batch.segments_BL > 0
    rows, _ = real_BL.nonzero(as_tuple=True)
    segments, columns = torch.stack([rows, batch.segments_BL[real_BL]]), batch.positions_BL[real_BL]
    numbers = torch.unique(segments, dim=1, return_inverse=True)[1]
    shape, empty = (int(numbers.max()) + 1, int(columns.max()) + 1), {"input_ids": PAD, "labels": IGNORED}
    apart: dict[str, Tensor] = {}
    for name, packed_BL in labelled(batch).items():
        apart[name] = packed_BL.new_full(shape, empty.get(name, 0))
        apart[name][numbers, columns] = packed_BL[real_BL]
    return apart
