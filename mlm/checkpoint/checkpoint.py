"""Checkpoints: a directory with a model that anyone can load, and the training state to resume from.

`weights.safetensors`, `config.yaml` and `tokenizer.json` are the model. `training_state.pt` holds the optimizer's
state, the progress and the weights in training, with which a run resumes: those of Schedule-Free AdamW are not the
averaged ones of the model. It is read with `weights_only=True`. No random state is saved, because order, masks and
dropout are functions of seed and step. `manifest.json` holds sizes and checksums. A directory appears under its final
name only when it is complete.
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

from configs import UserError, check_text, dump, read
from configs.files import PARTIAL
from mlm.checkpoint import sharded_state, weights
from mlm.checkpoint.manifest import MANIFEST, read_manifest, seal, verify
from mlm.config import PretrainConfig
from mlm.distributed.parallel import is_dtensor
from mlm.model.heads import MaskedLanguageModel
from mlm.training.budget import TrainingProgress
from mlm.training.optim import Optimizer
from tokenizer import vocabulary

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

WEIGHTS, CONFIG, TOKENIZER, STATE = "weights.safetensors", "config.yaml", "tokenizer.json", "training_state.pt"
CHECKPOINTS = "checkpoints"
"""Folder of a run's checkpoints."""
NAMES = "step-" + "[0-9]" * 9
"""Glob pattern of the names of checkpoint folders."""
SHARES = "shares"
"""Folder of the sharded training state."""
MODEL_FILES = (WEIGHTS, CONFIG, TOKENIZER)
"""The files of the model, without the training state."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """Copies of a run's state in the host's memory, which further training does not change."""

    weights: Mapping[str, Tensor]
    """The weights that the model is evaluated with."""
    training: Mapping[str, Any]
    """Progress, optimizer state and trained weights, without the tensors among `shares`."""
    shares: "Mapping[str, DTensor]"
    """This process's part of the training state of a sharded model."""
    step: int


def snapshot(model: nn.Module, optimizer: Optimizer, progress: TrainingProgress, *, whole: bool = True) -> Snapshot:
    """Copy the state that a checkpoint holds; all processes of a sharded model call this together.

    Unless `whole`, which is true on one process, only the shares are copied.
    """
    evaluated: dict[str, Tensor] = {}
    with optimizer.evaluation_weights():
        for name, tensor in model.state_dict().items():
            gathered = tensor.full_tensor() if is_dtensor(tensor) else tensor
            if whole:
                evaluated[name] = _copied(gathered)
    shares: dict[str, DTensor] = {}
    parameters = dict(model.named_parameters())
    training = {"position": vars(progress), "optimiser": optimizer.state_dict(), "weights": parameters}
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
    """Write a checkpoint into `folder`, which appears once it is complete on disk.

    If there are shares, all processes of `group` call this: each writes its own, and rank 0 the rest. Raise an OSError
    if the disk is full or not writable; files already written are removed as far as possible.
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
    """Return a run's newest checkpoint, or raise a UserError if there is none."""
    if not run.is_dir():
        raise UserError(f"no such run: {run}")
    found = completed(run)
    if not found:
        raise UserError(f"{run} has no checkpoint: let it train longer, or, if it was stopped, start a new run")
    return found[-1]


def newest_undamaged(run: Path) -> Path:
    """Return a run's newest undamaged checkpoint; each skipped one is logged with the reason.

    If there is none, raise a UserError, or the OSError of one that cannot be read.
    """
    newest(run)
    unread: OSError | None = None
    for folder in reversed(completed(run)):
        try:
            verify_whole(folder)
        except (UserError, OSError) as error:
            logger.warning("skipped: %s", error)
            unread = error if isinstance(error, OSError) else unread
            continue
        return folder
    if unread is not None:
        raise unread
    raise UserError(f"every checkpoint in {run} is damaged: start a new run; in a sweep, remove this one")


def verify_whole(folder: Path) -> None:
    """Raise a UserError if a file of a checkpoint is damaged, and an OSError if one cannot be read."""
    verify(folder, list({*MODEL_FILES, STATE, *read_manifest(folder).files}))


def resolve(path: Path) -> Path:
    """Return `path` if it is a checkpoint, else the newest one of the run there; raise a UserError if it has none."""
    run = run_of(path)
    return path if (path / MANIFEST).is_file() and (path / CONFIG).is_file() else newest(run)


def run_of(path: Path) -> Path:
    """Return the run that a user names: by its directory, or by a folder in it with checkpoints, one, or a model.

    Raise a UserError if the path is not UTF-8, which the libraries that read and write weights and metrics demand.
    """
    check_text(str(path), "the run")
    folder = path.resolve()  # a link to a checkpoint belongs to the checkpoint's run
    if folder.name != CHECKPOINTS and not (folder / MANIFEST).is_file():
        return path
    run = folder.parents[1] if folder.parent.name == CHECKPOINTS else folder.parent
    return run if (run / CONFIG).is_file() else path


def is_whole(folder: Path) -> bool:
    """Return whether all files of a checkpoint are there in their sizes; their content is not read."""
    try:
        files = read_manifest(folder).files
        return all((folder / name).stat().st_size == expected.size_bytes for name, expected in files.items())
    except (UserError, OSError):
        return False


def step_folder(run: Path, step: int) -> Path:
    """Return the folder of a run's checkpoint of a step, which need not exist."""
    return run / CHECKPOINTS / f"step-{step:09d}"


def completed(run: Path) -> list[Path]:
    """Return a run's complete checkpoints, oldest first; other files are ignored."""
    return sorted(path for path in (run / CHECKPOINTS).glob(NAMES) if path.is_dir())


def load_model(folder: Path, device: torch.device) -> tuple[MaskedLanguageModel, Tokenizer, PretrainConfig]:
    """Load a checkpoint's model in evaluation mode, tokenizer and configuration; raise a UserError if it is damaged."""
    verify(folder, (CONFIG, TOKENIZER))
    config = read(PretrainConfig, folder / CONFIG)
    tokenizer = vocabulary.load(folder / TOKENIZER)
    model = MaskedLanguageModel(config.model, tokenizer.get_vocab_size(), config.data.row_length)
    load_weights(folder, model)
    return model.to(device).eval(), tokenizer, config


def load_weights(folder: Path, model: nn.Module) -> str:
    """Load a checkpoint's weights into `model` and return their SHA-256; raise a UserError if they do not fit."""
    manifest = verify(folder, (WEIGHTS,))
    weights.load_into(model, weights.read(folder / WEIGHTS), folder)
    return manifest.files[WEIGHTS].sha256


def load_training(folder: Path, model: nn.Module, optimizer: Optimizer) -> TrainingProgress:
    """Restore model and optimizer from a checkpoint, and return the progress of training.

    Raises:
        UserError: the checkpoint is damaged, or belongs to another model.
        OSError: it cannot be read.
    """
    manifest = verify(folder, (*MODEL_FILES, STATE))
    _check_sizes(folder / STATE)
    try:
        state: dict[str, Any] = torch.load(folder / STATE, weights_only=True, map_location="cpu")
        if any(name.startswith(f"{SHARES}/") for name in manifest.files):
            sharded_state.load(folder / SHARES, state, model, optimizer)
        else:
            weights.load_into(model, state["weights"], folder)
        optimizer.load_state_dict(state["optimiser"])
        return TrainingProgress(**state["position"])
    except (UserError, torch.OutOfMemoryError, dist.DistError):  # not the file's fault
        raise
    except (pickle.UnpicklingError, RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{folder / STATE} is not the training state of this run's model and optimizer") from error


def _check_sizes(path: Path) -> None:
    """Refuse a compressed archive, which could take far more memory than its size on disk."""
    try:
        with zipfile.ZipFile(path) as archive:
            whole = all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())
    except zipfile.BadZipFile:
        whole = False
    if not whole:
        raise UserError(f"{path} is not a file that a run writes: it is compressed, or no archive")
