"""Export a run's model as a folder that plain transformers opens, whole or not at all, with a model card."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from configs import UserError
from configs.extras import require
from configs.files import check_new, written_folder
from mlm.checkpoint import checkpoint
from mlm.interop import onnx
from mlm.interop.export import Compared, architecture_of, compare, write
from mlm.tracking import model_card, run_directory
from mlm.tracking.model_card import ONNX, Facts
from mlm.tracking.run_record import RunRecord
from tokenizer.special_tokens import SpecialTokens

Format = Literal["transformers", "onnx"]


@dataclass(frozen=True)
class Exported:
    """A folder that plain transformers opens."""

    path: Path
    architecture: str
    """Its name in the field, such as ModernBERT; ONNX if there is nothing else."""
    compared: Compared
    """Its comparison with the run's model; that of ONNX if there is nothing else."""
    onnx: Compared | None = None
    """The comparison of its ONNX file, if there is one."""


def export(
    run: Path,
    out: Path,
    *,
    licence: str | None = None,
    language: str | None = None,
    formats: Collection[Format] = ("transformers",),
) -> Exported:
    """Write the newest checkpoint of a run, or a checkpoint, as a new folder `out` that plain transformers opens.

    The folder is read by transformers and compared with the run's model before it appears. Its model card names
    `licence` and `language`, if any. ONNX, among the `formats`, is a file in the folder; every model has that form.

    Raises:
        UserError: the model has no exact counterpart, `out` is there, a package is not installed, or `run` is no
            pretraining run.
        OSError: the disk is full or not writable.
    """
    if "transformers" in formats:
        require("transformers", extra="hub", purpose="exports")
    if "onnx" in formats:
        onnx.check_installed()
    check_new(out)
    path = checkpoint.run_of(run)
    if run_directory.is_fine_tuning(path):
        raise UserError(f"{path} is a fine-tuning run: python -m finetune.export exports its classifier")
    folder = checkpoint.resolve(run)
    model, tokenizer, config = checkpoint.load_model(folder, torch.device("cpu"))
    name = architecture_of(config.model) if "transformers" in formats else ONNX  # before anything is written
    record, row_length = RunRecord.read(folder, tokenizer), config.data.row_length
    with written_folder(out) as partial:
        parts = []
        if "transformers" in formats:
            write(partial, model, tokenizer, config.model, row_length)
            parts.append(compare(partial, model, tokenizer, row_length, record.heldout_sentences(tokenizer)))
        if "onnx" in formats:
            parts.append(onnx.export(partial, model, tokenizer, row_length, record.heldout_sentences(tokenizer)))
        compared, in_onnx = parts[0], parts[-1] if "onnx" in formats else None
        special = SpecialTokens.of(tokenizer)
        facts = Facts(
            name=out.name,
            architecture=name,
            record=record,
            parameters=sum(weight.numel() for weight in model.parameters()),
            mask=tokenizer.id_to_token(special.mask) or "",
            cls_sep=special.adds_cls_sep,
            compared=compared,
            onnx=in_onnx,
            licence=licence,
            language=language,
        )
        model_card.write(partial, facts)
    return Exported(out, name, compared, in_onnx)
