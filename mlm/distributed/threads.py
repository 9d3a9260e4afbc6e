"""Threads that train one model together: each computes whole micro-batches on its share of the cores.

Cores that share every matrix product wait for each other some hundred times a step; threads with a micro-batch each
wait once.
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

POSITIONS_WORTH_A_THREAD = 512
"""Positions of a micro-batch below which a thread costs more than it gains: kernels are small, and Python runs one at a
time."""

AnyBatch = TypeVar("AnyBatch")
Result = TypeVar("Result")


@dataclass(frozen=True)
class ThreadReplicas:
    """A model, and its replicas on threads."""

    model: nn.Module
    replicas: Sequence[nn.Module]
    """One for each thread: the model, wrapped if need be, then others that share its weights in memory."""
    pool: Executor | None
    """The threads; None if the caller's is the only one."""

    def run_micro_batches(
        self, compute: Callable[[nn.Module, int, AnyBatch], Result], micro_batches: Sequence[AnyBatch]
    ) -> list[Result]:
        """Return `compute(replica, index, micro_batch)` of every micro-batch; their gradients add up in the model.

        The assignment to replicas and the order of summation are always the same.
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
        """Add the other replicas' gradients to the model's."""
        for other in self.replicas[1:]:
            for parameter, twin in zip(self.model.parameters(), other.parameters(), strict=True):
                if parameter.grad is None:
                    parameter.grad = twin.grad
                elif twin.grad is not None:
                    parameter.grad.add_(twin.grad)
                twin.grad = None


def threads_for(world: World, rows: int, positions: int) -> int:
    """Return the number of threads that a micro-batch of `rows`, of `positions` in all, is worth dividing among."""
    if world.device.type != "cpu" or world.size > 1:
        return 1
    cores = torch.get_num_threads()
    most = max(min(cores, rows, positions // POSITIONS_WORTH_A_THREAD), 1)
    return next(threads for threads in range(most, 0, -1) if cores % threads == 0)  # no core stays idle


@contextmanager
def replicate_on_threads(model: nn.Module, world: World, threads: int) -> Iterator[ThreadReplicas]:
    """Return a context with replicas on `threads` threads; more than one requires a single process.

    Random numbers of the model come from `drop`: those of torch would be drawn by all threads from one source.
    """
    if threads == 1:
        yield ThreadReplicas(model, [wrap(model, world)], None)
        return
    assert world.size == 1, "the gradients of several threads are not averaged over ranks"
    assert world.device.type == "cpu"
    with pool_of(threads) as pool:
        yield ThreadReplicas(model, [model, *(_replica(model) for _ in range(threads - 1))], pool)


def pool_of(threads: int) -> ThreadPoolExecutor:
    """Return a pool of threads, each with its share of the cores."""
    cores = max(torch.get_num_threads() // threads, 1)
    return ThreadPoolExecutor(threads, "replica", torch.set_num_threads, (cores,))


def _replica(model: nn.Module) -> nn.Module:
    """Return a model that shares the weights in memory and has separate gradients."""
    same = {id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, same | {id(buffer): buffer for buffer in model.buffers()})
