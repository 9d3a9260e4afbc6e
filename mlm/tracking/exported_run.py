"""Export a run's model as a folder that plain transformers opens, whole or not at all, with a model card."""

from dataclasses import dataclass
from pathlib import Path

import torch

from configs import UserError
from configs.extras import require
from configs.files import check_new, written_folder
from mlm.checkpoint import checkpoint
from mlm.interop.export import Compared, architecture_of, compare, write
from mlm.tracking import model_card, run_directory
from mlm.tracking.model_card import Facts
from mlm.tracking.run_record import RunRecord
from tokenizer.special_tokens import SpecialTokens


@dataclass(frozen=True)
class Exported:
    """A folder that plain transformers opens."""

    path: Path
    architecture: str
    """Its name in the field, such as ModernBERT."""
    compared: Compared
    """Its comparison with the run's model."""


def export(run: Path, out: Path, *, licence: str | None = None, language: str | None = None) -> Exported:
    """Write the newest checkpoint of a run, or a checkpoint, as a new folder `out` that plain transformers opens.

    The folder is read by transformers and compared with the run's model before it appears. Its model card names
    `licence` and `language`, if any.

    Raises:
        UserError: the model has no exact counterpart, `out` is there, transformers is not installed, or `run` is no
            pretraining run.
        OSError: the disk is full or not writable.
    """
    require("transformers", extra="hub", purpose="exports")
    check_new(out)
    path = checkpoint.run_of(run)
    if run_directory.is_fine_tuning(path):
        raise UserError(f"{path} is a fine-tuning run: python -m finetune.export exports its classifier")
    folder = checkpoint.resolve(run)
    model, tokenizer, config = checkpoint.load_model(folder, torch.device("cpu"))
    architecture_of(config.model)  # before anything is written
    record, row_length = RunRecord.read(folder, tokenizer), config.data.row_length
    with written_folder(out) as partial:
        name = write(partial, model, tokenizer, config.model, row_length)
        compared = compare(partial, model, tokenizer, row_length, record.heldout_sentences(tokenizer))
        special = SpecialTokens.of(tokenizer)
        facts = Facts(
            name=out.name,
            architecture=name,
            record=record,
            parameters=sum(weight.numel() for weight in model.parameters()),
            mask=tokenizer.id_to_token(special.mask) or "",
            cls_sep=special.adds_cls_sep,
            compared=compared,
            licence=licence,
            language=language,
        )
        model_card.write(partial, facts)
    return Exported(out, name, compared)
