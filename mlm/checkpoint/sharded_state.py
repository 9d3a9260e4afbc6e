"""Sharded training state on disk, through PyTorch's distributed checkpointing.

Every process writes its shares into one safetensors file, and any number of processes can read them. Nothing in them is
pickled. Values that all processes share, such as learning rates, stay in the unsharded state.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from mlm.distributed.parallel import is_dtensor
from mlm.training.optim import Optimizer

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

ELSEWHERE = "sharded"
"""Placeholder in the unsharded state for a tensor that is among the shares."""


def split(state: Any, shares: "dict[str, DTensor]", name: str = "") -> Any:
    """Return `state` without its sharded tensors, which are added to `shares` under their paths in `state`."""
    if is_dtensor(state):
        shares[name] = state
        return ELSEWHERE
    if isinstance(state, Mapping):
        return {key: split(value, shares, f"{name}.{key}".lstrip(".")) for key, value in state.items()}
    if isinstance(state, list):
        return [split(value, shares, f"{name}.{index}") for index, value in enumerate(state)]
    return state


def on_host(shares: "Mapping[str, DTensor]") -> "dict[str, DTensor]":
    """Copy this process's shares into the host's memory."""
    if not shares:
        return {}
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    copied = {}
    for name, tensor in shares.items():
        own, shape, stride = tensor.to_local().to("cpu", copy=True), tensor.shape, tensor.stride()
        copied[name] = DTensor.from_local(own, mesh, tensor.placements, run_check=False, shape=shape, stride=stride)
    return copied


def save(folder: Path, shares: "Mapping[str, DTensor]", group: dist.ProcessGroup | None) -> None:
    """Write the shares of all processes into `folder`, or raise an OSError; every process calls this."""
    # torch.distributed.checkpoint takes a quarter of a second to import, and most runs are not sharded.
    from torch.distributed.checkpoint import state_dict_saver
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    try:
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        state_dict_saver.save(dict(shares), storage_writer=writer, process_group=group)
    except CheckpointException as error:
        raise OSError(f"cannot write ({' '.join(str(error).split())[:200]})", str(folder)) from error


def load(folder: Path, state: Mapping[str, Any], model: nn.Module, optimizer: Optimizer) -> None:
    """Load the model's shares in place, and the optimizer's into the placeholders of `state`.

    Raises:
        ValueError: the shares do not belong to this model and optimizer.
        OSError: a process cannot read them.
    """
    from torch.distributed.checkpoint import state_dict_loader  # see save
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    shares = {f"weights.{name}": parameter.data for name, parameter in model.named_parameters()}
    for number, (part, saved) in enumerate(zip(optimizer.parts, state["optimiser"], strict=True)):
        parameters = [parameter for group in part.param_groups for parameter in group["params"]]
        for index, values in saved["state"].items():
            for name in [name for name, value in values.items() if isinstance(value, str) and value == ELSEWHERE]:
                values[name] = torch.zeros_like(parameters[index].data)
                shares[f"optimiser.{number}.state.{index}.{name}"] = values[name]
    try:
        state_dict_loader.load(dict(shares), storage_reader=HuggingFaceStorageReader(str(folder)))
    except CheckpointException as error:
        if any(isinstance(failure, OSError) for failure, _ in error.failures.values()):
            raise OSError(f"cannot read ({' '.join(str(error).split())[:200]})", str(folder)) from error
        raise ValueError(" ".join(str(error).split())[:200]) from error
