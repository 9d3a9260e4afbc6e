"""A process's place in its job by the environment that torchrun, SLURM or another launcher sets, or leaves half set.

This module imports no torch: `configure_process` reads it first.
"""

import os
from dataclasses import dataclass

from configs import UserError

_LOCAL_RANKS = ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID")
"""Variables with the number of a process on its machine: torchrun's, SLURM's, Open MPI's, and Intel's or MPICH's."""


@dataclass(frozen=True)
class Launch:
    """The place that a launcher gave to this process."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Number of the process on its machine; 0 where no variable tells it."""
    has_store: bool = False
    """True if the processes meet at MASTER_ADDR and MASTER_PORT: a job of several, or of one that torchrun restarts."""


def launch() -> Launch:
    """Return this process's place; raise a UserError that names the variable that is missing or wrong.

    A process alone needs none of them. What a shell or a notebook has left of a job of one process is ignored.
    """
    size = _number("WORLD_SIZE", 1, None) if _text("WORLD_SIZE") else 1
    meeting = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not _text(name)]
    if size == 1 and (meeting or not _text("TORCHELASTIC_RUN_ID")):
        return Launch()
    if meeting:
        raise UserError(
            f"WORLD_SIZE is {size} and {' and '.join(meeting)} {'are' if len(meeting) > 1 else 'is'} not set: start"
            " by torchrun, set what is missing, or, for one process, unset WORLD_SIZE"
        )
    _number("MASTER_PORT", 0, 2**16)
    local = next(filter(_text, _LOCAL_RANKS), None)
    return Launch(_number("RANK", 0, size), size, 0 if local is None else _number(local, 0, None), has_store=True)


def has_several() -> bool:
    """Return whether the environment speaks of several processes, whatever else it lacks."""
    return _text("WORLD_SIZE") not in ("", "1")


def job_of_slurm() -> tuple[str, bool]:
    """Return the name of SLURM's job, empty outside of one, and whether SLURM has started it before."""
    number = _text("SLURM_JOB_ID")
    return (f"slurm {number}", _text("SLURM_RESTART_COUNT") not in ("", "0")) if number else ("", False)


def _text(name: str) -> str:
    return os.environ.get(name, "").strip()


def _number(name: str, least: int, below: int | None) -> int:
    """Return the whole number in a variable, or raise a UserError if it holds none from `least` and under `below`."""
    text = _text(name)
    if not (text.isascii() and text.isdigit() and int(text) >= least and (below is None or int(text) < below)):
        wanted = f"a whole number from {least}" + ("" if below is None else f" to {below - 1}")
        raise UserError(f"the environment variable {name} is {text!r}, not {wanted}: set it so, or unset WORLD_SIZE")
    return int(text)
