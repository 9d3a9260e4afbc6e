"""The ranks of a run and their collectives; on one process every collective is a no-op.

Processes are started by torchrun, or by anything that sets its environment variables. Tensors travel over NCCL on CUDA
and over gloo on CPU; numbers of the host, such as counts and stop flags, always travel over gloo, so that no rank waits
for its device.
"""

import atexit
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store, _get_default_store

from configs import UserError
from mlm.distributed.launcher import launch
from mlm.distributed.rendezvous import Membership, backend_of, join, leave, reduce

DeviceKind = Literal["cpu", "cuda", "mps"]
DeviceChoice = Literal["auto", "cpu", "cuda", "mps"]

SILENCE_MINUTES = 10.0
ROLL_CALL_SECONDS = 5.0
REMINDER_SECONDS = 30.0
MADE, FAILED = "made ", "failed "
"""Beginnings of the values that rank 0 leaves in the store."""
LOST_RANK_SIGNS = ("gloo", "NCCL", "Timed out", "timeout", "Connection", "Broken pipe", "peer")
"""Words in the errors of both backends when another process is gone."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class World:
    """The processes that train one model together."""

    device: torch.device
    """The device that this process computes on."""
    dtype: torch.dtype
    """The type of matrix products: bfloat16 under autocast, or float32."""
    rank: int = 0
    size: int = 1
    store: Store | None = None
    """Key-value store that all processes reach; None for a single process."""
    job: str = ""
    """Name of this process's job, the same in all its attempts; empty for a process without a launcher."""
    restarted: bool = False
    """True if torchrun or SLURM has restarted the job."""
    host: dist.ProcessGroup | None = None
    """Group for numbers of the host; None for the default group."""

    def __str__(self) -> str:
        """Return `device cpu in float32` or `4 processes on cpu in float32`."""
        where = f"{self.size} processes on {self.device.type}" if self.size > 1 else f"device {self.device}"
        return f"{where} in {str(self.dtype).removeprefix('torch.')}"

    @property
    def is_main(self) -> bool:
        """True on rank 0, which writes files and talks to the user."""
        return self.rank == 0

    def single(self) -> "World":
        """Return the same device without the other processes."""
        return replace(self, rank=0, size=1, store=None)

    def share(self, count: int, size: int) -> list[slice]:
        """Return this rank's slices of `count` items, each of at most `size`.

        The items are cut into slices of one size, and slice i belongs to rank i % `World.size`. All ranks get the same
        number of slices, because they compute together: the last ones may begin beyond the items.
        """
        each = -(-count // (self.size * size))
        size = -(-count // (self.size * each))
        return [
            slice((turn * self.size + self.rank) * size, (turn * self.size + self.rank + 1) * size)
            for turn in range(each)
        ]

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
        largest = torch.tensor(number)
        if self.size > 1:
            reduce(largest, dist.ReduceOp.MAX, self.host)
        return int(largest)

    def all(self, flag: Tensor) -> Tensor:
        """Return whether a boolean scalar on the device is true on every rank, without waiting for the device."""
        if self.size == 1:
            return flag
        agreed = flag.int()
        reduce(agreed, dist.ReduceOp.MIN)
        return agreed.bool()

    def from_main(self, name: str, make: Callable[[], str]) -> str:
        """Return the value that `make` returns on rank 0, the only rank to call it; the others wait without limit.

        An exception of `make` is raised there, and on the other ranks a UserError with its message.
        """
        if self.store is None:
            return make()
        if self.is_main:
            try:
                made = make()
            except Exception as error:
                self.store.set(name, f"{FAILED}{error}")
                raise
            self.store.set(name, f"{MADE}{made}")
            return made
        reminded = time.monotonic()
        while not self.store.check([name]):
            time.sleep(0.05)
            if self.rank == 1 and time.monotonic() - reminded > REMINDER_SECONDS:
                logger.info("the other processes wait for rank 0: %s", name)
                reminded = time.monotonic()
        value: str = self.store.get(name).decode()
        if value.startswith(FAILED):
            raise UserError(f"rank 0 stopped while {name}: {value.removeprefix(FAILED)}")
        return value.removeprefix(MADE)

    @contextmanager
    def name_lost_ranks(self) -> Iterator[None]:
        """Return a context that raises a ConnectionError with the names of ranks that ended or were silent too long."""
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not any(sign in str(error) for sign in LOST_RANK_SIGNS):
                raise
            raise ConnectionError(_lost_ranks(self, error)) from error


def _lost_ranks(world: World, error: RuntimeError) -> str:
    """Return a message that names the ranks that do not answer after a failed collective."""
    assert world.store is not None
    reason = " ".join(str(error).split())[:200]
    try:
        world.store.set(f"here/{world.rank}", reason)
        time.sleep(ROLL_CALL_SECONDS)
        absent = [rank for rank in range(world.size) if not world.store.check([f"here/{rank}"])]
        places = [f"rank {rank} ({world.store.get(f'place/{rank}').decode()})" for rank in absent]
    except RuntimeError:  # without torchrun's agent, the store lives in rank 0
        places = ["rank 0"]
    silent = f"ended or hangs, or did not answer for {ROLL_CALL_SECONDS:.0f} s"
    lost = f"{', '.join(places)} {silent}" if places else "a connection between the processes broke"
    return f"rank {world.rank} stops: {lost} ({reason}): what was saved is safe, resume with --resume"


def devices() -> list[DeviceKind]:
    """Return the kinds of devices that this machine has, as far as torch can use them."""
    has = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return [kind for kind in get_args(DeviceKind) if has[kind]]


def choose_device(wanted: DeviceChoice = "auto") -> torch.device:
    """Return the current device of the wanted kind, `auto` CUDA where there is one, else CPU.

    Raise a UserError if this machine has none of that kind.
    """
    has = devices()
    kind = wanted if wanted != "auto" else "cuda" if "cuda" in has else "cpu"
    if kind not in has:
        raise UserError(f"device={kind}: torch finds none on this machine: set device to one of auto, {', '.join(has)}")
    if kind == "mps":
        logger.warning(
            "device mps is unverified: no run of this project has been made on one: compare losses with a CPU's"
        )
    return torch.device("cuda", torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)


def init_world(silence_minutes: float = SILENCE_MINUTES, wanted: DeviceChoice = "auto") -> World:
    """Choose the device, and join the other processes of the job, if any.

    An existing process group is used. The precision is float32 until `with_precision` chooses one. A process that keeps
    the others waiting for `silence_minutes` is treated as lost.

    Raises:
        UserError: the wanted device is absent, there are more processes than GPUs, or a launcher's variable is missing
            or wrong.
        ConnectionError: a process did not arrive in time.
    """
    existing, device = dist.is_initialized(), choose_device(wanted)
    cuda = device.type == "cuda"
    if cuda and not existing and (place := launch()).size > 1:
        local, count = place.local_rank, torch.cuda.device_count()
        if local >= count:
            raise UserError(
                f"a process with the local rank {local} sees {count} GPUs: start fewer, or let each see all"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    timeout = timedelta(minutes=silence_minutes)
    found, host = _membership() if existing else join(timeout), None
    if found.size > 1:
        assert found.store is not None
        if not existing:
            # NCCL's watchdog ends the process, so gloo has to notice a lost rank earlier.
            longer = timeout + (timedelta(minutes=1) if cuda else timedelta())
            dist.init_process_group(
                backend_of(device), store=found.store, rank=found.rank, world_size=found.size, timeout=longer
            )
            atexit.register(leave)
        host = dist.new_group(backend="gloo", timeout=timeout) if cuda else None
        found.store.set(f"place/{found.rank}", f"process {os.getpid()} on {platform.node()}")
    return World(device, torch.float32, found.rank, found.size, found.store, found.job, found.restarted, host)


@contextmanager
def joined(silence_minutes: float = SILENCE_MINUTES, wanted: DeviceChoice = "auto") -> Iterator[World]:
    """Return a context with the result of `init_world`; a process group that it opens is closed at the end."""
    existing = dist.is_initialized()
    world = init_world(silence_minutes, wanted)
    try:
        with world.name_lost_ranks():
            yield world
    except BaseException:
        # Other ranks may be in the middle of a collective, for which a group waits when it is closed.
        if not existing and world.size == 1:
            leave()
        raise
    if not existing:
        leave()


def _membership() -> Membership:
    """Return this process's place in the existing process group, with a separate part of its store."""
    rank, size = dist.get_rank(), dist.get_world_size()
    if size == 1:
        return Membership(rank, size, None, "", restarted=False)
    store = _get_default_store()
    # Every rank makes its worlds in the same order, so the count names the same world on all ranks.
    return Membership(rank, size, PrefixStore(f"world {store.add(f'worlds of {rank}', 1)}", store), "", restarted=False)
