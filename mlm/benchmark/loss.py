"""The cases of learning: the time that our side takes to reach a reference's loss, and loss by the number of tokens.

Both sides are evaluated on the same held-out rows behind the same masks.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mlm.benchmark import hf_trainer
from mlm.benchmark.hf_models import labelled, unpacked
from mlm.benchmark.measure import WARMUP_STEPS, Case, Curve, alternate, synchronise
from mlm.benchmark.speed import REFERENCES, Bench, Reference, rows_of_as_many_tokens, train_ours
from mlm.build import build
from mlm.config import PretrainConfig
from mlm.data.batches import Batch
from mlm.distributed.device import precision_of
from mlm.distributed.world import World, init_world
from mlm.evaluation.results import measure_baselines
from mlm.objectives.masked import heldout_batches
from mlm.training.budget import TrainingProgress
from mlm.training.loop import Observer

HELDOUT_ROWS, CURVE_HELDOUT_ROWS, ROWS_AT_ONCE = 64, 256, 16
EVALUATE_STEPS = 2
"""Steps of our side between two evaluations, whose time does not count."""
THEIR_BATCH_ROWS = 8
"""The Trainer's default."""
THEIR_RATES = {"": 5e-5, "-tuned": 5e-4}
"""Peak learning rates by the end of the case's name: the Trainer's default, and a usual one for pretraining."""
POINTS = 8
"""Evaluations of a loss curve after the one at the start."""
CURVE_RATE = 5e-4
CURVE_OPTIMIZER = (
    f"optim={{kind: adamw, lr: {CURVE_RATE}, betas: [0.9, 0.999], epsilon: 1e-8, weight_decay: 0}}",
    "schedule={kind: linear, warmup: 0}",
    f"evaluation.most_rows={CURVE_HELDOUT_ROWS}",
)
"""The Trainer's default optimizer and schedule, for our side."""


def time_to_loss(bench: Bench, name: str) -> list[Case]:
    """Train a reference for a while; then ours for at most as long, until its held-out loss is as low."""
    reference = REFERENCES[name.replace("time-to-loss", "training")]
    return [_time_to_loss(bench, name + ending, reference, rate) for ending, rate in THEIR_RATES.items()]


def _time_to_loss(bench: Bench, name: str, reference: Reference, rate: float) -> Case:
    ours, theirs, losses = [], [], []
    for seed in range(bench.scale.repeats):
        seconds, loss = hf_trainer.as_users_run_it(their_loss, bench, reference, rate, seed)
        theirs.append(seconds)
        losses.append(loss)
        ours.append(our_seconds(our_recipe(bench, seconds, seed), bench.world, loss))
    counted = (
        f"training until the held-out masked loss is {min(losses):.2f} to {max(losses):.2f} nats, the Trainer's result"
        f" at a rate of {rate:g} falling to 0, {THEIR_BATCH_ROWS} rows a step, float32, no dropout and else its"
        " defaults; ours: the default recipe at this size, for at most as long, else no time; another seed each turn"
    )
    return Case.of(name + bench.label, "s", counted, ours, theirs)


def their_loss(bench: Bench, reference: Reference, rate: float, seed: int) -> tuple[float, float]:
    """Train for about `loss_seconds`; return the seconds of the steps, and the held-out loss."""
    rows, collate = hf_trainer.dataset(reference.rows(bench)), hf_trainer.collator(bench.corpus.tokenizer_path)
    world = init_world()

    def trained(steps: int) -> tuple[nn.Module, float]:
        model, ends = reference.build(bench, seed), list[float]()

        def after_step(tokens: int) -> bool:
            synchronise()
            ends.append(perf_counter())
            return False

        settings = {"max_steps": steps, "learning_rate": rate, "seed": seed}
        hf_trainer.train(model, rows, collate, THEIR_BATCH_ROWS, bfloat16=False, after_step=after_step, **settings)
        first = min(WARMUP_STEPS, len(ends) - 1)
        return model, (ends[-1] - ends[first - 1]) / (len(ends) - first)

    _, seconds_a_step = trained(2 * WARMUP_STEPS)
    steps = max(round(bench.scale.loss_seconds / seconds_a_step), 2)
    model, seconds_a_step = trained(steps)
    return steps * seconds_a_step, loss_of(model, heldout_of(bench, world, HELDOUT_ROWS))


def our_recipe(bench: Bench, seconds: float, seed: int) -> PretrainConfig:
    """Return the default recipe at the benchmark's size, for a training of `seconds`."""
    budget = f"train.budget={{kind: minutes, minutes: {seconds / 60}}}"
    evaluation = f"evaluation.most_rows={HELDOUT_ROWS}", "evaluation.words=0"
    return bench.read(*bench.sizes, *evaluation, budget, f"train.seed={seed}")


def our_seconds(recipe: PretrainConfig, world: World, goal: float) -> float:
    """Return the seconds of our steps until the held-out loss is at most `goal`; infinite if the budget ends first."""
    observer = TimeToLoss(goal)
    train_ours(recipe, world, observer, EVALUATE_STEPS, lambda: observer.reached)
    return observer.seconds


@dataclass
class TimeToLoss(Observer):
    """An observer that records the training time at which the held-out loss first is at most `goal`."""

    goal: float
    seconds: float = math.inf

    @property
    def reached(self) -> bool:
        """True once the loss was as low as the goal."""
        return self.seconds < math.inf

    def evaluated(self, progress: TrainingProgress, metrics: Mapping[str, float], model: nn.Module) -> None:
        """Record the time spent in steps, after at least one step."""
        if progress.step and metrics["loss"] <= self.goal and not self.reached:
            self.seconds = progress.seconds


def loss_curves(bench: Bench, name: str) -> list[Case]:
    """Train both sides on as many tokens with the same optimizer, and record the held-out loss."""
    reference, seeds = REFERENCES[name.replace("loss-curves", "training")], iter(range(2 * bench.scale.repeats))
    precision = precision_of(bench.world.dtype)

    def ours() -> tuple[Curve, float]:
        return our_curve(bench, next(seeds))

    def theirs() -> tuple[Curve, float]:
        return hf_trainer.as_users_run_it(their_curve, bench, reference, precision == "bfloat16", next(seeds))

    mine, others = alternate(ours, theirs, bench.scale.repeats)
    counted = (
        f"held-out masked loss after {bench.scale.curve_steps} steps of about {bench.scale.batch_tokens} tokens; both"
        f" sides AdamW at {CURVE_RATE:g} falling to 0, in {precision}; another seed each turn; FLOPs: the"
        " matrix products computed for a token, forward and backward; ours on CUDA with every block of attention"
    )
    baselines = measure_baselines(bench.recipe, bench.corpus, heldout_of(bench, bench.world, CURVE_HELDOUT_ROWS))
    last = [[curve[-1][1] for curve, _ in side] for side in (mine, others)]
    return [
        replace(
            Case.of(name + bench.label, "nats", counted, *last),
            curves={"ours": [curve for curve, _ in mine], "theirs": [curve for curve, _ in others]},
            baselines={name: scores["loss"] for name, scores in baselines.items()},
            flops_per_token={"ours": mine[0][1], "theirs": others[0][1]},
        )
    ]


@dataclass
class LossCurve(Observer):
    """An observer that records the held-out loss."""

    points: Curve = field(default_factory=list)

    def evaluated(self, progress: TrainingProgress, metrics: Mapping[str, float], model: nn.Module) -> None:
        """Record the tokens read and the loss in nats."""
        self.points.append((progress.tokens, metrics["loss"]))


def our_curve(bench: Bench, seed: int) -> tuple[Curve, float]:
    """Train our side; return its curve, and the FLOPs of a token."""
    steps, curve = bench.scale.curve_steps, LossCurve()
    recipe = bench.read(*bench.overrides, *CURVE_OPTIMIZER, f"train.budget.steps={steps}", f"train.seed={seed}")
    train_ours(recipe, bench.world, curve, max(steps // POINTS, 1), lambda: False)
    made = build(bench.read(*bench.overrides, "train.compile=false"), bench.world)
    (batch, *_) = made.task.micro_batches(0, 0.0)
    return curve.points, computed_flops(made.model, lambda: made.task.losses(made.model, batch)["loss"]) / batch.tokens


def their_curve(bench: Bench, reference: Reference, bfloat16: bool, seed: int) -> tuple[Curve, float]:
    """Train a reference in this process; return its curve, and the FLOPs of a token."""
    steps, rows, world = bench.scale.curve_steps, reference.rows(bench), init_world()
    collate, batch_rows = hf_trainer.collator(bench.corpus.tokenizer_path), rows_of_as_many_tokens(bench, rows)
    model, heldout = reference.build(bench, seed).to(world.device), heldout_of(bench, world, CURVE_HELDOUT_ROWS)
    batch = {key: value.to(world.device) for key, value in collate(hf_trainer.examples(rows[:batch_rows])).items()}
    flops = computed_flops(model, lambda: model(**batch)["loss"]) / int(batch["attention_mask"].sum())
    curve, taken = [(0, loss_of(model, heldout))], 0

    def after_step(tokens: int) -> bool:
        nonlocal taken
        taken += 1
        if taken % max(steps // POINTS, 1) == 0 or taken == steps:
            curve.append((tokens, loss_of(model, heldout)))
        return False

    dataset, settings = hf_trainer.dataset(rows), {"max_steps": steps, "learning_rate": CURVE_RATE, "seed": seed}
    hf_trainer.train(model, dataset, collate, batch_rows, bfloat16=bfloat16, after_step=after_step, **settings)
    return curve, flops


def heldout_of(bench: Bench, world: World, rows: int) -> list[Batch]:
    """Return at most `rows` held-out rows, behind the masks that our side is evaluated with."""
    corpus, masking = bench.corpus, bench.recipe.masking
    return heldout_batches(corpus.heldout, masking, world, most_rows=rows, micro_batch_rows=ROWS_AT_ONCE)


def loss_of(model: nn.Module, heldout: Sequence[Batch]) -> float:
    """Return the mean held-out loss in nats of a model of `mlm.benchmark.hf_models`.

    The model reads packed rows, and then a sentence a row; the lower loss is returned.
    """
    model.train(mode=False)
    targets = sum(batch.targets for batch in heldout)
    with torch.no_grad():
        return min(
            sum(float(model(**form(batch))["loss"]) * batch.targets for batch in heldout) / targets
            for form in (labelled, unpacked)
        )


def computed_flops(model: nn.Module, loss: Callable[[], Tensor]) -> float:
    """Return the floating-point operations of the matrix products in a loss and its gradients."""
    # The counter does not know every attention kernel, but knows the matrix products of the MATH backend.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        torch.autograd.grad(loss(), [parameter for parameter in model.parameters() if parameter.requires_grad])
    return float(counter.get_total_flops())
