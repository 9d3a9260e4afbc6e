"""The case of the benchmark about learning: how soon our side is as good as the others have become."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlm.benchmark import hf_trainer
from mlm.benchmark.measure import WARMUP_STEPS, Case
from mlm.benchmark.speed import RIVALS, Bench, Bystander, Rival, train_ours

if TYPE_CHECKING:
    from torch import nn

    from mlm.config import PretrainConfig
    from mlm.data.batches import Batch
    from mlm.distributed.world import World
    from mlm.training.budget import TrainingProgress

HELDOUT_ROWS, ROWS_AT_ONCE = 64, 16
EVALUATE_STEPS = 2
"""Steps of ours between two looks at its loss, whose time is not counted."""
THEIR_BATCH_ROWS = 8
"""The Trainer's default."""
THEIR_RATES = {"": 5e-5, "-tuned": 5e-4}
"""The Trainer's default, and what is usual for pretraining."""


def time_to_loss(bench: Bench, name: str) -> list[Case]:
    """Let the Trainer train for a while; then ours as long, until its held-out loss is as low behind the same masks."""
    rival = RIVALS[name.replace("time-to-loss", "training")]
    return [_race(bench, name + ending, rival, rate) for ending, rate in THEIR_RATES.items()]


def _race(bench: Bench, name: str, rival: Rival, rate: float) -> Case:
    ours, theirs, losses = [], [], []
    for seed in range(bench.scale.repeats):
        seconds, loss = hf_trainer.as_users_run_it(their_loss, bench.anew(), rival, rate, seed)
        theirs.append(seconds)
        losses.append(loss)
        ours.append(our_seconds(bench, seconds, loss, seed))
    counted = (
        f"training until the held-out masked loss is {min(losses):.2f} to {max(losses):.2f} nats, what the Trainer came"
        f" to at a rate of {rate:g} falling to 0, {THEIR_BATCH_ROWS} rows a step, in float32, all else its default but"
        " without dropout; ours: the default recipe at this size, for as long at the most, and then without a time;"
        " other seeds each time"
    )
    return Case.of(name + bench.label, "s", counted, ours, theirs)


def shipped(bench: Bench, *overrides: str) -> "PretrainConfig":
    """Return the default recipe at the benchmark's size."""
    return bench.read(*bench.sizes, f"evaluation.most_rows={HELDOUT_ROWS}", "evaluation.words=0", *overrides)


def their_loss(bench: Bench, rival: Rival, rate: float, seed: int) -> tuple[float, float]:
    """Train for about as long as the benchmark's scale says; return the seconds of the steps, and the held-out loss."""
    import torch

    from mlm.benchmark import hf_models

    corpus, row_length = bench.corpus, bench.recipe.data.row_length
    rows = hf_trainer.dataset(rival.rows(corpus.train.split, row_length))
    collate, build = hf_trainer.collator(corpus.tokenizer_path), getattr(hf_models, rival.model)
    world = their_world()

    def trained(steps: int) -> "tuple[nn.Module, float]":
        torch.manual_seed(seed)
        model: nn.Module = build(bench.recipe.model.encoder, corpus.manifest.vocabulary_size, row_length)
        ends: list[float] = []

        def after_step(tokens: int) -> bool:
            world.wait()
            ends.append(time.perf_counter())
            return False

        hf_trainer.train(
            model,
            rows,
            collate,
            THEIR_BATCH_ROWS,
            bfloat16=False,
            after_step=after_step,
            max_steps=steps,
            learning_rate=rate,
            seed=seed,
        )
        counted = min(WARMUP_STEPS, len(ends) - 1)
        return model, (ends[-1] - ends[counted - 1]) / (len(ends) - counted)

    _, a_step = trained(2 * WARMUP_STEPS)
    steps = max(round(bench.scale.loss_seconds / a_step), 2)
    model, a_step = trained(steps)
    return steps * a_step, loss_of(model, heldout_of(bench, world))


def their_world() -> "World":
    """Return the device as a rival finds it: without what `init_world` asks of the C library."""
    import torch

    from mlm.distributed.world import World

    return World(torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu"), torch.float32)


def heldout_of(bench: Bench, world: "World", rows: int = HELDOUT_ROWS) -> "list[Batch]":
    """Return so many held-out rows with the masks that ours is measured behind too."""
    from mlm.objectives.masked import heldout_batches

    masking = shipped(bench).masking
    return heldout_batches(bench.corpus.heldout, masking, world, most_rows=rows, micro_batch_rows=ROWS_AT_ONCE)


def loss_of(model: "nn.Module", heldout: "Sequence[Batch]") -> float:
    """Return the mean held-out loss in nats of a model of `mlm.benchmark.hf_models`.

    It reads the rows as they are, and then each sentence by itself; what suits it better counts.
    """
    import torch

    from mlm.benchmark.hf_models import labelled, unpacked

    model.train(mode=False)
    targets = sum(batch.targets for batch in heldout)
    with torch.no_grad():
        return min(
            sum(float(model(**form(batch))["loss"]) * batch.targets for batch in heldout) / targets
            for form in (labelled, unpacked)
        )


@dataclass
class Race(Bystander):
    """Stops when the held-out loss has come down to a goal, and knows how long that took."""

    goal: float
    seconds: float = math.inf

    @property
    def won(self) -> bool:
        """Whether the goal was met."""
        return self.seconds < math.inf

    def evaluated(self, progress: "TrainingProgress", metrics: Mapping[str, float], model: "nn.Module") -> None:
        """Take note of the time spent in steps, of which there is at least one."""
        if progress.step and metrics["loss"] <= self.goal and not self.won:
            self.seconds = progress.seconds


def our_seconds(bench: Bench, seconds: float, loss: float, seed: int) -> float:
    """Return the seconds of our steps until our held-out loss is `loss`; infinite if theirs are not enough for that."""
    budget = f"train.budget={{kind: minutes, minutes: {seconds / 60}}}"
    race, recipe = Race(loss), shipped(bench, budget, f"train.seed={seed}")
    train_ours(recipe, bench.world, race, EVALUATE_STEPS, lambda: race.won)
    return race.seconds
