"""The work of each process in the tests of world sizes: the same small trainings, however many processes there are."""

import itertools
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from mlm.data.masking import Masking
from mlm.distributed.parallel import Parallel, ReplicatedData, ShardedData
from mlm.distributed.world import World, init_world
from mlm.model.heads import MaskedLanguageModel
from mlm.model.initialize import initialize
from mlm.objectives.masked import MaskedLMTask, heldout_batches
from mlm.training.budget import TrainingLength, TrainingProgress
from mlm.training.loop import Intervals, LoopSettings, Observer, StepMetrics, train
from mlm.training.optim import AdamW, Muon, OptimizerConfig, ScheduleFreeAdamW
from mlm.training.schedule import Trapezoid
from tests.mlm.samples import ROW_LENGTH, TINY, VOCABULARY, joined, sentences

STEPS = 10
LOSSES = ("loss", "loss/one", "loss/two")
BATCH_ROWS = 7  # which three processes cannot share equally
CUT_ROWS = 3  # by which one process and three cut a step alike: 3, 3 and 1
OPTIMIZERS: dict[str, OptimizerConfig] = {
    "adamw": AdamW(lr=3e-3),
    "schedule_free": ScheduleFreeAdamW(lr=3e-3),
    "muon": Muon(lr=3e-3),
}
PARALLEL: dict[str, Parallel] = {"replicated": ReplicatedData(), "sharded": ShardedData()}
DTYPES = {"float64": torch.float64, "float32": torch.float32}
CASES = [
    *itertools.product(OPTIMIZERS, PARALLEL, ("float64",), (BATCH_ROWS,), (0.0,)),
    *itertools.product(("adamw",), PARALLEL, ("float32",), (BATCH_ROWS,), (0.0,)),
    *itertools.product(("adamw",), PARALLEL, ("float64",), (1,), (0.0, 0.3)),
    *itertools.product(("adamw",), PARALLEL, ("float64",), (CUT_ROWS,), (0.3,)),
]
"""Optimizer, division of the model, type of all numbers, rows of a micro-batch, and dropout."""


@dataclass
class Notebook(Observer):
    """Takes down the losses of training and of held-out rows, of both corpora together and of each."""

    losses: list[float] = field(default_factory=list)
    steps: int = 0

    def log(self, progress: TrainingProgress, metrics: StepMetrics) -> None:
        for name in filter(metrics.sums.__contains__, LOSSES):
            loss = metrics.mean(name)
            assert loss is not None
            self.losses.append(loss)
        self.steps += metrics.steps

    def evaluated(self, progress: TrainingProgress, metrics: Mapping[str, float], model: nn.Module) -> None:
        self.losses += [metrics[name] for name in LOSSES if name in metrics]


def losses(
    world: World, optimizer: str, parallel: str, dtype: str, micro_batch_rows: int, dropout: float
) -> list[float]:
    """Train a tiny model on a mixture of two corpora; return the losses of all steps and of the evaluations between."""
    world = replace(world, dtype=DTYPES[dtype])
    masking = Masking()
    mixed, other = (joined([sentences(count), sentences(count, seed=5)], (0.6, 0.4)) for count in (40, 12))
    heldout = heldout_batches(other, masking, world, most_rows=7, micro_batch_rows=2)
    task = MaskedLMTask(mixed, heldout, masking, world, 0, BATCH_ROWS, micro_batch_rows, corpora=("one", "two"))
    config = TINY.model_copy(update={"encoder": TINY.encoder.model_copy(update={"dropout": dropout})})
    model = MaskedLanguageModel(config, VOCABULARY, ROW_LENGTH)
    initialize(model, config.encoder, 0)
    model.to(world.dtype)
    PARALLEL[parallel].place(model, world)
    notebook = Notebook()
    train(
        model,
        task,
        LoopSettings(
            OPTIMIZERS[optimizer].build(model),
            Trapezoid(),
            TrainingLength(steps=STEPS),
            intervals=Intervals(log_steps=1, evaluate_steps=5, checkpoint_steps=STEPS),
            clip_norm=1.0,
            seed=0,
        ),
        world,
        [notebook],
        start=TrainingProgress(),
    )
    return notebook.losses


def main() -> None:
    world = init_world()
    found = {"-".join(map(str, case)): losses(world, *case) for case in CASES}
    if world.is_main:
        Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
