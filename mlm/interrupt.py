"""Ctrl-C as a wish: the first lets training finish its step and save, the second ends the command at once."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def noted() -> Iterator[list[int]]:
    """Give a list that Ctrl-C makes non-empty; afterwards Ctrl-C is what it was before."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("\nfinishing the step and saving; Ctrl-C again stops at once", file=sys.stderr)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, before)
