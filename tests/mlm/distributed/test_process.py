import os
import platform
import subprocess
import sys

import pytest

from mlm.benchmark.measure import in_fresh_process
from mlm.distributed.process import keep_freed_memory

SIZE = 64 * 2**20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is another one")
def test_freed_memory_is_reused_and_not_returned() -> None:
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


def configured(program: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a program in a process whose environment says nothing of threads but what is given."""
    kept = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    kept["PYTHONPATH"] = os.pathsep.join(sys.path)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=kept | environment)


CONFIGURE = "from mlm.distributed.process import configure_process; configure_process()"


def test_threads_are_set_before_torch_reads_how_they_spin() -> None:
    program = f"import os, sys; {CONFIGURE}; print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"
    done = configured(program)
    assert (done.stdout.split(), done.stderr) == (["1000", "False"], "")
    assert configured(program, GOMP_SPINCOUNT="7").stdout.split() == ["7", "False"]


def test_settings_that_come_after_torch_warn() -> None:
    done = configured(f"import torch; {CONFIGURE}")
    assert "GOMP_SPINCOUNT" in done.stderr
    assert configured(f"import torch; {CONFIGURE}", GOMP_SPINCOUNT="1000").stderr == ""
