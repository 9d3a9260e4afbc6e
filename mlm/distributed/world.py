"""What training knows about ranks and devices; on one process everything here is a no-op or a constant.

Processes are started by torchrun, or by anything that sets its environment variables. Tensors travel over NCCL on CUDA
and over gloo on CPU; what the host has to know, such as counts and who wants to stop, always travels over gloo, so
that no device is waited for.
"""

import atexit
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import Store
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from configs import UserError
from mlm.distributed.allocator import keep_freed_memory
from mlm.distributed.device import ComputePrecision, Precision, fastest, has_bfloat16, wait
from mlm.distributed.rendezvous import backend_of, join, leave, reduce

SILENCE_MINUTES = 10.0
ROLL_CALL_SECONDS = 5.0
TOLD_EVERY_SECONDS = 30.0
SIGNS_OF_LOSS = ("gloo", "NCCL", "Timed out", "timeout", "Connection", "Broken pipe", "peer")
"""What the errors of both backends say when another process is gone."""


@dataclass(frozen=True)
class World:
    """The processes that train one model together."""

    device: torch.device
    """The device that this process computes on."""
    dtype: torch.dtype
    """What matrix products are computed in: bfloat16 under autocast, or float32."""
    rank: int = 0
    """Number of this process."""
    size: int = 1
    """Number of processes."""
    store: Store | None = None
    """Where processes leave each other word; None where there is one alone."""
    job: str = ""
    """Name of the job that this process is part of, the same in all its attempts; empty where there are none."""
    restarted: bool = False
    """Whether torchrun or SLURM has started the job again."""
    host: dist.ProcessGroup | None = None
    """What the host's numbers travel by; None: the same as tensors."""

    def __str__(self) -> str:
        """Return `device cpu in float32` or `4 processes on cpu in float32`."""
        where = f"{self.size} processes on {self.device.type}" if self.size > 1 else f"device {self.device}"
        return f"{where} in {self.precision}"

    @property
    def precision(self) -> ComputePrecision:
        """The name of `dtype`: bfloat16, or float32 for all that is as wide or wider."""
        return "bfloat16" if self.dtype == torch.bfloat16 else "float32"

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and tells the user how things go."""
        return self.rank == 0

    def single(self) -> "World":
        """Return the same device without the other processes."""
        return replace(self, rank=0, size=1, store=None)

    def with_precision(self, wanted: Precision) -> "World":
        """Return the same in a precision, which is rank 0's choice where it is `auto`: the faster one there.

        Raises:
            UserError: bfloat16 was asked for on a device without it.

        """
        name: str = wanted
        if wanted == "bfloat16" and not has_bfloat16(self.device):
            kind = self.device.type
            raise UserError(f"this {kind} has no bfloat16 matrix products: set train.precision to auto or float32")
        if wanted == "auto":
            name = self.from_main("measuring which precision is faster", lambda: fastest(self.device))
        return replace(self, dtype=getattr(torch, name))

    def with_recorded_precision(self, begun_in: ComputePrecision) -> "World":
        """Return the same in the precision that a run began in; in float32, with a warning, where rank 0 lacks it."""

        def settle() -> str:
            if begun_in == "float32" or has_bfloat16(self.device):
                return begun_in
            print(
                f"this {self.device.type} has no bfloat16 matrix products, which the run began in: computing in"
                " float32, which rounds less",
                file=sys.stderr,
            )
            return "float32"

        name = self.from_main("looking for the precision that the run began in", settle)
        return replace(self, dtype=getattr(torch, name))

    def autocast(self) -> AbstractContextManager[object]:
        """Return a context in which matrix products are computed in `dtype`."""
        if self.dtype.itemsize >= torch.float32.itemsize:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def share(self, count: int, size: int) -> list[slice]:
        """Return where to cut what this rank has of `count` items into parts of `size`.

        Item i is rank i % `World.size`'s. All ranks get as many cuts, because they compute together: the last one of
        some may be empty.
        """
        return [slice(start, start + size) for start in range(0, -(-count // self.size), size)]

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Return the sums of numbers over all ranks, in float64."""
        if self.size == 1:
            return list(numbers)
        total: list[float] = self.sum_tensor(torch.tensor(numbers, dtype=torch.float64)).tolist()
        return total

    def sum_tensor(self, tensor: Tensor) -> Tensor:
        """Sum a tensor of the host over all ranks, in place, and return it."""
        if self.size > 1:
            reduce(tensor, dist.ReduceOp.SUM, self.host)
        return tensor

    def max(self, number: int) -> int:
        """Return the largest of the ranks' numbers."""
        most = torch.tensor(number)
        if self.size > 1:
            reduce(most, dist.ReduceOp.MAX, self.host)
        return int(most)

    def all(self, flag: Tensor) -> Tensor:
        """Tell whether a boolean scalar on the device is true on every rank, without waiting for the device."""
        if self.size == 1:
            return flag
        agreed = flag.int()
        reduce(agreed, dist.ReduceOp.MIN)
        return agreed.bool()

    def from_main(self, name: str, make: Callable[[], str]) -> str:
        """Return what `make` returns on rank 0, where alone it is called; the others wait for as long as it takes."""
        if self.store is None:
            return make()
        if self.is_main:
            made = make()
            self.store.set(name, made)
            return made
        told = time.monotonic()
        while not self.store.check([name]):
            time.sleep(0.05)
            if self.rank == 1 and time.monotonic() - told > TOLD_EVERY_SECONDS:
                print(f"the other processes wait for rank 0: {name}", file=sys.stderr, flush=True)
                told = time.monotonic()
        value: bytes = self.store.get(name)
        return value.decode()

    def wait(self) -> None:
        """Return when the device has done all that it was given, so that a clock may be read."""
        wait(self.device)

    def replicate(self, model: nn.Module) -> nn.Module:
        """Return what to call in training for a model whose gradients are averaged over ranks; it holds `model`.

        A model that is sharded already is returned as it is. Buckets keep their first order, and with it the order of
        summation: the usual reordering after the first step would make a resumed run differ in the last bits.
        """
        if self.size == 1 or isinstance(model, FSDPModule):
            return model
        replica = DistributedDataParallel(
            model,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            find_unused_parameters=True,  # keeps the buckets' order
        )
        # Sent once, on making it, and not at each step. The argument for that has one name before torch 2.13 and
        # another from it on; the attribute has the same.
        replica.broadcast_buffers = False
        return replica

    def sync_gradients(self, model: nn.Module, last: bool) -> AbstractContextManager[object]:
        """Return a context whose backward pass averages gradients over ranks only if it is the `last` of a step."""
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(last)
        elif isinstance(model, DistributedDataParallel) and not last:
            return model.no_sync()
        return nullcontext()

    def release(self, model: nn.Module) -> None:
        """Let go of what a sharded model keeps gathered after a forward pass without a backward one.

        Of the root that is its own weights, and the next step would compute with those that were evaluated.
        """
        if isinstance(model, FSDPModule):
            model.reshard()

    def clip(self, model: nn.Module, norm: float) -> Tensor:
        """Scale the gradient down to `norm` where it is longer; return its length before, a scalar on the device."""
        total = nn.utils.clip_grad_norm_(model.parameters(), norm)
        return total.full_tensor() if isinstance(total, DTensor) else total

    def seed_dropout(self, seed: int, step: int, micro_batch: int) -> None:
        """Make the random numbers of a micro-batch a function of seed, step, micro-batch and rank."""
        torch.manual_seed(hash((seed, step, micro_batch, self.rank)))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Give a context in which the loss of another rank is told as that, wherever it shows.

        Raises:
            ConnectionError: a rank is gone, or was silent for too long.

        """
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not any(sign in str(error) for sign in SIGNS_OF_LOSS):
                raise
            raise ConnectionError(self._missing(error)) from None

    def _missing(self, error: RuntimeError) -> str:
        """Return which ranks do not answer any more, when one of them broke a sum."""
        assert self.store is not None
        reason = " ".join(str(error).split())[:200]
        try:
            self.store.set(f"here/{self.rank}", reason)
            time.sleep(ROLL_CALL_SECONDS)
            absent = [rank for rank in range(self.size) if not self.store.check([f"here/{rank}"])]
            places = [f"rank {rank} ({self.store.get(f'place/{rank}').decode()})" for rank in absent]
        except RuntimeError:  # the store lives in rank 0 where no agent keeps it
            places = ["rank 0"]
        silent = f"ended or hangs, or did not answer for {ROLL_CALL_SECONDS:.0f} s"
        lost = f"{', '.join(places)} {silent}" if places else "a connection between the processes broke"
        return f"rank {self.rank} stops: {lost} ({reason}): what was saved is safe, go on by --resume"


def init_world(silence_minutes: float = SILENCE_MINUTES) -> World:
    """Find the device and the other processes where there are any; the precision is float32, and to be settled next.

    Args:
        silence_minutes: how long a process may keep the others waiting before they take it for lost.

    Raises:
        UserError: there are more processes than GPUs.
        ConnectionError: one of the processes did not come in time.

    """
    cuda, size, local = torch.cuda.is_available(), int(os.environ.get("WORLD_SIZE", 1)), 0
    if size > 1:
        local = int(os.environ["LOCAL_RANK"])
    if cuda and local >= torch.cuda.device_count():
        raise UserError(
            f"{local + 1} or more processes on a machine with {torch.cuda.device_count()} GPUs: start fewer"
        )
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda and size > 1:
        torch.cuda.set_device(device)
    if not cuda:
        keep_freed_memory()
    timeout = timedelta(minutes=silence_minutes)
    found, host = join(timeout), None
    if found.size > 1:
        assert found.store is not None
        # Where tensors travel by NCCL, whose watchdog ends the process, the host is to miss the lost one before that.
        longer = timeout + (timedelta(minutes=1) if cuda else timedelta())
        dist.init_process_group(
            backend_of(device), store=found.store, rank=found.rank, world_size=found.size, timeout=longer
        )
        host = dist.new_group(backend="gloo", timeout=timeout) if cuda else None
        atexit.register(leave)
        found.store.set(f"place/{found.rank}", f"process {os.getpid()} on {platform.node()}")
    return World(device, torch.float32, found.rank, found.size, found.store, found.job, found.restarted, host)
