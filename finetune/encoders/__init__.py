"""Open the encoder that a recipe chooses: of a pretraining run, or a published one."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from configs import UserError, read
from finetune.config import EncoderChoice
from finetune.data.augment_contextual import Predictor, RunPredictor
from finetune.encoders.encoder import RunEncoder, TextEncoder
from mlm.checkpoint import checkpoint
from mlm.config import PretrainConfig
from mlm.distributed.world import World
from mlm.tracking import run_directory
from tokenizer.cleaning import TextConfig

Kind = Literal["run", "hub"]

_COMMIT = re.compile("[0-9a-f]{40}")
MODEL = "model"
"""Folder of a fine-tuning run that holds its model."""


def resolve(choice: EncoderChoice, runs: Path) -> EncoderChoice:
    """Return the choice pinned to one checkpoint of a run, or one commit of the hub, the same for every trial.

    Raises:
        UserError: there is no such run, or it cannot be fetched.

    """
    if choice.hub is not None:
        from finetune.encoders.hub import fetch

        folder = fetch(choice.hub, choice.revision)
        return choice.model_copy(update={"revision": folder.name if _COMMIT.fullmatch(folder.name) else None})
    path = run_directory.newest(runs) if choice.run is None else Path(choice.run)
    if (path / MODEL).is_dir():
        raise UserError(f"encoder.run: {path} is a fine-tuned model already: name a run of mlm.pretrain")
    return choice.model_copy(update={"run": str(checkpoint.of(path))})


def kind_of(choice: EncoderChoice) -> Kind:
    """Return which kind of encoder it is."""
    return "run" if choice.run is not None else "hub"


def open_encoder(choice: EncoderChoice, seed: int) -> TextEncoder:
    """Return the chosen encoder with its weights; random ones are drawn by `seed`.

    Raises:
        UserError: there is none such, or it cannot be used.

    """
    if choice.run is not None:
        return RunEncoder.load(Path(choice.run), random=choice.random, seed=seed, dropout=choice.dropout)
    from finetune.encoders.published import load_published

    assert choice.hub is not None
    return load_published(choice.hub, choice.revision, random=choice.random, seed=seed, dropout=choice.dropout)


def _restore_published(folder: Path) -> TextEncoder:
    from finetune.encoders.published import restore_published

    return restore_published(folder)


RESTORE: dict[Kind, Callable[[Path], TextEncoder]] = {"run": RunEncoder.restore, "hub": _restore_published}
"""How to open what `TextEncoder.save` wrote; its weights are still to be filled in."""


def open_predictor(choice: EncoderChoice, world: World) -> Predictor:
    """Return the masked language model that the chosen encoder was pretrained as.

    Raises:
        UserError: it has no head that predicts words.

    """
    if choice.run is not None:
        model, tokenizer, recipe = checkpoint.load_model(checkpoint.of(Path(choice.run)), world.device)
        return RunPredictor(model, tokenizer, recipe.data.row_length, world)
    from finetune.encoders.published_predictor import load_published_predictor

    assert choice.hub is not None
    return load_published_predictor(choice.hub, choice.revision, world)


def corpus_of(choice: EncoderChoice) -> TextConfig:
    """Return the text that a run was pretrained on; the documentation of the installed Python for a published one."""
    if choice.run is None:
        return TextConfig()
    return read(PretrainConfig, checkpoint.of(Path(choice.run)) / checkpoint.CONFIG).text
