"""Ctrl-C and the signals of schedulers as a wish: training finishes its step; a second Ctrl-C ends it at once.

An exception out of nowhere may be raised where Python can only ignore it, and would be lost.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C; what kill and machines that shut down send; what SLURM can be told to send before the time is up."""


@contextmanager
def noted(meaning: str) -> Iterator[list[int]]:
    """Give a list of the signals that have come, and say what they mean; afterwards all is as it was before."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        received.append(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        print(f"\n{signal.Signals(number).name}: {meaning}; Ctrl-C again stops at once", file=sys.stderr)

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
