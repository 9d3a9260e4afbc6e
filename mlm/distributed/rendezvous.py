"""How the processes of a job find each other, also when torchrun or SLURM starts them again.

torchrun's agents keep one store for all attempts of a job, in which the addresses of an earlier attempt still stand,
and agents on several machines count the attempts each for itself. So every attempt has a part of the store to itself,
which the first process names and tells those that greet it.
"""

import os
import secrets
import time
from collections import deque
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

GREETING_SECONDS = 0.05
LETTING_GO_SECONDS = 5.0
_SENT: deque[Tensor] = deque(maxlen=8)
"""What was combined last."""


@dataclass(frozen=True)
class Membership:
    """What a process knows once it has found the others."""

    rank: int
    size: int
    store: Store | None
    """Where this attempt's processes leave each other word; None for a process that nobody launched."""
    job: str
    """Name of the job, the same in all its attempts and nobody else's; empty where there are no attempts."""
    restarted: bool
    """Whether the job had an attempt before this one."""


def join(timeout: timedelta) -> Membership:
    """Meet the other processes, by the environment variables that launchers set.

    Raises:
        ConnectionError: one of them did not come in time.

    """
    slurm = f"slurm {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
    requeued = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        return Membership(0, 1, None, slurm, requeued)
    rank = int(os.environ["RANK"])
    try:
        store, rank, size = next(rendezvous("env://", timeout=timeout))
        attempt = _gather(store, size) if rank == 0 else _greet(store, rank, timeout)
    except RuntimeError as error:
        raise ConnectionError(f"rank {rank} did not find the other processes ({error}): start the job again") from None
    first = store.compare_set("first attempt", "", attempt).decode()
    return Membership(
        rank, size, PrefixStore(attempt, store), slurm or f"torchrun {first}", requeued or attempt != first
    )


def _gather(store: Store, size: int) -> str:
    """Name the attempt, and tell each of the others once it has greeted."""
    attempt = secrets.token_hex(8)
    greetings = [f"greeting of {rank}" for rank in range(1, size)]
    for greeting in greetings:
        store.delete_key(greeting)  # an earlier attempt's
    for greeting in greetings:
        store.set(f"answer to {store.get(greeting).decode()}", attempt)
    return attempt


def _greet(store: Store, rank: int, timeout: timedelta) -> str:
    """Greet the first process until it answers with the attempt's name."""
    own = secrets.token_hex(8)
    until = time.monotonic() + timeout.total_seconds()
    while not store.check([f"answer to {own}"]):
        if time.monotonic() > until:
            raise RuntimeError(f"rank 0 does not answer for {timeout.total_seconds():.0f} s")
        store.set(f"greeting of {rank}", own)  # again and again, for it may be taken for an earlier attempt's
        time.sleep(GREETING_SECONDS)
    return store.get(f"answer to {own}").decode()


def backend_of(device: torch.device) -> str:
    """Return by what tensors travel: those on CUDA by NCCL, those of the host by gloo."""
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def reduce(tensor: Tensor, operation: dist.ReduceOp.RedOpType, group: dist.ProcessGroup | None = None) -> None:
    """Combine a tensor over all processes, in place."""
    _SENT.append(tensor)
    try:
        dist.all_reduce(tensor, operation, group)
    except RuntimeError:
        _SENT.clear()  # what a lost process does not take is never let go of
        raise


def leave() -> None:
    """Part from the other processes, where there are any; all of them do so at the same time, or at their end."""
    if not dist.is_initialized():
        return
    # A thread of gloo's lets go of a tensor a moment after its result is there, on busy cores a long one; and whoever
    # is the last to do so needs the interpreter: were that gone, the process would abort instead of ending.
    until = time.monotonic() + LETTING_GO_SECONDS
    while any(tensor._use_count() > 1 for tensor in _SENT) and time.monotonic() < until:  # type: ignore[attr-defined]
        time.sleep(0.001)
    dist.destroy_process_group()
