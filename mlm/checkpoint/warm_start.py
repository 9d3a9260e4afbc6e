"""Start training from another run's weights: task-adaptive pretraining (Gururangan et al. 2020)."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import nn

from configs import Config, UserError, read
from mlm.checkpoint import checkpoint
from mlm.checkpoint.manifest import MANIFEST, verify
from mlm.config import DataConfig, PretrainConfig
from mlm.model.encoder import RotaryPositions
from mlm.model.heads import ModelConfig
from tokenizer import vocabulary

LEARNED = " (its positions are learned, one vector each, and there are no more of them)"


def resolve(config: PretrainConfig) -> PretrainConfig:
    """Return the configuration with the settings of the run that it starts from; unchanged without `start_from`.

    Model, vocabulary, tokenizer and row length become those of the start, whose model files are verified. Only where no
    weight belongs to a position may rows be longer; rotary positions may have another base. `start_from` becomes the
    folder of its checkpoint, which stays the same while the other run continues. Raise a UserError if the checkpoint is
    missing or damaged, or the configuration contradicts it.
    """
    if config.start_from is None:
        return config
    folder = _checkpoint(Path(config.start_from))
    verify(folder, checkpoint.MODEL_FILES)
    start, tokenizer = read(PretrainConfig, folder / checkpoint.CONFIG), folder / checkpoint.TOKENIZER
    data = start.data.model_copy(update={"tokenizer": str(tokenizer), "shards": config.data.shards})
    if config.data.tokenizer is not None and _content(Path(config.data.tokenizer)) == _content(tokenizer):
        config = config.model_copy(update={"data": config.data.model_copy(update={"tokenizer": data.tokenizer})})
    data, model = _extended(config, data, start.model)
    taken: dict[str, Config] = {"vocabulary": start.vocabulary, "data": data, "model": model}
    usual = PretrainConfig()
    for name, section in taken.items():
        for path, own, theirs in _conflicts(getattr(config, name), section, getattr(usual, name), name):
            reason = LEARNED if path == "data.row_length" and start.model.encoder.positions.kind == "learned" else ""
            raise UserError(
                f"{path} = {own} differs from {theirs}, which is taken from start_from = {config.start_from} with"
                f" its weights{reason}: remove {path}, or remove start_from"
            )
    try:
        return PretrainConfig(**(dict(config) | taken | {"start_from": str(folder)}))
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"{reason} (taken from start_from = {config.start_from})") from error


def _extended(config: PretrainConfig, data: DataConfig, model: ModelConfig) -> tuple[DataConfig, ModelConfig]:
    """Return the start's data and model with the longer rows and the other rotary base of `config`, if any."""
    theirs, own, usual = model.encoder.positions, config.model.encoder.positions, RotaryPositions()
    if theirs.kind != "learned" and config.data.row_length > data.row_length:
        data = data.model_copy(update={"row_length": config.data.row_length})
    if theirs.kind == own.kind == usual.kind and own != usual:
        encoder = model.encoder.model_copy(update={"positions": own})
        model = model.model_copy(update={"encoder": encoder})
    return data, model


def load_start(config: PretrainConfig, model: nn.Module) -> dict[str, Any]:
    """Load the weights that a resolved configuration starts from, if any; return their record, or raise a UserError."""
    if config.start_from is None:
        return {}
    folder = Path(config.start_from)
    sha256 = checkpoint.load_weights(folder, model)
    return {"started_from": {"checkpoint": str(folder.resolve()), "weights_sha256": sha256}}


def scores_at_start(config: PretrainConfig, records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the held-out scores of the weights that a run started from, by its metrics; empty if there are none."""
    for record in records:
        if config.start_from is not None and record["side"] == "heldout" and record["step"] == 0:
            return {"heldout_at_start": {name: record[name] for name in ("loss", "accuracy")}}
    return {}


def _checkpoint(path: Path) -> Path:
    """Return `path` if it is a checkpoint, else the newest checkpoint of the run at `path`."""
    if not path.is_dir():
        raise UserError(f"start_from = {path}: no such run: name the directory of one, such as runs/x")
    if not checkpoint.completed(checkpoint.run_of(path)) and not (path / MANIFEST).is_file():
        raise UserError(
            f"start_from = {path} has no checkpoint: name a run of python -m mlm.pretrain that has saved one"
            " (the runs of finetune have none)"
        )
    return checkpoint.resolve(path)


def _content(tokenizer: Path) -> str:
    return vocabulary.sha256(vocabulary.load(tokenizer))


def _conflicts(own: Config, start: Config | None, usual: Config | None, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield path, own value and start's value of each setting that equals neither the start's nor the default."""
    for name in type(own).model_fields:
        mine, theirs, default = (getattr(section, name, None) for section in (own, start, usual))
        if mine in (theirs, default):
            continue
        if isinstance(mine, Config):
            yield from _conflicts(mine, theirs, default, f"{path}.{name}")
        else:
            yield f"{path}.{name}", mine, theirs
