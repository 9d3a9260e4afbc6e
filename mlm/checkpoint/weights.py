"""Weights in safetensors files, which hold numbers and no code."""

import errno
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from configs import UserError

_METADATA = {"format": "pt"}


def host_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's state dict in the host's memory."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors of the host's memory as safetensors, or raise an OSError if the disk is full or not writable."""
    with disk_errors(path):
        save_file(dict(tensors), path, metadata=_METADATA)


def sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the file that `write` would write."""
    return hashlib.sha256(safetensors.torch.save(dict(tensors), _METADATA)).hexdigest()


def read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file, or raise a UserError if it is not a safetensors file."""
    try:
        return load_file(path)
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file: {error}") from error


def load_into(model: nn.Module, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Load the weights found in `folder` into `model`, sharded or whole; raise a UserError if they do not fit."""
    # This import takes a quarter of a second, and a new run does not need it.
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    # PyTorch fills what is missing with the model's own.
    own, given = set(model.state_dict()), set(tensors)
    misfit = f"the weights in {folder} do not fit its tokenizer and configuration"
    for names, verb, other in ((own - given, "lack", "has"), (given - own, "have", "lacks")):
        if names:
            raise UserError(f"{misfit}: they {verb} {len(names)} weights, such as {min(names)}, that the model {other}")
    options = StateDictOptions(full_state_dict=True, strict=False)
    try:
        set_model_state_dict(model, dict[str, Any](tensors), options=options)
    except (torch.OutOfMemoryError, dist.DistError):  # not the fault of the weights
        raise
    except RuntimeError as error:
        raise UserError(f"{misfit}: {' '.join(str(error).split())}") from error


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the libraries' errors of failed writes into OSError."""
    try:
        yield
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise OSError(errno.EIO, f"cannot write ({' '.join(str(error).split())[:200]})", str(path)) from error
