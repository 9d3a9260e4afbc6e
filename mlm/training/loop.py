"""The training loop, shared by pretraining and fine-tuning."""

import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from configs import Config
from mlm.distributed.device import autocast, synchronize
from mlm.distributed.parallel import clip_gradients, reshard, sync_gradients
from mlm.distributed.threads import ThreadReplicas, replicate_on_threads
from mlm.distributed.world import World
from mlm.model.dropout import seed_dropout
from mlm.training.budget import TrainingLength, TrainingProgress
from mlm.training.optim import Optimizer
from mlm.training.schedule import Schedule


class MicroBatch(Protocol):
    """A micro-batch, with the two counts that the loop needs."""

    @property
    def targets(self) -> int:
        """Number of predictions that the loss sums over."""

    @property
    def tokens(self) -> int:
        """Number of tokens that are not padding."""


AnyBatch = TypeVar("AnyBatch", bound=MicroBatch)


class Task(Protocol[AnyBatch]):
    """The batches, the loss and the evaluation of pretraining, or of fine-tuning."""

    def micro_batches(self, step: int, fraction: float) -> Sequence[AnyBatch]:
        """Return this rank's micro-batches of a step, whose gradients are summed; `fraction` is of the budget."""

    def losses(self, model: nn.Module, batch: AnyBatch) -> Mapping[str, Tensor]:
        """Return the summed loss under `loss`, and any other per-target sums to be logged, such as `correct`.

        Sums over one corpus of a mixture are `loss/NAME`, beside their number of targets, `targets/NAME`.
        """

    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        """Return the held-out metrics."""


class Intervals(Config):
    """Steps between two logs, evaluations and checkpoints."""

    log_steps: int = Field(20, gt=0)
    """Steps between two records of the training metrics; there is one at each checkpoint as well."""
    evaluate_steps: int = Field(250, gt=0)
    """Steps between two held-out evaluations; there is one at the start and one at the end as well."""
    checkpoint_steps: int = Field(1000, gt=0)
    """Steps between two checkpoints; there is one at the end as well."""


@dataclass(frozen=True)
class StepMetrics:
    """Metrics of one step, on the device; or of several steps in a row, on the host."""

    sums: Mapping[str, Tensor]
    """Sums over the targets, of this rank for one step and of all ranks for several: `loss` and the task's others."""
    targets: int
    """Targets of all ranks."""
    tokens: int
    """Tokens of all ranks that are not padding."""
    seconds: float
    """Time of rank 0."""
    batch_seconds: float
    """Time of rank 0 spent on making batches, which no loader does ahead."""
    learning_rates: Mapping[str, float]
    """Learning rates of the last step, by their names in the log."""
    gradient_norm: Tensor
    """Norm of the last step's gradient before clipping."""
    finite_S: Tensor
    """True for each step whose loss and gradient were finite on all ranks; the updates of the others are skipped."""

    @classmethod
    def merge(cls, steps: Sequence["StepMetrics"], world: World) -> "StepMetrics":
        """Return the metrics of `steps` as one record; this synchronizes host and device."""
        last = steps[-1]
        values = [(step.finite_S[0], step.gradient_norm, *step.sums.values()) for step in steps]
        wide = torch.float32 if world.device.type == "mps" else torch.float64  # the widest that the device has
        rows = torch.stack([torch.stack([value.to(wide) for value in row]) for row in values]).tolist()
        finite, norms, *columns = zip(*rows, strict=True)
        totals = torch.tensor(world.sum([sum(column) for column in columns]), dtype=torch.float64)
        return replace(
            last,
            sums=dict(zip(last.sums, totals.unbind(), strict=True)),
            targets=sum(step.targets for step in steps),
            tokens=sum(step.tokens for step in steps),
            seconds=sum(step.seconds for step in steps),
            batch_seconds=sum(step.batch_seconds for step in steps),
            gradient_norm=torch.tensor(norms[-1], dtype=torch.float64),
            finite_S=torch.tensor(finite).bool(),
        )

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.finite_S)

    @property
    def skipped(self) -> list[int]:
        """Indices of the steps whose update was skipped, from 0 for the first of these steps."""
        skipped: list[int] = (~self.finite_S).nonzero().flatten().tolist()
        return skipped

    def mean(self, name: str) -> float | None:
        """Return the mean of a sum over the targets, or over those of its corpus; None without targets."""
        _, is_of_corpus, corpus = name.partition("/")
        targets = self.sums[f"targets/{corpus}"].item() if is_of_corpus else self.targets
        return ratio(self.sums[name].item(), targets)


def ratio(part: float, whole: float) -> float | None:
    """Return part / whole; None, for a measure that cannot be taken, if `whole` is 0."""
    return part / whole if whole else None


class Observer:
    """Receives the events of training, as a callback; a subclass overrides the methods of the events that it needs."""

    def started(self, world: World, length: TrainingLength, progress: TrainingProgress) -> None:
        """Receive the start of training at `progress`, on every rank."""

    def log(self, progress: TrainingProgress, metrics: StepMetrics) -> None:
        """Receive the metrics of the steps since the last record, which `progress` ends."""

    def evaluated(self, progress: TrainingProgress, metrics: Mapping[str, float], model: nn.Module) -> None:
        """Receive the held-out metrics of `model`, whose weights are those that a checkpoint would save."""

    def checkpoint(self, progress: TrainingProgress, model: nn.Module, optimizer: Optimizer) -> None:
        """Receive the state to be saved."""

    def ended(self, progress: TrainingProgress) -> None:
        """Receive the end of training, finished or stopped."""


@dataclass(frozen=True)
class LoopSettings:
    """Settings of the loop, for any task."""

    optimizer: Optimizer
    schedule: Schedule
    length: TrainingLength
    intervals: Intervals
    clip_norm: float
    """Largest norm of the gradient; longer ones are scaled down to it."""
    seed: int
    """Seed of dropout."""
    threads: int = 1
    """Micro-batches computed at the same time; more than one only on a single CPU process."""
    milestones: Set[int] = frozenset()
    """Further steps after which there is a checkpoint."""

    def has_checkpoint(self, step: int) -> bool:
        """Return whether the state is saved after `step` steps."""
        return step % self.intervals.checkpoint_steps == 0 or step in self.milestones

    def has_record(self, step: int) -> bool:
        """Return whether metrics are logged after `step` steps; no record spans a checkpoint."""
        return step % self.intervals.log_steps == 0 or self.has_checkpoint(step)


def train(
    model: nn.Module,
    task: Task[AnyBatch],
    settings: LoopSettings,
    world: World,
    observers: Sequence[Observer],
    *,
    start: TrainingProgress,
    stop: Callable[[], bool] = lambda: False,
) -> TrainingProgress:
    """Train until the length is reached or `stop` returns true on any rank; return the progress.

    Nothing before `start.step` is replayed. The step after which training stops is also logged and saved.
    """
    length = settings.length
    progress, unlogged, ended = start, list[StepMetrics](), length.finished(start)
    for observer in observers:
        observer.started(world, length, start)
    model.train()
    if start.step == 0:
        evaluate(model, task, settings.optimizer, observers, progress)
    with replicate_on_threads(model, world, settings.threads) as replicas:
        while not ended:
            measured = take_step(replicas, task, settings, world, progress)
            # Rank 0's timings are used by every rank: a broadcast, done as a sum in which the others add zero.
            clocks = [measured.seconds, measured.batch_seconds] if world.is_main else [0.0, 0.0]
            seconds, batch_seconds, stopping_ranks = world.sum([*clocks, stop()])
            unlogged.append(replace(measured, seconds=seconds, batch_seconds=batch_seconds))
            tokens, all_seconds = progress.tokens + measured.tokens, progress.seconds + seconds
            progress = TrainingProgress(progress.step + 1, tokens, all_seconds)
            finished = length.finished(progress)
            if finished or progress.step % settings.intervals.evaluate_steps == 0:
                evaluate(model, task, settings.optimizer, observers, progress)
                stopping_ranks += world.sum([stop()])[0]  # an evaluation may be the reason to stop
            ended = finished or stopping_ranks > 0
            if ended or settings.has_record(progress.step):
                metrics, unlogged = StepMetrics.merge(unlogged, world), []
                for observer in observers:
                    observer.log(progress, metrics)
            if ended or settings.has_checkpoint(progress.step):
                for observer in observers:
                    observer.checkpoint(progress, model, settings.optimizer)
    for observer in observers:
        observer.ended(progress)
    return progress


def take_step(
    replicas: ThreadReplicas, task: Task[AnyBatch], settings: LoopSettings, world: World, progress: TrainingProgress
) -> StepMetrics:
    """Update the weights once, and return the metrics of the step with this rank's own timings.

    The gradient of a step is that of the summed loss over all micro-batches and ranks, divided by their number of
    targets: the division into micro-batches changes nothing. A step without targets changes neither weights nor the
    optimizer's state.
    """
    began = time.perf_counter()
    fraction = settings.length.next_fraction(progress)
    micro_batches = task.micro_batches(progress.step, fraction)
    batch_seconds = time.perf_counter() - began
    counts = world.sum([sum(b.targets for b in micro_batches), sum(b.tokens for b in micro_batches)])
    targets, tokens = map(int, counts)

    def compute(replica: nn.Module, index: int, batch: AnyBatch) -> Mapping[str, Tensor]:
        seed_dropout(settings.seed, progress.step, index * world.size + world.rank)
        with sync_gradients(replica, last=index == len(micro_batches) - 1):
            losses = task.losses(replica, batch)
            # Gradients are averaged over ranks, and the step needs their sum.
            (losses["loss"] * (world.size / max(targets, 1))).backward()  # type: ignore[no-untyped-call]
        return {name: loss.detach() for name, loss in losses.items()}

    first, *others = replicas.run_micro_batches(compute, micro_batches)
    sums = {name: sum((losses[name] for losses in others), loss) for name, loss in first.items()}
    norm = clip_gradients(replicas.model, settings.clip_norm)
    finite = world.all(torch.isfinite(norm) & torch.isfinite(sums["loss"]))
    with autocast(world.device, world.dtype):  # for optimizers that multiply matrices
        settings.optimizer.update(settings.schedule.factor(fraction), finite & (targets > 0))
    after = replace(progress, step=progress.step + 1)
    evaluates = after.step % settings.intervals.evaluate_steps == 0 or settings.length.finished(after)
    if settings.has_record(after.step) or evaluates:
        synchronize(world.device)  # queued work counts in the seconds of this step, not of the evaluation
    rates = settings.optimizer.learning_rates()
    return StepMetrics(sums, targets, tokens, time.perf_counter() - began, batch_seconds, rates, norm, finite[None])


def evaluate(
    model: nn.Module, task: Task[Any], optimizer: Optimizer, observers: Sequence[Observer], progress: TrainingProgress
) -> None:
    """Report the held-out metrics of the weights that a checkpoint would save."""
    model.eval()
    with optimizer.evaluation_weights():
        metrics = task.evaluate(model)
        for observer in observers:
            observer.evaluated(progress, metrics, model)
        reshard(model)
    model.train()
