"""Encoders: of pretraining runs, and published ones of the transformers library.

Here: the choice of an encoder, its interface, and one file for each source.
Not here: heads, training.
"""

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from configs import Config, UserError, read
from finetune.data.augment_contextual import Predictor
from finetune.encoders.encoder import TextEncoder
from finetune.encoders.published import load_published, load_published_predictor
from finetune.encoders.run import RunEncoder, RunPredictor
from mlm.checkpoint import checkpoint
from mlm.config import PretrainConfig
from mlm.distributed.world import World
from mlm.interop.hub import fetch
from mlm.tracking import run_directory
from tokenizer.cleaning import TextConfig

EncoderKind = Literal["run", "hub"]

_COMMIT = re.compile("[0-9a-f]{40}")
MODEL_FOLDER = "model"
"""Folder of the model in a fine-tuning run."""


class EncoderChoice(Config):
    """The choice of the encoder."""

    run: str | None = None
    """A pretraining run, such as runs/x; null, without `hub`: the newest one in `runs`."""
    hub: str | None = None
    """A published encoder: a name on the Hugging Face hub, or a folder in its format; needs the extra `hub`."""
    revision: str | None = None
    """Commit, branch or tag on the hub; null: the newest."""
    random: bool = False
    """Initialize the weights randomly, with the same shape and tokenizer: the control for pretraining."""
    longest: int = Field(128, ge=8)
    """Largest number of tokens of a text, with special tokens; longer texts are truncated and counted. The encoder's
    own limit holds too."""
    dropout: float | None = Field(None, ge=0, lt=1)
    """Dropout inside the encoder; null: that of pretraining."""

    @model_validator(mode="after")
    def _one_source(self) -> "EncoderChoice":
        if self.run is not None and self.hub is not None:
            raise ValueError("encoder.run and encoder.hub are both set: choose one")
        if self.revision is not None and self.hub is None:
            raise ValueError("encoder.revision belongs to the hub: set encoder.hub too")
        return self


def resolve(choice: EncoderChoice, runs: Path) -> EncoderChoice:
    """Return the choice pinned to one checkpoint of a run or one commit of the hub, the same for every trial."""
    if choice.hub is not None:
        folder = fetch(choice.hub, choice.revision)
        return choice.model_copy(update={"revision": folder.name if _COMMIT.fullmatch(folder.name) else None})
    path = run_directory.newest(runs) if choice.run is None else Path(choice.run)
    if (checkpoint.run_of(path) / MODEL_FOLDER).is_dir():
        raise UserError(f"encoder.run: {path} is a fine-tuned model already: name a run of mlm.pretrain")
    return choice.model_copy(update={"run": str(checkpoint.resolve(path))})


def open_encoder(choice: EncoderChoice, seed: int) -> TextEncoder:
    """Return the chosen encoder with its weights; `seed` draws random ones."""
    if choice.run is not None:
        return RunEncoder.load(Path(choice.run), random=choice.random, seed=seed, dropout=choice.dropout)
    assert choice.hub is not None
    return load_published(choice.hub, choice.revision, random=choice.random, seed=seed, dropout=choice.dropout)


def restore_encoder(kind: EncoderKind, folder: Path) -> TextEncoder:
    """Return the encoder that `TextEncoder.save` described in `folder`, with weights still to be loaded."""
    if kind == "run":
        return RunEncoder.restore(folder)
    return load_published(str(folder.absolute()), None, random=True, seed=0)


def open_predictor(choice: EncoderChoice, world: World) -> Predictor:
    """Return the masked language model that the chosen encoder was pretrained in; a UserError if there is none."""
    if choice.run is not None:
        return RunPredictor.load(Path(choice.run), world)
    assert choice.hub is not None
    return load_published_predictor(choice.hub, choice.revision, world)


def corpus_of(choice: EncoderChoice) -> TextConfig:
    """Return the text of pretraining; for a published encoder, the documentation of the installed Python."""
    if choice.run is None:
        return TextConfig()
    return read(PretrainConfig, checkpoint.resolve(Path(choice.run)) / checkpoint.CONFIG).text
