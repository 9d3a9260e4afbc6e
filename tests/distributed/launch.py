"""Start real processes, by torchrun or one by one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def launch(folder: Path, module: str, *words: str, **environment: str) -> "subprocess.Popen[str]":
    """Start `module` in `folder`, its output and errors as one text."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that all of it can be killed together
    )


def torchrun(processes: int, module: str, *words: str, folder: Path, **options: str) -> "subprocess.Popen[str]":
    """Start `module` on so many processes in `folder`; options are torchrun's own, with _ for -."""
    own = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    return launch(
        folder, "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *own, "-m", module, *words
    )


def finish(process: "subprocess.Popen[str]", seconds: float = 120.0) -> str:
    """Wait for the end and return the output; what has not ended by then is killed."""
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        print(process.communicate()[0])
        raise
    return output
