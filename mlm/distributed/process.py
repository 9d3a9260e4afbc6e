"""Settings of the whole process: the waiting of threads, C++ logging, and memory allocation.

This module imports no torch, because the settings of threads are read once, when torch is first imported.
"""

import ctypes
import logging
import os
import sys
import warnings

from mlm.distributed import launcher

SPIN_COUNT = "1000"
"""Iterations that an OpenMP thread spins for another before it gives its core away."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Numbers of the settings in glibc's malloc.h."""
LARGEST, LARGEST_BEFORE_2_35 = 2**30, 2**25

logger = logging.getLogger(__name__)


def configure_process() -> None:
    """Set threads, warnings and allocator of this process for training; commands call it before they import torch.

    Values that the environment already has are kept. After `import torch` the settings of threads have no effect, and a
    warning says so.
    """
    if "torch" in sys.modules and "GOMP_SPINCOUNT" not in os.environ:
        logger.warning(
            "configure_process() comes after import torch: threads keep spinning while they wait, which makes training"
            " slower on a busy machine; call it first, or set GOMP_SPINCOUNT=%s",
            SPIN_COUNT,
        )
    # Spinning threads make training up to ten times slower where anything else runs on the machine.
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    if launcher.has_several():
        # DistributedDataParallel warns, on every rank, of the option that keeps the order of summation as it is.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # torch.compile recommends TensorFloat32, which rounds more than the float32 of the configuration.
    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")
    keep_freed_memory()


def keep_freed_memory() -> bool:
    """Make this process reuse the memory that it frees; return whether its C library supports this, as glibc does.

    By default glibc returns an array of some megabytes to the system as soon as it is freed, and the system clears the
    pages of the next one: a tenth of the time of a training step.
    """
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        return False
    # The second setting alone would fix the first at its current value, which is worse than no setting.
    kept = any(libc.mallopt(M_MMAP_THRESHOLD, largest) for largest in (LARGEST, LARGEST_BEFORE_2_35))
    return kept and bool(libc.mallopt(M_TRIM_THRESHOLD, LARGEST))
