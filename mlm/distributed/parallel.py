"""Models on several processes: each holds the whole model or a share of every layer; gradients are averaged.

FSDP and DTensor are imported only by runs that are sharded: with them comes sympy, which takes a second.
"""

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeGuard

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from configs import Config
from mlm.distributed.rendezvous import backend_of
from mlm.distributed.world import World
from mlm.model.heads import MaskedLanguageModel

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor


class ReplicatedData(Config):
    """Every process holds the whole model, and gradients are averaged (DistributedDataParallel)."""

    kind: Literal["replicated_data", "ReplicatedData"] = "replicated_data"

    def place(self, model: MaskedLanguageModel, world: World) -> None:
        """Move the whole model to the device, in place."""
        model.to(world.device)


class ShardedData(Config):
    """Every process holds a share of each layer's weights and optimizer state (FSDP2), for models that do not fit."""

    kind: Literal["sharded_data", "ShardedData"] = "sharded_data"

    def place(self, model: MaskedLanguageModel, world: World) -> None:
        """Divide the weights of every layer among the processes, in place; before the optimizer is made.

        Each layer is moved to the device by itself, and only this process's share of it stays there.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        if not dist.is_initialized():  # a single process, which holds all shares
            store = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group(backend_of(world.device), store=store, rank=0, world_size=1)
        low = world.dtype if world.dtype == torch.bfloat16 else None
        policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32 if low else None)
        mesh = init_device_mesh(world.device.type, (world.size,))
        for block in model.encoder.blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)


Parallel = Annotated[ReplicatedData | ShardedData, Field(discriminator="kind")]


def is_sharded(model: nn.Module) -> "TypeGuard[FSDPModule]":
    """Return whether the model's weights are divided among the processes."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(model, fsdp.FSDPModule)


def is_dtensor(value: Any) -> "TypeGuard[DTensor]":
    """Return whether a value is this process's share of a tensor."""
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(value, tensors.DTensor)


def wrap(model: nn.Module, world: World) -> nn.Module:
    """Return the module to call in training, whose backward pass averages gradients over ranks; it holds `model`.

    A sharded model, and any model of a single process, is returned as it is. Buckets keep their first order, and with
    it the order of summation: DistributedDataParallel's usual reordering after the first step would make a resumed run
    differ in the last bits.
    """
    if world.size == 1 or is_sharded(model):
        return model
    replica = DistributedDataParallel(
        model,
        device_ids=[world.device] if world.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        find_unused_parameters=True,  # keeps the buckets' order
    )
    # Buffers are broadcast once, when the wrapper is made; they never change, so not again in each forward pass.
    replica.broadcast_buffers = False
    return replica


def sync_gradients(model: nn.Module, *, last: bool) -> AbstractContextManager[object]:
    """Return a context whose backward pass averages gradients over ranks only in the `last` micro-batch of a step."""
    if is_sharded(model):
        model.set_requires_gradient_sync(last)
    elif isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    return nullcontext()


def clip_gradients(model: nn.Module, max_norm: float) -> Tensor:
    """Scale the gradient down to `max_norm` where it is longer; return its norm before, a scalar on the device."""
    total = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    return total.full_tensor() if is_dtensor(total) else total


def reshard(model: nn.Module) -> None:
    """Reshard an FSDP model after evaluation.

    FSDP leaves the root module's parameters unsharded after a forward pass without a backward pass; the next step would
    then train on the evaluation weights.
    """
    if is_sharded(model):
        model.reshard()
