"""Fixtures and settings of all tests."""

import atexit
import os
import shutil
import signal
import tempfile

import pytest
from hypothesis import settings

# Tiny models gain nothing from threads, and threads that wait for a busy core lose much. Commands that tests start
# inherit it; torch reads it when it is imported.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["GOMP_SPINCOUNT"] = "1000"

# Trackio reads the place of its folder when it is imported; the user's own must stay as it is.
os.environ["TRACKIO_DIR"] = tempfile.mkdtemp(prefix="trackio-")
atexit.register(shutil.rmtree, os.environ["TRACKIO_DIR"], ignore_errors=True)

# A job in the background of a script ignores SIGINT, and under nohup SIGHUP. Commands that tests start would inherit
# that, and rightly go on; a handler of this process is not inherited.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler)

# So that a run of the tests that is told to end still kills the processes that its tests have started.
signal.signal(signal.SIGTERM, signal.default_int_handler)

# Examples are drawn from a fixed seed, so that every run of the tests is the same; the time of one proves nothing.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("repeatable")


SLOWEST = (
    "test_gpu_script.py",
    "test_jobs.py",
    "test_pretrain.py",
    "test_launchers.py",
    "test_learning.py",
    "test_sweep.py",
)
"""Files whose tests come first, so that no process of pytest-xdist waits for another at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the slowest files come first."""
    items.sort(key=lambda item: item.path.name not in SLOWEST)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none."""
    if item.get_closest_marker("gpu"):
        import torch  # here, where the number of its threads is set

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
