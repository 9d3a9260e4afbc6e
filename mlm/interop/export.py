"""Export a run's model as a folder that plain transformers opens, compared with the run's model before it appears."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from tokenizers import Tokenizer
from torch import Tensor

from configs import UserError
from configs.extras import require
from configs.files import check_new, written_folder
from mlm.checkpoint import checkpoint, weights
from mlm.config import PretrainConfig
from mlm.interop import bert, model_card, modernbert
from mlm.interop.comparison import Differences, compare
from mlm.interop.hub import CONFIG
from mlm.interop.model_card import Facts
from mlm.interop.run_record import RunRecord
from mlm.model.heads import MaskedLanguageModel, ModelConfig
from mlm.tracking import run_directory
from tokenizer import vocabulary
from tokenizer.special_tokens import SpecialTokens

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class Architecture(Protocol):
    """A module that gives our models the names of an architecture of transformers."""

    @staticmethod
    def refusal(config: ModelConfig) -> str | None:
        """Return the settings that the architecture needs and a model lacks; None if it has an exact counterpart."""

    @staticmethod
    def their_config(config: ModelConfig, vocabulary_size: int, row_length: int, **special: Any) -> "PreTrainedConfig":
        """Return the configuration of a model of the same shape."""

    @staticmethod
    def their_tensors(ours: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
        """Return our tensors under the names of the architecture's model for masked language modelling."""


ARCHITECTURES: Mapping[str, Architecture] = {"BERT": bert, "ModernBERT": modernbert}
"""The architectures that a model may leave as; the first that is an exact counterpart is taken."""


WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Exported:
    """A folder that plain transformers opens."""

    path: Path
    architecture: str
    """A key of `ARCHITECTURES`."""
    differences: Differences
    """Its largest differences from the run's model."""


def architecture_of(config: ModelConfig) -> str:
    """Return the name of the architecture that a model is exported as.

    Raise a UserError with the settings of the nearest architecture if none has an exact counterpart.
    """
    needed = {name: module.refusal(config) or "" for name, module in ARCHITECTURES.items()}
    nearest = min(needed, key=lambda name: len(needed[name].split()))
    if not needed[nearest]:
        return nearest
    raise UserError(
        f"transformers has no exact counterpart of this model, and none is approximated: {nearest}, the nearest, needs"
        f" {needed[nearest]}: pretrain with these settings"
    )


def export(run: Path, out: Path, *, licence: str | None = None, language: str | None = None) -> Exported:
    """Write the newest checkpoint of a run, or a checkpoint, as a new folder `out` that plain transformers opens.

    The folder is loaded by transformers and compared with the run's model before it appears. Its model card names
    `licence` and `language`, if any.

    Raises:
        UserError: the model has no exact counterpart, `out` is there, transformers is not installed, or `run` is
            no pretraining run.
        OSError: the disk is full or not writable.
    """
    require("transformers", extra="hub", purpose="exports")
    check_new(out)
    path = checkpoint.run_of(run)
    if run_directory.is_fine_tuning(path):
        raise UserError(f"{path} is a fine-tuning run: python -m finetune.export exports its classifier")
    folder = checkpoint.resolve(run)
    model, tokenizer, config = checkpoint.load_model(folder, torch.device("cpu"))
    name = architecture_of(config.model)
    record = RunRecord.read(folder, tokenizer)
    with written_folder(out) as partial:
        _write_model(partial, ARCHITECTURES[name], model, tokenizer, config)
        heldout = record.heldout_sentences(tokenizer)
        exported = Exported(out, name, compare(model, tokenizer, partial, config.data.row_length, heldout))
        special = SpecialTokens.of(tokenizer)
        facts = Facts(
            name=out.name,
            architecture=name,
            record=record,
            parameters=sum(weight.numel() for weight in model.parameters()),
            mask=tokenizer.id_to_token(special.mask),
            cls_sep=special.adds_cls_sep,
            differences=exported.differences,
            licence=licence,
            language=language,
        )
        model_card.write(partial, facts)
    return exported


def _write_model(
    folder: Path, architecture: Architecture, model: MaskedLanguageModel, tokenizer: Tokenizer, config: PretrainConfig
) -> None:
    """Write the configuration, the weights and the tokenizer, each in the form that transformers 4.48 and 5 read."""
    from transformers import MODEL_FOR_MASKED_LM_MAPPING

    special, row_length = SpecialTokens.of(tokenizer), config.data.row_length
    theirs = architecture.their_config(
        config.model,
        tokenizer.get_vocab_size(),
        row_length,
        pad_token_id=special.pad,
        bos_token_id=special.cls,
        eos_token_id=special.sep,
        cls_token_id=special.cls,
        sep_token_id=special.sep,
    )
    theirs.architectures = [MODEL_FOR_MASKED_LM_MAPPING[type(theirs)].__name__]
    theirs.save_pretrained(folder)
    weights.write(folder / WEIGHTS, architecture.their_tensors(model.state_dict(), config.model))
    shutil.copymode(folder / CONFIG, folder / WEIGHTS)  # safetensors lets the owner alone read it
    (folder / checkpoint.TOKENIZER).write_bytes(vocabulary.serialise(tokenizer))
    roles = {
        "pad_token": special.pad,
        "unk_token": special.unknown,
        "cls_token": special.cls,
        "sep_token": special.sep,
        "mask_token": special.mask,
    }
    settings = {
        # The class that reads any tokenizer.json as it is, by its name in versions 4 and 5.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": row_length,
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
        **{role: tokenizer.id_to_token(number) for role, number in roles.items() if number is not None},
    }
    run_directory.write_json(folder / "tokenizer_config.json", settings)
