"""The training loop, shared by pretraining and fine-tuning."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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

    sums: Mapping[str, float]
    """Sums over all targets of all ranks: `loss` and the task's others."""
    targets: int
    tokens: int
    steps: int
    seconds: float
    waited_seconds: float
    """Of these, the time spent waiting for data."""
    gradient_norm: float
    """Norm of the last step's gradient before clipping."""
    skipped: tuple[int, ...]
    """Steps whose update was left out because the loss or the gradient was not finite, from 0."""
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
    position, ledger, ended = start, Ledger(world), plan.finished(start)
    replica = world.replicate(model)
    model.train()
    if start.step == 0:
        evaluate(model, task, optimiser, observer, position)
    while not ended:  # asked once a step, so that the step which is the last is also saved
        began = time.perf_counter()
        progress = plan.progress(position)
        micro_batches = task.micro_batches(position.step, progress)
        waited = time.perf_counter() - began
        counts = world.sum([sum(b.targets for b in micro_batches), sum(b.tokens for b in micro_batches)])
        targets, tokens = map(int, counts)
        sums: dict[str, Tensor] = {}
        for index, batch in enumerate(micro_batches):
            world.seed_dropout(seed, position.step, index)
            with world.synchronise_gradients(replica, last=index == len(micro_batches) - 1):
                losses = task.losses(replica, batch)
                # Gradients are averaged over ranks, and it is their sum that is wanted.
                (losses["loss"] * (world.size / max(targets, 1))).backward()  # type: ignore[no-untyped-call]
            sums = {name: loss.detach() + sums.get(name, 0) for name, loss in losses.items()}
        norm = world.clip(model, clip_norm)
        finite = world.all(torch.isfinite(norm) & torch.isfinite(sums["loss"]))
        optimiser.update(factor := schedule.factor(progress), finite)
        if (position.step + 1) % intervals.log_steps == 0:
            world.wait()  # so that the time of what is still queued on the device is counted where it is told
        leads = float(world.leads)  # whose clock counts for all
        seconds, waited = world.sum([leads * (time.perf_counter() - began), leads * waited])
        ledger.add(
            position.step,
            sums,
            targets=targets,
            tokens=tokens,
            seconds=seconds,
            waited_seconds=waited,
            gradient_norm=norm,
            finite=finite,
            rate_factor=factor,
        )
        position = Position(position.step + 1, position.tokens + tokens, position.seconds + seconds)
        finished = plan.finished(position)
        if finished or position.step % intervals.evaluate_steps == 0:
            evaluate(model, task, optimiser, observer, position)
        (stops,) = world.sum([stop()])  # asked here because an evaluation may be what says so
        ended = finished or stops > 0
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
    """Keeps what happened on the device, so that the host waits for it only when it is read."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._begin()

    def _begin(self) -> None:
        self.steps: list[int] = []
        self.on_device: list[Tensor] = []
        self.targets = self.tokens = 0
        self.seconds = self.waited_seconds = self.rate_factor = 0.0

    def add(
        self,
        step: int,
        sums: Mapping[str, Tensor],
        *,
        targets: int,
        tokens: int,
        seconds: float,
        waited_seconds: float,
        gradient_norm: Tensor,
        finite: Tensor,
        rate_factor: float,
    ) -> None:
        """Add a step; all but `sums` is the same on every rank."""
        self.steps.append(step)
        self.names = tuple(sums)
        self.on_device.append(torch.stack([value.double() for value in (finite, gradient_norm, *sums.values())]))
        self.targets, self.tokens = self.targets + targets, self.tokens + tokens
        self.seconds, self.waited_seconds = self.seconds + seconds, self.waited_seconds + waited_seconds
        self.rate_factor = rate_factor

    def take(self) -> Interval:
        """Return what happened since the last time."""
        rows = torch.stack(self.on_device).tolist()
        totals = self.world.sum([sum(column) for column in list(zip(*rows, strict=True))[2:]])
        interval = Interval(
            sums=dict(zip(self.names, totals, strict=True)),
            targets=self.targets,
            tokens=self.tokens,
            steps=len(self.steps),
            seconds=self.seconds,
            waited_seconds=self.waited_seconds,
            gradient_norm=rows[-1][1],
            skipped=tuple(step for step, (finite, *_) in zip(self.steps, rows, strict=True) if not finite),
            rate_factor=self.rate_factor,
        )
        self._begin()
        return interval
