"""Export a fine-tuned model into a folder for other programs, compared with the model before it appears."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch

from configs import UserError
from configs.files import check_new, written_folder
from finetune import saved_model
from finetune.heads.linear import LinearHead
from finetune.interop import card, onnx, sequence_classification
from finetune.interop.card import Exported, Format
from finetune.interop.texts import Probabilities, rows_to_compare
from finetune.saved_model import SavedModel
from mlm.distributed.world import World
from mlm.interop import comparison
from mlm.interop.comparison import Difference

logger = logging.getLogger(__name__)


class Writer(Protocol):
    """A module that writes models in a format."""

    def check(self, model: SavedModel) -> None:
        """Raise a UserError with the remedy if the model has no exact counterpart, or a package is not installed."""

    def write(self, model: SavedModel, folder: Path) -> None:
        """Write the files into `folder`."""

    def load(self, folder: Path, model: SavedModel) -> Probabilities:
        """Return the probabilities by the files alone, read as another program reads them."""


FORMATS: Mapping[Format, Writer] = {"transformers": sequence_classification, "onnx": onnx}
"""In the order of writing."""


def export(run: Path, out: Path, formats: Sequence[Format] = ()) -> Exported:
    """Write the model of a fine-tuning run into the new folder `out`; `formats` default to all that suit its head.

    Raises:
        UserError: the run has no model, it has no exact counterpart, `out` is there, or a package is not installed.
        OSError: the disk is full or not writable.
    """
    check_new(out)
    model = saved_model.load(run, torch.device("cpu"))
    if model.is_of_numbers:
        raise UserError(f"{run} predicts a number, and classifiers alone are exported: name the run of a classifier")
    suitable: Sequence[Format] = ("transformers", "onnx") if isinstance(model.config.head, LinearHead) else ("onnx",)
    wanted = [name for name in FORMATS if name in (formats or suitable)]
    for name in [*wanted]:
        try:
            FORMATS[name].check(model)
        except UserError as error:
            if formats or len(wanted) == 1:
                raise
            wanted.remove(name)
            logger.info("not exported as %s: %s", name, error)
    with written_folder(out) as partial:
        for name in wanted:
            FORMATS[name].write(model, partial)
        exported = _compare(model, partial, out, wanted)
        card.write(partial, run, model, exported)
    return exported


def _compare(model: SavedModel, folder: Path, out: Path, formats: Sequence[Format]) -> Exported:
    """Return the largest differences; a UserError if one is over `comparison.LARGEST`."""
    rows, of_the_run = rows_to_compare(model)
    reader, encoder = model.config.data.reader, model.classifier.encoder
    texts = [reader.texts(row) for row in rows]
    if len(reader.columns) > 1:  # the libraries truncate a pair by rules that are a token apart
        whole = [not example.truncated for example in encoder.tokenize(texts, model.longest)]
        rows = [row for row, fits in zip(rows, whole, strict=True) if fits]
        texts = [reader.texts(row) for row in rows]
    predicted = model.classify(rows, World(torch.device("cpu"), torch.float32))
    ours_NC = torch.tensor([prediction.probabilities for prediction in predicted])
    differences = {}
    for name in formats:
        theirs = FORMATS[name].load(folder, model)
        alone_NC, padded_NC = torch.cat([theirs([text]) for text in texts]), theirs(texts)
        found = Difference.of([(alone_NC, ours_NC), (padded_NC, ours_NC)])
        comparison.check({"probabilities": found}, f"the run and the {name} model", "take another --format")
        differences[name] = found.largest
    return Exported(out, differences, len(texts), of_the_run)
