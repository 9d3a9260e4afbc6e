import platform

import pytest

from mlm.benchmark.measure import in_fresh_process
from mlm.distributed.process import keep_freed_memory

SIZE = 64 * 2**20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is another one")
def test_what_is_freed_is_used_again_and_not_given_back() -> None:
    assert in_fresh_process(pages_cleared, True)[0] < in_fresh_process(pages_cleared, False)[0] / 2


def pages_cleared(keep: bool) -> int:
    """Return the page faults of taking and freeing an array a few times over."""
    import resource

    import torch

    assert not keep or keep_freed_memory()
    for _ in range(20):  # what is taken in between leaves gaps at first
        torch.ones(SIZE, dtype=torch.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(SIZE, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
