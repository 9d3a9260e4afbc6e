"""Start training from another run's weights: task-adaptive pretraining (Gururangan et al. 2020)."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import nn

from configs import Config, UserError, read
from mlm.checkpoint import checkpoint
from mlm.checkpoint.manifest import MANIFEST, verify
from mlm.config import PretrainConfig
from tokenizer import vocabulary


def resolve(config: PretrainConfig) -> PretrainConfig:
    """Return the recipe with all that the weights it starts from decide; without `start_from`, as it is.

    Model, vocabulary, tokenizer and row length become those of the start, and `start_from` the folder of its
    checkpoint, so that what is resolved stays the same while the other run goes on. The start's model is verified.

    Raises:
        UserError: there is no such checkpoint, it is damaged, or the recipe sets otherwise what the start decides.

    """
    if config.start_from is None:
        return config
    folder = _checkpoint(Path(config.start_from))
    verify(folder, checkpoint.MODEL_FILES)
    start, tokenizer = read(PretrainConfig, folder / checkpoint.CONFIG), folder / checkpoint.TOKENIZER
    data = start.data.model_copy(update={"tokenizer": str(tokenizer), "shards": config.data.shards})
    if config.data.tokenizer is not None and _content(Path(config.data.tokenizer)) == _content(tokenizer):
        config = config.model_copy(update={"data": config.data.model_copy(update={"tokenizer": data.tokenizer})})
    taken: dict[str, Config] = {"vocabulary": start.vocabulary, "data": data, "model": start.model}
    usual = PretrainConfig()
    for name, section in taken.items():
        for path, own, theirs in _set_otherwise(getattr(config, name), section, getattr(usual, name), name):
            raise UserError(
                f"{path} = {own} differs from {theirs}, which is taken from start_from = {config.start_from} with"
                f" its weights: leave {path} out, or leave out start_from"
            )
    try:
        return PretrainConfig(**(dict(config) | taken | {"start_from": str(folder)}))
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"{reason} (taken from start_from = {config.start_from})") from None


def load_start(config: PretrainConfig, model: nn.Module) -> dict[str, Any]:
    """Give the model of a resolved recipe the weights it starts from, if any; return what is worth recording of them.

    Raises:
        UserError: the checkpoint is gone or damaged.

    """
    if config.start_from is None:
        return {}
    folder = Path(config.start_from)
    sha256 = checkpoint.load_weights(folder, model)
    return {"started_from": {"checkpoint": str(folder.resolve()), "weights_sha256": sha256}}


def scores_at_start(config: PretrainConfig, records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the held-out scores of the weights that a run started from, out of its metrics; nothing without these."""
    for record in records:
        if config.start_from is not None and record["side"] == "heldout" and record["step"] == 0:
            return {"heldout_at_start": {name: record[name] for name in ("loss", "accuracy")}}
    return {}


def _checkpoint(path: Path) -> Path:
    """Return `path` where it is a checkpoint, else the newest one of the run that it is."""
    if not path.is_dir():
        raise UserError(f"start_from = {path}: no such run: name the directory of one, such as runs/x")
    if not checkpoint.finished(path) and not (path / MANIFEST).is_file():
        raise UserError(
            f"start_from = {path} has no checkpoint: name a run of python -m mlm.pretrain that has saved one"
            " (the runs of finetune have none)"
        )
    return checkpoint.of(path)


def _content(tokenizer: Path) -> str:
    return vocabulary.sha256(vocabulary.load(tokenizer))


def _set_otherwise(
    own: Config, start: Config | None, usual: Config | None, path: str
) -> Iterator[tuple[str, Any, Any]]:
    """Yield path and both values of the settings that are neither the start's nor the usual ones."""
    for name in type(own).model_fields:
        mine, theirs, default = (getattr(section, name, None) for section in (own, start, usual))
        if mine in (theirs, default):
            continue
        if isinstance(mine, Config):
            yield from _set_otherwise(mine, theirs, default, f"{path}.{name}")
        else:
            yield f"{path}.{name}", mine, theirs
