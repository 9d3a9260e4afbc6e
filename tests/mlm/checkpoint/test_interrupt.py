"""Signals while training, raised in this process."""

import logging
import signal
from collections.abc import Iterator

import pytest
import torch

from mlm.checkpoint.interrupt import SignalStop
from mlm.distributed.world import World
from mlm.training.budget import TrainingLength, TrainingProgress
from mlm.training.loop import StepMetrics

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
WORLD = World(torch.device("cpu"), torch.float32)
METRICS = StepMetrics({}, 1, 1, 1.0, 0.0, {}, torch.tensor(1.0), torch.tensor([True]))


@pytest.fixture(autouse=True)
def handlers() -> Iterator[list[object]]:
    """Give every signal a handler that must not be called, and restore the former ones."""

    def fail(number: int, frame: object) -> None:
        raise AssertionError(number)

    before = [signal.signal(number, fail) for number in SIGNALS]
    yield [fail] * len(SIGNALS)
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


def started() -> SignalStop:
    stop = SignalStop("saving")
    stop.started(WORLD, TrainingLength(), TrainingProgress())
    return stop


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_told_with_the_step(
    number: signal.Signals, handlers: list[object], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mlm")
    with started() as stop:
        stop.log(TrainingProgress(step=3), METRICS)
        assert stop.received() == 0
        signal.raise_signal(number)
        assert caplog.messages == []  # a handler that prints may fail, or enter a print that it interrupts
        assert stop.received() == number
        stop.log(TrainingProgress(step=4), METRICS)
        assert [("saving" in line, "step 4" in line, number.name in line) for line in caplog.messages] == [(True,) * 3]
        stop.ended(TrainingProgress(step=4))
        assert [signal.getsignal(each) for each in SIGNALS] == handlers
    assert stop.received() == number


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_was_ignored_stays_ignored(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_IGN)  # as nohup does, and a shell for its background jobs
    with started() as stop:
        signal.raise_signal(number)
        assert stop.received() == 0
        other = next(each for each in SIGNALS if each != number)
        signal.raise_signal(other)
        assert stop.received() == other
    assert signal.getsignal(number) is signal.SIG_IGN


def test_a_second_ctrl_c_raises_at_once_and_the_handlers_are_restored(handlers: list[object]) -> None:
    with started():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(each) for each in SIGNALS] == handlers
