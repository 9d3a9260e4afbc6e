"""A classifier as ONNX, with the names of its classes and the preparation of its texts in the file's metadata."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from finetune.encoders.published import PublishedEncoder
from finetune.interop.texts import TOKENIZER, Probabilities, as_data, write_tokenizer
from finetune.saved_model import SavedModel
from finetune.training.classifier import Classifier
from mlm.interop import onnx
from mlm.interop.onnx import FILE


def check(model: SavedModel) -> None:
    """Raise a UserError if a package is not installed; every model has a form in ONNX."""
    onnx.check_installed()


def write(model: SavedModel, folder: Path) -> None:
    """Write the file and the tokenizer into `folder`."""
    write_tokenizer(model, folder)
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if _takes_types(model) else [])]
    example = {name: torch.ones(2, 3, dtype=torch.int64) for name in names}
    metadata = {name: json.dumps(value) for name, value in as_data(model).items()}
    # Published encoders refuse rows beyond their positions.
    most, outputs = model.classifier.encoder.longest, ("logits", "probabilities")
    onnx.write(_Scores(model.classifier), example, outputs, folder / FILE, longest=most, metadata=metadata)


def load(folder: Path, model: SavedModel) -> Probabilities:
    """Return the probabilities of the classes by onnxruntime and tokenizers alone from `folder`."""
    run, tokenizer = onnx.load(folder / FILE), Tokenizer.from_file(str(folder / TOKENIZER))
    tokenizer.encode_special_tokens = True

    def probabilities(texts: Sequence[tuple[str, ...]]) -> Tensor:
        encoded = tokenizer.encode_batch([text if len(text) > 1 else text[0] for text in texts])
        inputs = {
            "input_ids": torch.tensor([one.ids for one in encoded]),
            "attention_mask": torch.tensor([one.attention_mask for one in encoded]),
        }
        if _takes_types(model):
            inputs["token_type_ids"] = torch.tensor([one.type_ids for one in encoded])
        _, found_BC = run(inputs)
        return found_BC

    return probabilities


def _takes_types(model: SavedModel) -> bool:
    return isinstance(model.classifier.encoder, PublishedEncoder) and model.classifier.encoder.takes_types


class _Scores(nn.Module):
    """A classifier as a function of padded rows by the names of transformers."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the scores of the classes and their probabilities, each (B, C)."""
        types_BL = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        logits_BC = self.classifier(input_ids, attention_mask > 0, types_BL)
        return logits_BC, logits_BC.softmax(dim=-1)
