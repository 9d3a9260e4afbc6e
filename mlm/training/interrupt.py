"""Ctrl-C and the signals of schedulers as a request to stop: training finishes its step and saves.

A handler that raises an exception may do so where Python ignores exceptions: the signal would be lost.
"""

import logging
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from mlm.distributed.world import World
from mlm.training.budget import TrainingLength, TrainingProgress
from mlm.training.loop import Observer

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C; the default signal of kill and of a shutdown; a signal that SLURM can send before the time limit."""

logger = logging.getLogger(__name__)


class StopRequest:
    """A question whether to stop, whose largest answer is kept: it need not be repeated."""

    def __init__(self, stop: Callable[[], int]) -> None:
        """Ask `stop`, which returns 0 to go on."""
        self.stop = stop
        self.number = 0

    def is_made(self) -> bool:
        """Ask, and return whether any answer so far was not 0."""
        self.number = max(self.number, self.stop())
        return self.number != 0


class SignalStop(Observer, AbstractContextManager["SignalStop"]):
    """Catches signals while training; its `received` is the `stop` of the loop. A second Ctrl-C raises at once."""

    def __init__(self, meaning: str) -> None:
        """Log `meaning` when a signal comes, such as "finishing the step and saving"."""
        self.meaning = meaning
        self.numbers: list[int] = []
        self.before: dict[int, Any] = {}

    def received(self) -> int:
        """Return the largest number of the signals received while training; 0 if there was none."""
        return max(self.numbers, default=0)

    def __exit__(self, *error: object) -> None:
        """Restore the former handlers, also where training ended by an error."""
        while self.before:
            signal.signal(*self.before.popitem())

    def started(self, world: World, length: TrainingLength, progress: TrainingProgress) -> None:
        """Install the handlers, and forget the signals of an earlier training."""
        self.numbers.clear()
        self.before = {number: signal.signal(number, self._note) for number in SIGNALS}

    def ended(self, progress: TrainingProgress) -> None:
        """Restore the former handlers."""
        self.__exit__()

    def _note(self, number: int, frame: object) -> None:
        self.numbers.append(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        logger.info("\n%s: %s; Ctrl-C again stops at once", signal.Signals(number).name, self.meaning)
