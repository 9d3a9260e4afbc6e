"""Start real processes, by torchrun or one by one."""

import os
import subprocess
import sys
from pathlib import Path

from tests import processes


def launch(folder: Path, module: str, *words: str, **environment: str) -> "subprocess.Popen[str]":
    """Start `module` in `folder`, its output and errors as one text."""
    return processes.start(
        [sys.executable, "-m", module, *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(processes.ROOT), "OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def torchrun(count: int, module: str, *words: str, folder: Path, **options: str) -> "subprocess.Popen[str]":
    """Start `module` on so many processes in `folder`; options are torchrun's own, with _ for -."""
    own = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    return launch(
        folder, "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", *own, "-m", module, *words
    )


def finish(process: "subprocess.Popen[str]") -> str:
    """Wait for the end and return the output; what hangs is killed."""
    output: str = processes.finish(process).stdout
    return output
