"""The case of the benchmark about learning: how soon our side is as good as the others have become."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from configs import read
from mlm import competition
from mlm.benchmark_cases import RIVALS, Bench, train_ours
from mlm.comparison import WARMUP_STEPS, Case

if TYPE_CHECKING:
    import datasets
    from torch import nn

    from mlm.budget import Position
    from mlm.data import Batch
    from mlm.loop import Interval
    from mlm.optim import Optimiser
    from mlm.recipe import Recipe

HELDOUT_ROWS = 64
EVALUATE_STEPS = 20
MOST_REPEATS = 3
THEIR_BATCH_ROWS = 8
"""The Trainer's default."""


def time_to_loss(bench: Bench, name: str) -> list[Case]:
    """Let the Trainer train for a while with its defaults; then ours, until its held-out loss is as low.

    Both are asked for the same tokens behind the same masks, each sentence by itself.
    """
    rival = RIVALS[name.replace("time-to-loss", "training")]
    recipe = shipped(bench)
    from mlm.objective import heldout_batches

    heldout = heldout_batches(
        bench.corpus.heldout, recipe.masking, bench.world, most_rows=HELDOUT_ROWS, micro_batch_rows=HELDOUT_ROWS // 4
    )
    rows = competition.dataset(rival.rows(bench.corpus.train.split, recipe.data.row_length))
    ours, theirs, losses = [], [], []
    for _ in range(min(bench.scale.repeats, MOST_REPEATS)):
        seconds, loss = _theirs(bench, rival.model, rows, heldout)
        theirs.append(seconds)
        losses.append(loss)
        ours.append(_ours(bench, seconds, loss))
    counted = (
        f"training until the held-out masked loss is {min(losses):.2f} to {max(losses):.2f} nats, what the Trainer came"
        f" to with its defaults (rate 5e-5, falling to 0; {THEIR_BATCH_ROWS} rows a step; float32) but without dropout;"
        " ours: the default recipe at this size"
    )
    return [Case.of(name + bench.label, "s", counted, ours, theirs)]


def shipped(bench: Bench, *overrides: str) -> "Recipe":
    """Return the default recipe at the benchmark's size."""
    from mlm.recipe import Recipe

    return read(Recipe, None, (*bench.place, *bench.sizes, f"evaluation.most_rows={HELDOUT_ROWS}", *overrides))


def _theirs(bench: Bench, model_name: str, rows: "datasets.Dataset", heldout: "Sequence[Batch]") -> tuple[float, float]:
    """Train for about as long as the benchmark's scale says; return the seconds that it took, and the loss."""
    import torch

    from mlm import competition_models

    torch.manual_seed(bench.recipe.train.seed)
    manifest, encoder = bench.corpus.shards.manifest, bench.recipe.model.encoder
    collate = competition.collator(bench.corpus.tokenizer_path)

    def trained(steps: int) -> "tuple[nn.Module, list[float]]":
        build = getattr(competition_models, model_name)
        model: nn.Module = build(encoder, manifest.vocabulary_size, bench.recipe.data.row_length)
        ends: list[float] = []

        def after_step(tokens: int) -> bool:
            ends.append(time.perf_counter())
            return False

        competition.train(
            model,
            rows,
            collate,
            THEIR_BATCH_ROWS,
            bfloat16=False,
            after_step=after_step,
            steps=steps,
        )
        return model, ends

    _, probe = trained(3 * WARMUP_STEPS)
    a_step = (probe[-1] - probe[WARMUP_STEPS - 1]) / (len(probe) - WARMUP_STEPS)
    began = time.perf_counter()
    model, ends = trained(max(round(bench.scale.loss_seconds / a_step), 2))
    return ends[-1] - began, loss_of(model, heldout)


def loss_of(model: "nn.Module", heldout: "Sequence[Batch]") -> float:
    """Return the mean held-out loss in nats of a model of `mlm.competition_models`."""
    import torch

    from mlm.competition_models import unpacked

    model.train(mode=False)
    with torch.no_grad():
        total = sum(model(**unpacked(batch))["loss"].item() * batch.targets for batch in heldout)
    return float(total) / sum(batch.targets for batch in heldout)


@dataclass
class Race:
    """Stops when the held-out loss has come down to a goal, and knows how long that took."""

    goal: float
    seconds: float = math.inf

    @property
    def won(self) -> bool:
        """Whether the goal was met."""
        return self.seconds < math.inf

    def log(self, position: "Position", interval: "Interval") -> None:
        """Take no note."""

    def evaluated(self, position: "Position", metrics: Mapping[str, float], model: "nn.Module") -> None:
        """Take note of the time spent in steps."""
        if metrics["loss"] <= self.goal and not self.won:
            self.seconds = position.seconds

    def checkpoint(self, position: "Position", model: "nn.Module", optimiser: "Optimiser") -> None:
        """Save nothing."""


def _ours(bench: Bench, seconds: float, loss: float) -> float:
    """Return the seconds until our held-out loss is `loss`; infinite where that takes us longer than `seconds`."""
    race, recipe = Race(loss), shipped(bench, f"train.budget={{kind: minutes, minutes: {seconds / 60}}}")
    train_ours(recipe, bench.world, race, EVALUATE_STEPS, lambda: race.won)
    return race.seconds
