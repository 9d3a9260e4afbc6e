"""Run commands as users do: in processes of their own, or in this one where that proves the same much sooner.

Importing torch takes a process some seconds, so only a test of a process itself starts one: of signals, exit codes,
limits, streams, threads, or of what another process computes.
"""

import importlib
import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

from configs import command

ROOT = Path(__file__).parents[1]
WITHOUT_OURS = """
import sys
class Refusal:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "configs", "tokenizer", "mlm", "finetune"}:
            raise ImportError(f"{name} is refused")
sys.meta_path.insert(0, Refusal())
"""
"""Code after which torch, transformers and this project cannot be imported."""
TIMEOUT_SECONDS = 600.0
"""After which a process hangs; a busy machine is many times slower than an idle one."""


def start(words: "Sequence[str | Path]", **options: Any) -> "subprocess.Popen[str]":
    """Start a process in a group of its own, which `finish` can kill together."""
    return subprocess.Popen(words, text=True, start_new_session=True, **options)


def finish(process: "subprocess.Popen[str]", text: str | None = None) -> "subprocess.CompletedProcess[str]":
    """Give a process its input, and wait for its end; if it does not come, all processes of its group are killed."""
    try:
        output, errors = process.communicate(text, timeout=TIMEOUT_SECONDS)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        print(*process.communicate())
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def run(
    words: "Sequence[str | Path]", *, text: str | None = None, **options: Any
) -> "subprocess.CompletedProcess[str]":
    """Run a process to its end."""
    stdin = subprocess.DEVNULL if text is None else subprocess.PIPE
    streams = {"stdin": stdin, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return finish(start(words, **streams), text)


def interrupted_in_training(folder: Path, records: str, module: str, *words: "str | Path") -> None:
    """Send Ctrl-C to a command that has logged a step in one of the files `records`: it ends with 130, in one line."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    child = start([sys.executable, "-m", module, *words], cwd=folder, env=environment, stderr=subprocess.PIPE)
    began = time.monotonic()
    while not any('"side": "train"' in path.read_text() for path in folder.glob(records)):
        assert child.poll() is None, child.communicate()
        assert time.monotonic() - began < TIMEOUT_SECONDS
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    errors = finish(child).stderr
    assert child.returncode == 130, errors
    assert "Traceback" not in errors
    assert errors.rstrip().endswith("interrupted")


def run_alone(folder: Path, code: str) -> "subprocess.CompletedProcess[str]":
    """Run code in `folder` as a process that has neither torch, nor transformers, nor this project."""
    return run([sys.executable, "-I", "-c", WITHOUT_OURS + code], cwd=folder)


def run_module(
    folder: Path, module: str, *words: "str | Path", environment: dict[str, str] | None = None, **options: Any
) -> "subprocess.CompletedProcess[str]":
    """Run one of the project's commands in `folder`, as a process."""
    env = os.environ | {"PYTHONPATH": str(ROOT)} | (environment or {})
    return run([sys.executable, "-m", module, *words], cwd=folder, env=env, **options)


def call(
    folder: Path, module: str, *words: "str | Path", text: str = "", environment: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run one of the project's commands in `folder`, in this process: its exit code, output and errors are the same."""
    main, arguments = importlib.import_module(module).main, list(map(str, words))
    output, errors = io.StringIO(), io.StringIO()
    code: Any = None
    with (
        chdir(folder),
        mock.patch.dict(os.environ, environment or {}),
        mock.patch.object(sys, "argv", [module, *arguments]),
        mock.patch.object(sys, "stdin", io.StringIO(text)),
        redirect_stdout(output),
        redirect_stderr(errors),
    ):
        try:
            command.run(main)
        except SystemExit as ended:
            code = ended.code
    return subprocess.CompletedProcess(arguments, code, output.getvalue(), errors.getvalue())


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def descendants(pid: int) -> dict[int, str]:
    """Return the command lines of the processes that a process has started, and of those that they have."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in listed.splitlines()]
    family, found = {pid}, dict[int, str]()
    for _ in rows:
        new = {int(own): args for own, parent, args in rows if int(parent) in family and int(own) not in family}
        if not new:
            break
        family |= set(new)
        found |= new
    return found


class Code:
    """Something that would run a command if it were unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch ran",)
