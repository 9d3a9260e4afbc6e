"""Export a run's model as a folder that plain transformers opens, whole or not at all, with a model card."""

import logging
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn

from configs import UserError
from configs.extras import require
from configs.files import check_new, written_folder
from mlm.checkpoint import checkpoint
from mlm.checkpoint.writer import CheckpointWriter
from mlm.config import PretrainConfig
from mlm.distributed.world import World
from mlm.interop import onnx
from mlm.interop.export import Compared, architecture_of, compare, write
from mlm.model.heads import MaskedLanguageModel
from mlm.tracking import model_card, run_directory
from mlm.tracking.model_card import ONNX, Facts, Format
from mlm.tracking.run_record import RunRecord
from mlm.training.budget import TrainingLength, TrainingProgress
from mlm.training.loop import Observer
from mlm.training.optim import Optimizer
from tokenizer.cached_encoder import normalize_by
from tokenizer.special_tokens import SpecialTokens

FOLDER = "export"
"""Folder in a run of its last checkpoint's export, or of those of its checkpoints."""

USUAL_FORMATS: tuple[Format, ...] = ("transformers",)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exported:
    """A folder that plain transformers opens."""

    path: Path
    architecture: str
    """Its name in the field, such as ModernBERT; ONNX if there is nothing else."""
    compared: Mapping[Format, Compared]
    """Its comparison with the run's model, by the formats in it."""


def export(
    run: Path,
    out: Path,
    *,
    license: str | None = None,
    language: str | None = None,
    formats: Collection[Format] = USUAL_FORMATS,
    replace: bool = False,
) -> Exported:
    """Write the newest checkpoint of a run, or a checkpoint, as a new folder `out` that plain transformers opens.

    The folder is read by transformers and compared with the run's model before it appears. Its model card names
    `license` and `language`, if any. ONNX, among the `formats`, is a file in the folder; every model has that form.
    With `replace`, a former folder `out` stands until the new one is whole. A converted encoder whose head is new, at
    random weights, leaves without it.

    Raises:
        UserError: the model has no exact counterpart, `out` is there, a package is not installed, or `run` is no
            pretraining run.
        OSError: the disk is full or not writable.
    """
    if "transformers" in formats:
        require("transformers", extra="hub", purpose="exports")
    if "onnx" in formats:
        onnx.check_installed()
    if not replace:
        check_new(out)
    path = checkpoint.run_of(run)
    if run_directory.is_fine_tuning(path):
        raise UserError(f"{path} is a fine-tuning run: python -m finetune.export exports its classifier")
    folder = checkpoint.resolve(run)
    model, tokenizer, config = checkpoint.load_model(folder, torch.device("cpu"))
    record, name = RunRecord.read(folder, tokenizer), ONNX
    if "transformers" in formats:  # before anything is written
        name = architecture_of(config.model, **({} if record.converted_from is None else {"remedy": ""}))
    with written_folder(out, replace=replace) as partial:
        compared = _write(partial, formats, model, tokenizer, record)
        special = SpecialTokens.of(tokenizer)
        facts = Facts(
            architecture=name,
            record=record,
            parameters=sum(weight.numel() for weight in (model if record.has_head else model.encoder).parameters()),
            mask=tokenizer.id_to_token(special.mask) or "",
            cls_sep=special.adds_cls_sep,
            lowercase=normalize_by(tokenizer.normalizer)("A") == "a",
            compared=compared,
            license=license,
            language=language,
        )
        model_card.write(partial, facts)
    return Exported(out, name, compared)


def _write(
    folder: Path, formats: Collection[Format], model: MaskedLanguageModel, tokenizer: Tokenizer, record: RunRecord
) -> dict[Format, Compared]:
    """Write a model in each format into `folder`; return its comparison with what is read there."""
    found: dict[Format, Compared] = {}
    row_length, has_head, texts = record.config.data.row_length, record.has_head, record.sentences_of
    if "transformers" in formats:
        write(folder, model, tokenizer, record.config.model, row_length, has_head=has_head)
        found["transformers"] = compare(folder, model, tokenizer, row_length, texts(tokenizer))
    if "onnx" in formats:
        found["onnx"] = onnx.export(folder, model, tokenizer, row_length, texts(tokenizer), has_head=has_head)
    return found


def check(config: PretrainConfig) -> None:
    """Raise a UserError if a run of `config` is to be exported and cannot be: before its training."""
    if config.export != "none":
        require("transformers", extra="hub", purpose=f"export={config.export}")
        architecture_of(config.model)


def export_at_end(run: Path, config: PretrainConfig) -> None:
    """Export the last checkpoint of a finished run if its configuration says so, once; a failure is a warning."""
    if config.export == "none":
        return
    folder = checkpoint.newest(run)
    out = run / FOLDER if config.export == "end" else run / FOLDER / folder.name
    if not out.exists():
        _try_to_export(folder, out)


class CheckpointExports(Observer):
    """Exports each checkpoint of a run, and removes the exports of checkpoints that are not kept; on rank 0.

    Training waits meanwhile: the random numbers of both stay apart.
    """

    def __init__(self, run: Path, writer: CheckpointWriter) -> None:
        """Export what `writer`, an observer before this one, saves."""
        self.run, self.writer, self.length = run, writer, TrainingLength()
        self._prune()

    def started(self, world: World, length: TrainingLength, progress: TrainingProgress) -> None:
        """Keep the length: the last checkpoint is exported later, with the results in its card."""
        self.length = length

    def checkpoint(self, progress: TrainingProgress, model: nn.Module, optimizer: Optimizer) -> None:
        """Wait until the checkpoint is written, and export it."""
        self.writer.wait()
        folder = checkpoint.step_folder(self.run, progress.step)
        if folder.is_dir() and not self.length.finished(progress):
            _try_to_export(folder, self.run / FOLDER / folder.name)
        self._prune()

    def _prune(self) -> None:
        """Remove exports without a checkpoint, and half-written ones of killed processes."""
        kept = {folder.name for folder in checkpoint.completed(self.run)}
        for path in (self.run / FOLDER).glob("*"):
            if path.name not in kept and path.is_dir():
                shutil.rmtree(path, ignore_errors=True)


def _try_to_export(folder: Path, out: Path) -> None:
    """Export a checkpoint in the place of a former export of it; a failure is a warning."""
    try:
        out.parent.mkdir(exist_ok=True)
        exported = export(folder, out, replace=True)
    except Exception as error:  # transformers may raise any, and training is worth more
        reason = " ".join(str(error).split())
        logger.warning("%s NOT EXPORTED (%s): export it by python -m mlm.export %s OUT", folder.name, reason, folder)
    else:
        logger.info("exported: %s (%s)", out, exported.architecture)
