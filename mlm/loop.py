"""The training loop, shared by pretraining and fine-tuning."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from configs import Config
from mlm.budget import Plan, Position
from mlm.distributed import World
from mlm.optim import Optimiser
from mlm.schedule import Schedule


class Countable(Protocol):
    """A micro-batch, of which the loop knows two numbers."""

    @property
    def targets(self) -> int:
        """Number of predictions that the loss sums over."""

    @property
    def tokens(self) -> int:
        """Number of tokens that are not padding."""


AnyBatch = TypeVar("AnyBatch", bound=Countable)


class Task(Protocol[AnyBatch]):
    """What differs between pretraining and fine-tuning."""

    def micro_batches(self, step: int, progress: float) -> Sequence[AnyBatch]:
        """Return this rank's micro-batches of a step, whose gradients are summed."""

    def losses(self, model: nn.Module, batch: AnyBatch) -> Mapping[str, Tensor]:
        """Return sums over a micro-batch's targets: `loss`, and what else is worth a curve."""

    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        """Return the held-out metrics."""


class Intervals(Config):
    """How often the loop stops to tell, to evaluate and to save."""

    log_steps: int = Field(20, gt=0)
    """Steps between two records of the training metrics."""
    evaluate_steps: int = Field(250, gt=0)
    """Steps between two held-out evaluations; there is one at the start and one at the end as well."""
    checkpoint_steps: int = Field(1000, gt=0)
    """Steps between two checkpoints; there is one at the end as well."""


@dataclass(frozen=True)
class Interval:
    """What happened in the steps since the last record."""

    sums: Mapping[str, Tensor]
    """Sums over all targets: `loss` and the task's others, on the device."""
    targets: int
    tokens: int
    steps: int
    seconds: float
    waited_seconds: float
    """Of these, the time spent waiting for data."""
    gradient_norm: Tensor
    """Norm of the last step's gradient before clipping."""
    skipped: Tensor
    """Updates left out because the loss or the gradient was not finite."""
    rate_factor: float
    """The schedule's share of the peak rate in the last step."""


class Observer(Protocol):
    """Where the loop reports to."""

    def log(self, position: Position, interval: Interval) -> None:
        """Take down what happened since the last record."""

    def evaluated(self, position: Position, metrics: Mapping[str, float], model: nn.Module) -> None:
        """Take down the held-out metrics of the model as it would be saved now."""

    def checkpoint(self, position: Position, model: nn.Module, optimiser: Optimiser) -> None:
        """Save the run as it stands."""


def train(
    model: nn.Module,
    task: Task[AnyBatch],
    optimiser: Optimiser,
    schedule: Schedule,
    plan: Plan,
    world: World,
    observer: Observer,
    *,
    seed: int,
    clip_norm: float,
    intervals: Intervals,
    start: Position,
    stop: Callable[[], bool] = lambda: False,
) -> Position:
    """Train until the plan is finished or `stop` says so; return how far training has come.

    The gradient of a step is that of the summed loss over all micro-batches and ranks, divided by their number of
    targets: how the batch was cut changes nothing. Before `start.step` nothing is replayed.
    """
    position, ledger, ended = start, Ledger(), plan.finished(start)
    model.train()
    if start.step == 0:
        evaluate(model, task, optimiser, observer, position)
    while not ended:  # asked once a step, so that the step which is the last is also saved
        began = time.perf_counter()
        progress = plan.progress(position)
        micro_batches = task.micro_batches(position.step, progress)
        waited = time.perf_counter() - began
        targets = world.sum(sum(batch.targets for batch in micro_batches))
        sums: dict[str, Tensor] = {}
        for index, batch in enumerate(micro_batches):
            world.seed_dropout(seed, position.step, index)
            with world.synchronise_gradients(model, last=index == len(micro_batches) - 1):
                losses = task.losses(model, batch)
                (losses["loss"] / max(targets, 1)).backward()  # type: ignore[no-untyped-call]
            sums = {name: loss.detach() + sums.get(name, 0) for name, loss in losses.items()}
        norm = nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        finite = torch.isfinite(norm) & torch.isfinite(sums["loss"])
        optimiser.update(factor := schedule.factor(progress), finite)
        tokens = world.sum(sum(batch.tokens for batch in micro_batches))
        if (position.step + 1) % intervals.log_steps == 0:
            world.wait()  # so that the time of what is still queued on the device is counted where it is told
        seconds = time.perf_counter() - began
        position = Position(position.step + 1, position.tokens + tokens, position.seconds + seconds)
        ledger.add(Interval(sums, targets, tokens, 1, seconds, waited, norm, ~finite, factor))
        finished = plan.finished(position)
        if finished or position.step % intervals.evaluate_steps == 0:
            evaluate(model, task, optimiser, observer, position)
        ended = finished or stop()  # an evaluation may be what says so
        if ended or position.step % intervals.log_steps == 0:
            observer.log(position, ledger.take())
        if ended or position.step % intervals.checkpoint_steps == 0:
            observer.checkpoint(position, model, optimiser)
    return position


def evaluate(
    model: nn.Module, task: Task[AnyBatch], optimiser: Optimiser, observer: Observer, position: Position
) -> None:
    """Report the held-out metrics of the weights that would be saved now."""
    model.eval()
    with optimiser.averaged():
        observer.evaluated(position, task.evaluate(model), model)
    model.train()


class Ledger:
    """Adds up intervals on the device, so that the host waits for it only when they are read."""

    def __init__(self) -> None:
        self.total: Interval | None = None

    def add(self, step: Interval) -> None:
        """Add a step to the interval."""
        if self.total is None:
            self.total = step
            return
        total = self.total
        self.total = replace(
            step,
            sums={name: value + total.sums[name] for name, value in step.sums.items()},
            targets=step.targets + total.targets,
            tokens=step.tokens + total.tokens,
            steps=step.steps + total.steps,
            seconds=step.seconds + total.seconds,
            waited_seconds=step.waited_seconds + total.waited_seconds,
            skipped=step.skipped.int() + total.skipped,
        )

    def take(self) -> Interval:
        """Return the interval and begin the next."""
        assert self.total is not None
        total, self.total = self.total, None
        return total
