"""The training loop, shared by pretraining and fine-tuning."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from configs import Config
from mlm.distributed.threads import ThreadReplicas, replicate_on_threads
from mlm.distributed.world import World
from mlm.training.budget import TrainingLength, TrainingProgress
from mlm.training.optim import Optimizer
from mlm.training.schedule import Schedule


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

    def micro_batches(self, step: int, fraction: float) -> Sequence[AnyBatch]:
        """Return this rank's micro-batches of a step, whose gradients are summed."""

    def losses(self, model: nn.Module, batch: AnyBatch) -> Mapping[str, Tensor]:
        """Return sums over a micro-batch's targets: `loss`, and what else is worth a curve."""

    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        """Return the held-out metrics."""


class Frequencies(Config):
    """How often the loop stops to tell, to evaluate and to save."""

    log_steps: int = Field(20, gt=0)
    """Steps between two records of the training metrics; there is one at each checkpoint as well."""
    evaluate_steps: int = Field(250, gt=0)
    """Steps between two held-out evaluations; there is one at the start and one at the end as well."""
    checkpoint_steps: int = Field(1000, gt=0)
    """Steps between two checkpoints; there is one at the end as well."""

    def has_record(self, step: int) -> bool:
        """Tell whether there is a record after so many steps; no record has steps before and after a checkpoint."""
        return step % self.log_steps == 0 or step % self.checkpoint_steps == 0


@dataclass(frozen=True)
class LoggedMetrics:
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

    def log(self, progress: TrainingProgress, metrics: LoggedMetrics) -> None:
        """Take down what happened since the last record."""

    def evaluated(self, progress: TrainingProgress, metrics: Mapping[str, float], model: nn.Module) -> None:
        """Take down the held-out metrics of the model as it would be saved now."""

    def checkpoint(self, progress: TrainingProgress, model: nn.Module, optimizer: Optimizer) -> None:
        """Save the run as it stands."""


@dataclass(frozen=True)
class LoopSettings:
    """How training goes, whatever it is that is trained."""

    optimizer: Optimizer
    schedule: Schedule
    plan: TrainingLength
    """When it ends."""
    intervals: Frequencies
    clip_norm: float
    """Largest norm of the gradient; longer ones are scaled down to it."""
    seed: int
    """Seed of dropout."""
    threads: int = 1
    """Micro-batches that are computed at the same time; more than one only on one CPU process, and without dropout."""


@dataclass(frozen=True)
class StepMetrics:
    """What happened in one step; all but `sums` is the same on every rank."""

    sums: Mapping[str, Tensor]
    """Sums over this rank's targets: `loss` and the task's others. On the device"""
    targets: int
    tokens: int
    seconds: float
    waited_seconds: float
    """Of these, the time spent waiting for data."""
    gradient_norm: Tensor
    """Before clipping. On the device"""
    finite: Tensor
    """Whether loss and gradient are, so that the weights were changed. On the device"""
    rate_factor: float
    """The schedule's share of the peak rate."""


def train(
    model: nn.Module,
    task: Task[AnyBatch],
    settings: LoopSettings,
    world: World,
    observer: Observer,
    *,
    start: TrainingProgress,
    stop: Callable[[], bool] = lambda: False,
) -> TrainingProgress:
    """Train until the plan is finished or `stop` says so; return how far training has come.

    Before `start.step` nothing is replayed.
    """
    intervals, plan = settings.intervals, settings.plan
    progress, buffer, ended = start, MetricsBuffer(world), plan.finished(start)
    model.train()
    if start.step == 0:
        evaluate(model, task, settings.optimizer, world, observer, progress)
    with replicate_on_threads(model, world, settings.threads) as replicas:
        while not ended:  # asked once a step, so that the step which is the last is also saved
            step = take_step(replicas, task, settings, world, progress)
            buffer.add(progress.step, step)
            progress = TrainingProgress(
                progress.step + 1, progress.tokens + step.tokens, progress.seconds + step.seconds
            )
            finished = plan.finished(progress)
            if finished or progress.step % intervals.evaluate_steps == 0:
                evaluate(model, task, settings.optimizer, world, observer, progress)
            (stops,) = world.sum([stop()])  # asked here because an evaluation may be what says so
            ended = finished or stops > 0
            if ended or intervals.has_record(progress.step):
                observer.log(progress, buffer.take())
            if ended or progress.step % intervals.checkpoint_steps == 0:
                observer.checkpoint(progress, model, settings.optimizer)
    return progress


def take_step(
    replicas: ThreadReplicas, task: Task[AnyBatch], settings: LoopSettings, world: World, progress: TrainingProgress
) -> StepMetrics:
    """Change the weights once.

    The gradient of a step is that of the summed loss over all micro-batches and ranks, divided by their number of
    targets: how the batch was cut changes nothing.

    Args:
        replicas: the model, once for each thread.
        task: what it learns.
        settings: optimizer, schedule, length and the rest.
        world: the processes.
        progress: how far training has come.

    """
    began = time.perf_counter()
    fraction = settings.plan.fraction(progress)
    micro_batches = task.micro_batches(progress.step, fraction)
    waited = time.perf_counter() - began
    counts = world.sum([sum(b.targets for b in micro_batches), sum(b.tokens for b in micro_batches)])
    targets, tokens = map(int, counts)

    def compute(replica: nn.Module, index: int, batch: AnyBatch) -> Mapping[str, Tensor]:
        world.seed_dropout(settings.seed, progress.step, index)
        with world.sync_gradients(replica, last=index == len(micro_batches) - 1):
            losses = task.losses(replica, batch)
            # Gradients are averaged over ranks, and it is their sum that is wanted.
            (losses["loss"] * (world.size / max(targets, 1))).backward()  # type: ignore[no-untyped-call]
        return {name: loss.detach() for name, loss in losses.items()}

    first, *others = replicas.each(compute, micro_batches)
    sums = {name: sum((losses[name] for losses in others), loss) for name, loss in first.items()}
    norm = world.clip(replicas.model, settings.clip_norm)
    finite = world.all(torch.isfinite(norm) & torch.isfinite(sums["loss"]))
    factor = settings.schedule.factor(fraction)
    with world.autocast():  # for optimizers that multiply matrices
        settings.optimizer.update(factor, finite)
    if settings.intervals.has_record(progress.step + 1):
        world.wait()  # so that the time of what is still queued on the device is counted where it is told
    leads = float(world.is_main)  # whose clock counts for all
    seconds, waited = world.sum([leads * (time.perf_counter() - began), leads * waited])
    return StepMetrics(sums, targets, tokens, seconds, waited, norm, finite, factor)


def evaluate(
    model: nn.Module,
    task: Task[AnyBatch],
    optimizer: Optimizer,
    world: World,
    observer: Observer,
    progress: TrainingProgress,
) -> None:
    """Report the held-out metrics of the weights that would be saved now."""
    model.eval()
    with optimizer.averaged():
        observer.evaluated(progress, task.evaluate(model), model)
        world.release(model)
    model.train()


class MetricsBuffer:
    """Keeps what happened on the device, so that the host waits for it only when it is read."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.first = 0
        self.steps: list[StepMetrics] = []

    def add(self, number: int, step: StepMetrics) -> None:
        """Add a step; numbers follow each other."""
        if not self.steps:
            self.first = number
        self.steps.append(step)

    def take(self) -> LoggedMetrics:
        """Return what happened since the last time."""
        steps, self.steps = self.steps, []
        kept = [(step.finite, step.gradient_norm, *step.sums.values()) for step in steps]
        rows = torch.stack([torch.stack([value.double() for value in values]) for values in kept]).tolist()
        totals = self.world.sum([sum(column) for column in list(zip(*rows, strict=True))[2:]])
        return LoggedMetrics(
            sums=dict(zip(steps[-1].sums, totals, strict=True)),
            targets=sum(step.targets for step in steps),
            tokens=sum(step.tokens for step in steps),
            steps=len(steps),
            seconds=sum(step.seconds for step in steps),
            waited_seconds=sum(step.waited_seconds for step in steps),
            gradient_norm=rows[-1][1],
            skipped=tuple(number for number, (finite, *_) in enumerate(rows, self.first) if not finite),
            rate_factor=steps[-1].rate_factor,
        )
