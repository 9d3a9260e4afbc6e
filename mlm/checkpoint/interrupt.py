"""Ctrl-C and the signals of schedulers as a request to stop: training finishes its step and saves.

A handler that raises an exception or prints may do so where Python ignores exceptions: the signal would be lost.
"""

import logging
import signal
from collections.abc import Callable, Mapping
from contextlib import ExitStack

from torch import nn

from mlm.distributed.world import World
from mlm.training.budget import TrainingLength, TrainingProgress
from mlm.training.loop import Observer, StepMetrics

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
"""Ctrl-C; the default of kill and of a shutdown; a closed terminal; those of schedulers before a limit is reached."""

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


class SignalStop(Observer, ExitStack):
    """Catches signals while training; its `received` is the `stop` of the loop. A second Ctrl-C raises at once."""

    def __init__(self, meaning: str) -> None:
        """Log `meaning` after the step in which a signal came, such as "saving"."""
        super().__init__()
        self.meaning = meaning
        self.numbers: list[int] = []

    def received(self) -> int:
        """Return the largest number of the signals received while training; 0 if there was none."""
        return max(self.numbers, default=0)

    def started(self, world: World, length: TrainingLength, progress: TrainingProgress) -> None:
        """Install the handlers; signals that are ignored, as under nohup, stay ignored."""
        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: not of Python
                self.callback(signal.signal, number, signal.signal(number, self._note))

    def log(self, progress: TrainingProgress, metrics: StepMetrics) -> None:
        """Log that a signal came, which the handler itself could not do safely."""
        if self.numbers:
            name = signal.Signals(self.received()).name
            logger.info("\n%s at step %d: %s; Ctrl-C again stops at once", name, progress.step, self.meaning)

    def ended(self, progress: TrainingProgress) -> None:
        """Restore the former handlers."""
        self.close()

    def _note(self, number: int, frame: object) -> None:
        self.numbers.append(number)
        if signal.getsignal(signal.SIGINT) == self._note:
            signal.signal(signal.SIGINT, signal.default_int_handler)


class Pause(Observer):
    """Asks to stop after the first evaluation at a number of steps or more; its `reached` is a `stop` of the loop."""

    def __init__(self, steps: int | None) -> None:
        """Pause after `steps`; None: never."""
        self.steps = steps
        self._is_reached = False

    def reached(self) -> int:
        """Return 1 once training is to pause, else 0."""
        return int(self._is_reached)

    def evaluated(self, progress: TrainingProgress, metrics: Mapping[str, float], model: nn.Module) -> None:
        """Note whether the steps are reached."""
        self._is_reached |= self.steps is not None and progress.step >= self.steps
