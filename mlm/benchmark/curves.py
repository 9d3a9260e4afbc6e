"""The case of the benchmark about loss by tokens: what both sides learn from as many, and the FLOPs that one costs.

The others attend differently, so that their loss is another function. Both sides have the same optimizer here, and
batches of as many tokens, and are judged behind the same held-out masks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from mlm.benchmark import hf_trainer
from mlm.benchmark.loss import heldout_of, loss_of, their_world
from mlm.benchmark.measure import Case, Curve, alternate
from mlm.benchmark.speed import RIVALS, Bench, Bystander, Rival, rows_of_as_many_tokens, train_ours

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mlm.training.budget import TrainingProgress

POINTS = 8
"""Times that the held-out loss is taken after the start."""
HELDOUT_ROWS = 256
RATE = 5e-4
"""Of AdamW, falling to 0 in a line: the Trainer's schedule at a rate that is usual for pretraining."""
OPTIMIZER = (
    f"optim={{kind: adamw, lr: {RATE}, betas: [0.9, 0.999], epsilon: 1e-8, weight_decay: 0}}",
    "schedule={kind: linear, warmup: 0}",
    f"evaluation.most_rows={HELDOUT_ROWS}",
)
"""Our side as the Trainer's defaults are."""


def loss_curves(bench: Bench, name: str) -> list[Case]:
    """Train both sides on as many tokens, and follow the held-out loss."""
    from mlm.evaluation.results import measure_baselines

    rival, seeds = RIVALS[name.replace("loss-curves", "training")], iter(range(2 * bench.scale.repeats))
    bfloat16 = bench.world.precision == "bfloat16"

    def ours() -> tuple[Curve, float]:
        return our_curve(bench, next(seeds))

    def theirs() -> tuple[Curve, float]:
        return hf_trainer.as_users_run_it(their_curve, bench.anew(), rival, bfloat16, next(seeds))

    mine, others = alternate(ours, theirs, bench.scale.repeats)
    counted = (
        f"held-out masked loss after {bench.scale.curve_steps} steps of about {bench.scale.batch_tokens} tokens; both"
        f" sides AdamW at {RATE:g} falling to 0, in {bench.world.precision}; other seeds each time; FLOPs are those of"
        " the matrix products that are computed for a token, forward and backward, ours on CUDA with no block of"
        " attention left out"
    )
    heldout = heldout_of(bench, bench.world, HELDOUT_ROWS)
    baselines = measure_baselines(bench.recipe, bench.corpus, heldout)
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
class Follower(Bystander):
    """Keeps the held-out loss."""

    curve: Curve = field(default_factory=list)

    def evaluated(self, progress: "TrainingProgress", metrics: Mapping[str, float], model: "nn.Module") -> None:
        """Take note of tokens read and nats."""
        self.curve.append((progress.tokens, metrics["loss"]))


def our_curve(bench: Bench, seed: int) -> tuple[Curve, float]:
    """Train our side; return its curve, and the FLOPs of a token."""
    from mlm.build import build

    steps = bench.scale.curve_steps
    recipe = bench.read(*bench.overrides, *OPTIMIZER, f"train.budget.steps={steps}", f"train.seed={seed}")
    follower = Follower()
    train_ours(recipe, bench.world, follower, max(steps // POINTS, 1), lambda: False)
    made = build(bench.read(*bench.overrides, "train.compile=false"), bench.world)
    (batch, *_) = made.task.micro_batches(0, 0.0)
    flops = computed_flops(made.model, lambda: made.task.losses(made.model, batch)["loss"])
    return follower.curve, flops / batch.tokens


def their_curve(bench: Bench, rival: Rival, bfloat16: bool, seed: int) -> tuple[Curve, float]:
    """Train a rival in this process, in bfloat16 or float32; return its curve, and the FLOPs of a token."""
    import torch

    from mlm.benchmark import hf_models

    recipe, corpus, steps = bench.recipe, bench.corpus, bench.scale.curve_steps
    rows, collate = rival.rows(corpus.train.split, recipe.data.row_length), hf_trainer.collator(corpus.tokenizer_path)
    world = their_world()
    batch_rows, heldout = rows_of_as_many_tokens(bench, rows), heldout_of(bench, world, HELDOUT_ROWS)
    torch.manual_seed(seed)
    build = getattr(hf_models, rival.model)
    model = build(recipe.model.encoder, corpus.manifest.vocabulary_size, recipe.data.row_length)
    model.to(world.device)
    example = collate(hf_trainer.examples(rows[:batch_rows]))
    example = {key: value.to(world.device) for key, value in example.items()}
    flops = computed_flops(model, lambda: model(**example)["loss"]) / int(example["attention_mask"].sum())
    curve: Curve = [(0, loss_of(model, heldout))]
    taken = 0

    def after_step(tokens: int) -> bool:
        nonlocal taken
        taken += 1
        if taken % max(steps // POINTS, 1) == 0 or taken == steps:
            curve.append((tokens, loss_of(model, heldout)))
        return False

    hf_trainer.train(
        model,
        hf_trainer.dataset(rows),
        collate,
        batch_rows,
        bfloat16=bfloat16,
        after_step=after_step,
        max_steps=steps,
        learning_rate=RATE,
        seed=seed,
    )
    return curve, flops


def computed_flops(model: "nn.Module", loss: "Callable[[], Tensor]") -> float:
    """Return the floating-point operations of the matrix products in a loss and its gradients."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # Attention as two matrix products, because not every kernel's own are counted.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        torch.autograd.grad(loss(), [parameter for parameter in model.parameters() if parameter.requires_grad])
    return float(counter.get_total_flops())
