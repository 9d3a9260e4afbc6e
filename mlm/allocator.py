"""How the C library hands out memory on CPU."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Numbers of the settings in glibc's malloc.h."""
LARGEST = 2**30


def keep_freed_memory() -> None:
    """Let this process use again what it has freed, up to arrays of a gibibyte, where the C library is glibc.

    By default an array of some megabytes is given back to the system as soon as it is freed, and its pages are cleared
    when the next one of that size touches them: a tenth of the time of a training step. The largest amount of memory
    that a run takes stays what it was.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST)
        libc.mallopt(M_TRIM_THRESHOLD, LARGEST)
