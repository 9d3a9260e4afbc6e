"""Checkpoints: a directory with a model anyone can load, and beside it what training needs to go on.

`weights.safetensors`, `config.yaml` and `tokenizer.json` are the model; `training_state.pt` is the optimizer's
state and the position, read with `weights_only=True`. `manifest.json` holds their sizes and checksums. A directory
appears under its final name only when it is complete.
"""

import logging
import pickle
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from tokenizers import Tokenizer
from torch import Tensor, nn

from configs import UserError, dump, read
from mlm.checkpoint import sharded_state, weights
from mlm.checkpoint.manifest import MANIFEST, PARTIAL, manifest_of, seal, verify
from mlm.config import PretrainConfig
from mlm.distributed.parallel import is_share
from mlm.model.heads import MaskedLanguageModel
from mlm.training.budget import TrainingProgress
from mlm.training.optim import Optimizer
from tokenizer import vocabulary

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

WEIGHTS, CONFIG, TOKENIZER, STATE = "weights.safetensors", "config.yaml", "tokenizer.json", "training_state.pt"
NAMES = "step-" + "[0-9]" * 9
"""What the folders of checkpoints are called, as a pattern."""
SHARES = "shares"
"""Folder of the training state that is divided among processes."""
MODEL_FILES = (WEIGHTS, CONFIG, TOKENIZER)
"""The files that make a model, without those that only training needs."""


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """A run as it stood: copies in the host's memory, which stay true while training goes on."""

    weights: Mapping[str, Tensor]
    """What the model is evaluated with."""
    training: Mapping[str, Any]
    """Position, optimizer state, and the weights that are trained on, but for what is among the shares."""
    shares: "Mapping[str, DTensor]"
    """This process's part of the training state of a sharded model."""
    step: int


def snapshot(model: nn.Module, optimizer: Optimizer, progress: TrainingProgress, *, whole: bool = True) -> Snapshot:
    """Copy all that a checkpoint holds; of a sharded model, all processes have to.

    Where `whole` is false, as on all processes but one, nothing but the shares is kept.
    """
    evaluated: dict[str, Tensor] = {}
    with optimizer.averaged():
        for name, tensor in model.state_dict().items():
            gathered = tensor.full_tensor() if is_share(tensor) else tensor
            if whole:
                evaluated[name] = _copied(gathered)
    shares: dict[str, DTensor] = {}
    training = {
        "position": vars(progress),
        "optimiser": optimizer.state_dict(),
        "weights": dict(model.named_parameters()),
    }
    rest = sharded_state.split(training, shares)
    return Snapshot(evaluated, _copied(rest) if whole else {}, sharded_state.on_host(shares), progress.step)


def save(
    folder: Path,
    taken: Snapshot,
    config: PretrainConfig,
    tokenizer: Path,
    heldout_loss: float | None = None,
    group: dist.ProcessGroup | None = None,
) -> None:
    """Write a checkpoint into `folder`, which appears when all of it is on the disk.

    Where there are shares, all processes of `group` have to, and each writes its own; the rest is the first one's work.

    Raises:
        OSError: the disk is full or not writable; what was written is removed as far as it can be.

    """
    partial = folder.with_name(folder.name + PARTIAL)
    try:
        if taken.shares:
            sharded_state.save(partial / SHARES, taken.shares, group)
            if dist.get_rank():
                return
        partial.mkdir(parents=True, exist_ok=True)
        weights.write(partial / WEIGHTS, taken.weights)
        (partial / CONFIG).write_text(dump(config), encoding="utf-8")
        shutil.copyfile(tokenizer, partial / TOKENIZER)
        with weights.disk_errors(partial / STATE):
            torch.save(taken.training, partial / STATE)
        seal(partial, folder, taken.step, heldout_loss)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True).contiguous()
    if isinstance(value, Mapping):
        return {name: _copied(inner) for name, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value


def newest(run: Path) -> Path:
    """Return a run's newest checkpoint.

    Raises:
        UserError: there is none.

    """
    if not run.is_dir():
        raise UserError(f"no such run: {run}")
    found = finished(run)
    if not found:
        raise UserError(f"{run} has no checkpoint: let it train longer, or, if it was stopped, start a new run")
    return found[-1]


def newest_undamaged(run: Path) -> Path:
    """Return a run's newest checkpoint of which nothing is damaged, and log which ones are skipped and why.

    Raises:
        UserError: there is none.

    """
    newest(run)
    for folder in reversed(finished(run)):
        try:
            verify(folder, (*MODEL_FILES, STATE, *manifest_of(folder).files))
        except UserError as error:
            logger.warning("skipped: %s", error)
            continue
        return folder
    raise UserError(f"every checkpoint in {run} is damaged: start a new run")


def of(path: Path) -> Path:
    """Return `path` where it is a checkpoint, else the newest one of the run that it is.

    Raises:
        UserError: it is neither, or the run has none.

    """
    if (path / MANIFEST).is_file() and (path / CONFIG).is_file():
        return path
    return newest(path)


def step_folder(run: Path, step: int) -> Path:
    """Return where a run's checkpoint of a step is, or would be."""
    return run / "checkpoints" / f"step-{step:09d}"


def finished(run: Path) -> list[Path]:
    """Return a run's checkpoints, the oldest first; what else lies there is left alone."""
    return sorted(path for path in (run / "checkpoints").glob(NAMES) if path.is_dir())


def load_model(folder: Path, device: torch.device) -> tuple[MaskedLanguageModel, Tokenizer, PretrainConfig]:
    """Load the model of a checkpoint, in evaluation mode, with its tokenizer and recipe.

    Raises:
        UserError: the checkpoint is damaged, or its parts do not fit each other.

    """
    verify(folder, (CONFIG, TOKENIZER))
    config = read(PretrainConfig, folder / CONFIG)
    tokenizer = vocabulary.load(folder / TOKENIZER)
    model = MaskedLanguageModel(config.model, tokenizer.get_vocab_size(), config.data.row_length)
    load_weights(folder, model)
    return model.to(device).eval(), tokenizer, config


def load_weights(folder: Path, model: nn.Module) -> str:
    """Give `model` the weights of a checkpoint, in place, and return their SHA-256.

    Raises:
        UserError: the weights are damaged, or are another model's.

    """
    manifest = verify(folder, (WEIGHTS,))
    weights.fill(model, weights.read(folder / WEIGHTS), folder)
    return manifest.files[WEIGHTS].sha256


def load_training(folder: Path, model: nn.Module, optimizer: Optimizer) -> TrainingProgress:
    """Bring model and optimizer back to where the checkpoint was saved and return how far training had come.

    Raises:
        UserError: the checkpoint is damaged, or is of another model.
        OSError: it cannot be read.

    """
    manifest = verify(folder, (*MODEL_FILES, STATE))
    _check_sizes(folder / STATE)
    try:
        state: dict[str, Any] = torch.load(folder / STATE, weights_only=True, map_location="cpu")
        if any(name.startswith(f"{SHARES}/") for name in manifest.files):
            sharded_state.load(folder / SHARES, state, model, optimizer)
        else:
            weights.fill(model, state["weights"], folder)
        optimizer.load_state_dict(state["optimiser"])
        return TrainingProgress(**state["position"])
    except (UserError, torch.OutOfMemoryError, dist.DistError):  # which say nothing against the file
        raise
    except (pickle.UnpicklingError, RuntimeError, LookupError, TypeError, ValueError, AttributeError):
        raise UserError(f"{folder / STATE} is not the training state of this run's model and optimizer") from None


def _check_sizes(path: Path) -> None:
    """Refuse an archive that takes more memory than it has bytes, as a compressed one would."""
    try:
        with zipfile.ZipFile(path) as archive:
            whole = all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())
    except zipfile.BadZipFile:
        whole = False
    if not whole:
        raise UserError(f"{path} is not as a run writes it: no archive, or a compressed one")
