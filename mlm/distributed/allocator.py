"""How the C library hands out memory on CPU."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Numbers of the settings in glibc's malloc.h."""
LARGEST, LARGEST_BEFORE_2_35 = 2**30, 2**25


def keep_freed_memory() -> bool:
    """Let this process use again what it has freed, and tell whether its C library can: glibc can, others may not.

    By default an array of some megabytes is given back to the system as soon as it is freed, and its pages are cleared
    when the next one of that size touches them: a tenth of the time of a training step.
    """
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        return False
    # The second setting alone would pin the first where it stands, and make things worse.
    kept = any(libc.mallopt(M_MMAP_THRESHOLD, largest) for largest in (LARGEST, LARGEST_BEFORE_2_35))
    return kept and bool(libc.mallopt(M_TRIM_THRESHOLD, LARGEST))
