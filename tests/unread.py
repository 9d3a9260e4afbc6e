"""Standard streams that nobody reads, for processes that tests start."""

import os
import pty
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.processes import run


def _dead_pipe() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def _hung_up_terminal() -> int:
    terminal, stream = pty.openpty()
    os.close(terminal)
    return stream


def _full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


UNREAD: dict[str, Callable[[], int]] = {
    "a closed pipe": _dead_pipe,
    "a hung-up terminal": _hung_up_terminal,
    "a full disk": _full_disk,
}


@contextmanager
def unread(kind: str) -> Iterator[int]:
    """Return a context with a descriptor of a kind in UNREAD."""
    descriptor = UNREAD[kind]()
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def run_closed(redirection: str, *words: str, cwd: Path) -> int:
    """Run Python with streams that the shell closes, such as `>&- 2>&-`, and return the exit code."""
    script = f'exec "$0" "$@" {redirection}'
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return run(["sh", "-c", script, sys.executable, *words], cwd=cwd, env=environment).returncode
