"""What all tests share."""

import os

import pytest
from hypothesis import settings

# Tiny models gain nothing from threads, and threads that wait for a busy core lose much. Commands that tests start
# inherit it; torch reads it when it is imported.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["GOMP_SPINCOUNT"] = "1000"

# Examples are drawn from a fixed seed, so that every run of the tests is the same; the time of one proves nothing.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("repeatable")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none."""
    if item.get_closest_marker("gpu"):
        import torch  # here, where the number of its threads is set

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
