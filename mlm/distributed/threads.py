"""Threads that train one model together: each computes micro-batches of its own, on its share of the cores.

Cores that divide every matrix product among them wait for each other some hundred times a step; threads that have a
micro-batch each wait once.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from mlm.distributed.parallel import wrap
from mlm.distributed.world import World

SLOTS_WORTH_A_THREAD = 1024
"""Positions of a micro-batch below which a thread loses more than it gains: small kernels, and Python runs one at a
time."""

AnyBatch = TypeVar("AnyBatch")
Result = TypeVar("Result")


@dataclass(frozen=True)
class ThreadReplicas:
    """A model, and what its threads call in training."""

    model: nn.Module
    replicas: Sequence[nn.Module]
    """One for each thread: the model or what stands for it, then others with the same weights in the same memory."""
    pool: Executor | None
    """The threads; None where there is only the caller's."""

    def each(
        self, compute: Callable[[nn.Module, int, AnyBatch], Result], micro_batches: Sequence[AnyBatch]
    ) -> list[Result]:
        """Return `compute(replica, index, micro_batch)` of every micro-batch; their gradients add up in the model.

        Which member computes what, and in which order sums are taken, is always the same.
        """

        def share(number: int) -> list[Result]:
            return [
                compute(self.replicas[number], index, micro_batches[index])
                for index in range(number, len(micro_batches), len(self.replicas))
            ]

        if self.pool is None:
            return share(0)
        shares = list(self.pool.map(share, range(len(self.replicas))))
        self._gather()
        return [shares[index % len(shares)][index // len(shares)] for index in range(len(micro_batches))]

    def _gather(self) -> None:
        """Add the other members' gradients to the model's."""
        for other in self.replicas[1:]:
            for parameter, twin in zip(self.model.parameters(), other.parameters(), strict=True):
                if parameter.grad is None:
                    parameter.grad = twin.grad
                elif twin.grad is not None:
                    parameter.grad.add_(twin.grad)
                twin.grad = None


def threads_for(world: World, slots: int) -> int:
    """Return on how many threads a micro-batch of so many positions is worth dividing."""
    if world.device.type != "cpu" or world.size > 1:
        return 1
    cores = torch.get_num_threads()
    most = max(min(cores, slots // SLOTS_WORTH_A_THREAD), 1)
    return next(threads for threads in range(most, 0, -1) if cores % threads == 0)  # so that no core is left over


@contextmanager
def replicate_on_threads(model: nn.Module, world: World, threads: int) -> Iterator[ThreadReplicas]:
    """Give a team of so many threads; several of them only on one process whose model draws no random numbers."""
    if threads == 1:
        yield ThreadReplicas(model, [wrap(model, world)], None)
        return
    assert world.size == 1, "the gradients of several threads are not averaged over ranks"
    assert world.device.type == "cpu"
    cores = max(torch.get_num_threads() // threads, 1)
    with ThreadPoolExecutor(threads, "member", torch.set_num_threads, (cores,)) as pool:
        yield ThreadReplicas(model, [model, *(_twin(model) for _ in range(threads - 1))], pool)


def _twin(model: nn.Module) -> nn.Module:
    """Return a model with the same weights in the same memory, and gradients of its own."""
    same = {id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, same | {id(buffer): buffer for buffer in model.buffers()})
