"""The cases of learning: the time that our side takes to reach a reference's loss, and loss by the number of tokens.

Both sides are evaluated on the same held-out rows behind the same masks.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mlm.benchmark import hf_trainer
from mlm.benchmark.hf_models import labelled, unpacked
from mlm.benchmark.measure import Case, Curve, alternate, as_users_run_it
from mlm.benchmark.speed import REFERENCES, WARMUP_STEPS, Bench, Reference, synchronize, train_ours
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
THEIR_TURNS, PROBED_STEPS = 10, 2 * WARMUP_STEPS
"""Training time of the reference in turns of `Scale.seconds`, and the steps that tell how many steps these are."""
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
    reference, cases = REFERENCES[name.removeprefix("time-to-loss/")], []
    for ending, rate in THEIR_RATES.items():
        ours, theirs, losses = [], [], []
        for seed in range(bench.scale.repeats):
            loss, seconds = as_users_run_it(their_loss, bench, reference, {"learning_rate": rate, "seed": seed})
            theirs.append(seconds)
            losses.append(loss)
            ours.append(learn(our_recipe(bench, seconds, seed), bench.world, EVALUATE_STEPS, goal=loss).seconds)
        counted = (
            f"training until the held-out masked loss is {min(losses):.2f} to {max(losses):.2f} nats, the Trainer's"
            f" result at a rate of {rate:g} falling to 0, {THEIR_BATCH_ROWS} rows a step, float32, no dropout and else"
            " its defaults; ours: the default recipe at this size, for at most as long, else no time; another seed each"
            " turn"
        )
        cases.append(Case.of(name + ending, "s", counted, ours, theirs))
    return cases


def their_loss(bench: Bench, reference: Reference, settings: Mapping[str, Any]) -> tuple[float, float]:
    """Train a reference for a while in this process; return the held-out loss, and the seconds of the steps."""
    settings = {**settings, "per_device_train_batch_size": THEIR_BATCH_ROWS}
    _, seconds = their_curve(bench, reference, PROBED_STEPS, 1, settings)
    steps = max(round(THEIR_TURNS * bench.scale.seconds / seconds * PROBED_STEPS), 2)
    curve, seconds = their_curve(bench, reference, steps, 1, settings)
    return curve[-1][1], seconds


def our_recipe(bench: Bench, seconds: float, seed: int) -> PretrainConfig:
    """Return the default recipe at the benchmark's size, for a training of `seconds`."""
    evaluation, budget = f"{{most_rows: {HELDOUT_ROWS}, words: 0}}", f"{{kind: minutes, minutes: {seconds / 60}}}"
    return bench.read(*bench.sizes, f"evaluation={evaluation}", f"train.budget={budget}", f"train.seed={seed}")


def loss_curves(bench: Bench, name: str) -> list[Case]:
    """Train both sides on as many tokens with the same optimizer, and record the held-out loss."""
    reference, seeds = REFERENCES[name.removeprefix("loss-curves/")], iter(range(2 * bench.scale.repeats))
    steps, precision = bench.scale.curve_steps, precision_of(bench.world.dtype)

    def ours() -> Curve:
        length = f"train.budget.steps={steps}", f"train.seed={next(seeds)}"
        recipe = bench.read(*bench.overrides, *CURVE_OPTIMIZER, *length)
        return learn(recipe, bench.world, max(steps // POINTS, 1)).points

    def theirs() -> Curve:
        settings = {"learning_rate": CURVE_RATE, "seed": next(seeds), "bf16": precision == "bfloat16"}
        return as_users_run_it(their_curve, bench, reference, steps, POINTS, settings)[0]

    curves = dict(zip(("ours", "theirs"), alternate(ours, theirs, bench.scale.repeats), strict=True))
    counted = (
        f"held-out masked loss after {steps} steps of about {bench.scale.batch_tokens} tokens; both"
        f" sides AdamW at {CURVE_RATE:g} falling to 0, in {precision}; another seed each turn; FLOPs: the"
        " matrix products computed for a token, forward and backward; ours on CUDA with every block of attention"
    )
    case = Case.of(name, "nats", counted, *([curve[-1][1] for curve in side] for side in curves.values()))
    heldout = heldout_of(bench, bench.world, CURVE_HELDOUT_ROWS)
    losses = {name: found["loss"] for name, found in measure_baselines(bench.recipe, bench.corpus, heldout).items()}
    return [replace(case, curves=curves, baselines=losses, flops_per_token=token_flops(bench, reference))]


@dataclass
class LossCurve(Observer):
    """Records the held-out loss, and the time spent in steps when it first is at most `goal`."""

    goal: float
    points: Curve = field(default_factory=list)
    seconds: float = math.inf

    def evaluated(self, progress: TrainingProgress, metrics: Mapping[str, float], model: nn.Module) -> None:
        """Record the tokens read and the loss in nats; the goal counts after at least one step."""
        self.points.append((progress.tokens, metrics["loss"]))
        if progress.step and metrics["loss"] <= self.goal:
            self.seconds = min(self.seconds, progress.seconds)


def learn(recipe: PretrainConfig, world: World, evaluate_steps: int, goal: float = -math.inf) -> LossCurve:
    """Train our side until the held-out loss is at most `goal` or the budget ends."""
    curve = LossCurve(goal)
    train_ours(recipe, world, curve, evaluate_steps, lambda: curve.seconds < math.inf)
    return curve


def their_curve(
    bench: Bench, reference: Reference, steps: int, points: int, settings: Mapping[str, Any]
) -> tuple[Curve, float]:
    """Train a reference in this process; return the held-out loss at the start and about `points` times, and seconds.

    The seconds are those of all steps, as fast as after a warm-up; with one point they include no evaluation.
    """
    world, rows = init_world(), HELDOUT_ROWS if points == 1 else CURVE_HELDOUT_ROWS
    model, heldout = reference.build(bench, settings["seed"]).to(world.device), heldout_of(bench, world, rows)
    curve, ends = [(0, loss_of(model, heldout))], list[float]()

    def after_step(tokens: int) -> bool:
        synchronize()
        ends.append(perf_counter())
        if len(ends) % max(steps // points, 1) == 0 or len(ends) == steps:
            curve.append((tokens, loss_of(model, heldout)))
        return False

    collate = hf_trainer.collator(bench.corpus.tokenizer_path)
    reference.train(bench, model, collate, after_step, max_steps=steps, **settings)
    first = min(WARMUP_STEPS, steps - 1)
    return curve, steps * (ends[-1] - ends[first - 1]) / (steps - first)


def heldout_of(bench: Bench, world: World, rows: int) -> list[Batch]:
    """Return at most `rows` held-out rows, behind the masks that our side is evaluated with."""
    corpus, masking = bench.corpus, bench.recipe.masking
    return heldout_batches(corpus.heldout, masking, world, most_rows=rows, micro_batch_rows=ROWS_AT_ONCE)


def loss_of(model: nn.Module, heldout: Sequence[Batch]) -> float:
    """Return the mean held-out loss in nats of a model of `mlm.benchmark.hf_models`.

    The model reads packed rows, and then a sentence a row; the lower loss is returned.
    """
    model.eval()
    targets = sum(batch.targets for batch in heldout)
    with torch.no_grad():
        return min(
            sum(float(model(**form(batch))["loss"]) * batch.targets for batch in heldout if batch.targets) / targets
            for form in (labelled, unpacked)
        )


def token_flops(bench: Bench, reference: Reference) -> dict[str, float]:
    """Return the floating-point operations of the matrix products that both sides compute to train on a token."""
    ours = build(bench.read(*bench.overrides, "train.compile=false"), bench.world)
    (batch, *_) = ours.task.micro_batches(0, 0.0)
    rows, batch_rows = reference.rows(bench)
    model, theirs = reference.build(bench, 0), hf_trainer.collator(bench.corpus.tokenizer_path)(rows[:batch_rows])
    return {
        "ours": computed_flops(ours.model, lambda: ours.task.losses(ours.model, batch)["loss"]) / batch.tokens,
        "theirs": computed_flops(model, lambda: model(**theirs)["loss"]) / int(theirs["attention_mask"].sum()),
    }


def computed_flops(model: nn.Module, loss: Callable[[], Tensor]) -> float:
    """Return the floating-point operations of the matrix products in a loss and its gradients."""
    # The counter does not know every attention kernel, but knows the matrix products of the MATH backend.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        torch.autograd.grad(loss(), [parameter for parameter in model.parameters() if parameter.requires_grad])
    return float(counter.get_total_flops())
