"""Connect the processes of a job, also after torchrun or SLURM has restarted them.

torchrun's agents keep one store for all attempts of a job. It still holds the addresses of an earlier attempt, and
agents on several machines count the attempts independently. So rank 0 draws a name for each attempt and sends it to the
ranks that ask for it; the name is a prefix of all the attempt's keys in the store.
"""

import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from mlm.distributed import launcher

REQUEST_SECONDS = 0.05
RELEASE_SECONDS = 5.0
_REDUCED: deque[Tensor] = deque(maxlen=8)
"""Tensors of the latest reductions."""
_OPENED = list[tuple[Store, int, int]]()
"""The store of this process's job once it is open: rank 0 may host it, and its port is bound only once."""


@dataclass(frozen=True)
class Membership:
    """The place of a process in its job, and the store of the job."""

    rank: int
    size: int
    store: Store | None
    """Key-value store of this attempt's processes; None for a process without a launcher."""
    job: str
    """Unique name of the job, the same in all its attempts; empty for a process without a launcher."""
    restarted: bool
    """True if the job had an attempt before this one."""


def join(timeout: timedelta) -> Membership:
    """Join the other processes by the launcher's variables.

    Raises:
        UserError: a variable is missing or wrong.
        ConnectionError: a process does not arrive in time.
    """
    (slurm, requeued), place = launcher.job_of_slurm(), launcher.launch()
    if not place.has_store:
        return Membership(0, 1, None, slurm, requeued)
    rank = place.rank
    try:
        store, rank, size = _store_of_job(timeout)
        attempt = _send_name(store, size) if rank == 0 else _receive_name(store, rank, timeout)
    except RuntimeError as error:
        raise ConnectionError(f"rank {rank} did not find the other processes ({error}): start the job again") from error
    first = store.compare_set("first attempt", "", attempt).decode()
    job, restarted = slurm or f"torchrun {first}", requeued or attempt != first
    return Membership(rank, size, PrefixStore(attempt, store), job, restarted)


def _store_of_job(timeout: timedelta) -> tuple[Store, int, int]:
    """Return the job's store, this rank and the number of ranks; a process opens its job's store only once."""
    if not _OPENED:
        _OPENED.append(next(rendezvous("env://", timeout=timeout)))
    store, rank, size = _OPENED[0]
    store.set_timeout(timeout)
    return store, rank, size


def _send_name(store: Store, size: int) -> str:
    """Draw the attempt's name, and send it to each of the other ranks when it asks."""
    attempt = secrets.token_hex(8)
    requests = [f"request of {rank}" for rank in range(1, size)]
    for request in requests:
        store.delete_key(request)  # an earlier attempt's
    for request in requests:
        store.set(f"answer to {store.get(request).decode()}", attempt)
    return attempt


def _receive_name(store: Store, rank: int, timeout: timedelta) -> str:
    """Ask rank 0 for the attempt's name until it answers."""
    own = secrets.token_hex(8)
    until = time.monotonic() + timeout.total_seconds()
    while not store.check([f"answer to {own}"]):
        if time.monotonic() > until:
            raise RuntimeError(f"rank 0 does not answer for {timeout.total_seconds():.0f} s")
        store.set(f"request of {rank}", own)  # repeated, because rank 0 may delete it as an earlier attempt's
        time.sleep(REQUEST_SECONDS)
    return store.get(f"answer to {own}").decode()


def backend_of(device: torch.device) -> str:
    """Return the backends of collectives: NCCL for tensors on CUDA, gloo for those of the host."""
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def reduce(tensor: Tensor, operation: dist.ReduceOp.RedOpType, group: dist.ProcessGroup | None = None) -> None:
    """Reduce a tensor over all processes, in place."""
    _REDUCED.append(tensor)
    try:
        dist.all_reduce(tensor, operation, group)
    except RuntimeError:
        _REDUCED.clear()  # gloo never releases a tensor that a lost process did not receive
        raise


def leave(pause: Callable[[float], None] = time.sleep) -> None:
    """Close the process group, if there is one; all processes do so together, or when they end."""
    if not dist.is_initialized():
        return
    # gloo's worker thread may hold a tensor for a moment after all_reduce returns. If it drops the last reference after
    # the interpreter has shut down, the process aborts: wait until no one else holds one.
    until = time.monotonic() + RELEASE_SECONDS
    while any(tensor._use_count() > 1 for tensor in _REDUCED) and time.monotonic() < until:  # type: ignore[attr-defined]
        pause(0.001)
    dist.destroy_process_group()
