"""How the processes divide a model among them: each has all of it, or a share of every layer."""

from typing import Annotated, Literal

import torch
import torch.distributed as dist
from pydantic import Field
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from configs import Config
from mlm.distributed.rendezvous import backend_of
from mlm.distributed.world import World
from mlm.model.heads import MaskedLanguageModel


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

        Each layer is moved to the device by itself, and its share alone stays there.
        """
        if not dist.is_initialized():  # one process alone, which holds all shares
            store = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group(backend_of(world.device), store=store, rank=0, world_size=1)
        low = world.dtype if world.dtype == torch.bfloat16 else None
        policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32 if low else None)
        mesh = init_device_mesh(world.device.type, (world.size,))
        for block in model.encoder.blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)


Parallel = Annotated[ReplicatedData | ShardedData, Field(discriminator="kind")]
