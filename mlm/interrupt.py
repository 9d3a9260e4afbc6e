"""Ctrl-C as a wish: the first lets training finish its step, the second ends the command at once.

An exception out of nowhere may be raised where Python can only ignore it, and would be lost.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def noted(meaning: str) -> Iterator[list[int]]:
    """Give a list that Ctrl-C makes non-empty, and say what it means; afterwards Ctrl-C is what it was before."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print(f"\n{meaning}; Ctrl-C again stops at once", file=sys.stderr)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, before)
