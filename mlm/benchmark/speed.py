"""What the benchmark is made on, and its cases about the speed of training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from configs import read
from mlm.benchmark import hf_trainer
from mlm.benchmark.measure import WARMUP_STEPS, Case, Meter, alternate

if TYPE_CHECKING:
    from torch import nn

    from mlm.config import PretrainConfig
    from mlm.data.corpus import Corpus
    from mlm.distributed.world import World
    from mlm.training.budget import TrainingProgress
    from mlm.training.loop import LoggedMetrics, Observer
    from mlm.training.optim import Optimizer
    from tokenizer.shards.format import ShardArrays

NEVER = 1_000_000_000

RECIPE = (
    "name=benchmark",
    "model.transform=true",
    "model.encoder.norm=post",
    "model.encoder.embedding_norm=true",
    "model.encoder.activation=gelu",
    "model.encoder.positions.kind=learned",
    "evaluation.most_rows=8",
    "evaluation.words=0",
    f"train.budget.steps={NEVER}",
)
"""Our side, where it differs from the default recipe: the model is what BertForMaskedLM is by default."""


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    repeats: int
    seconds: float
    """How long each side trains or assembles in a turn, at least."""
    batch_tokens: int
    """Slots of a training step, padding counted."""
    sentences: int
    """Sentences that shards are built of, at the most."""
    loss_seconds: float
    """How long the other side trains before its loss is measured, about."""
    curve_steps: int
    """Steps that the held-out loss of both sides is followed over."""
    old_step: int
    """Steps of the long run that is gone on with."""


FULL = Scale(
    repeats=5,
    seconds=3.0,
    batch_tokens=2048,
    sentences=1_000_000,
    loss_seconds=30.0,
    curve_steps=400,
    old_step=1_000_000,
)
FULL_ON_GPU = replace(FULL, batch_tokens=32_768)
QUICK = Scale(
    repeats=2, seconds=0.4, batch_tokens=512, sentences=5_000, loss_seconds=2.0, curve_steps=8, old_step=1_000
)


@dataclass(frozen=True)
class Bench:
    """What the cases share; what is costly in it is made when a case first asks for it."""

    output: Path
    scale: Scale
    sizes: tuple[str, ...]
    """Text and sizes of our side, where they differ from the default recipe."""
    label: str = ""
    """What the names of cases end with, where several sizes are measured."""

    @property
    def overrides(self) -> tuple[str, ...]:
        """All of our side that differs from the default recipe."""
        return (*RECIPE, *self.sizes)

    def read(self, *overrides: str) -> "PretrainConfig":
        """Return the default recipe with `overrides`, its cache among what the benchmark writes."""
        from mlm.config import PretrainConfig

        return read(PretrainConfig, None, overrides).model_copy(update={"runs": str(self.output)})

    @cached_property
    def recipe(self) -> "PretrainConfig":
        """Our side's recipe."""
        return self.read(*self.overrides)

    @cached_property
    def corpus(self) -> "Corpus":
        """The text in rows."""
        from mlm.build import corpus_of

        return corpus_of(self.recipe)

    @cached_property
    def world(self) -> "World":
        """The device and its precision."""
        from mlm.distributed.world import init_world

        return init_world().with_precision(self.recipe.train.precision)

    def meter(self) -> Meter:
        """Return a new meter of training speed."""
        import torch

        return Meter(self.scale.seconds, torch.cuda.synchronize if torch.cuda.is_available() else lambda: None)

    def anew(self) -> "Bench":
        """Return the same without what was made for it, to be sent to another process."""
        return replace(self)


@dataclass(frozen=True)
class Rival:
    """What is trained beside ours, by the Trainer."""

    rows: Callable[["ShardArrays", int], "list[NDArray[np.int64]]"]
    """How it cuts the text into rows of a length at the most."""
    model: str
    """Its name in `mlm.benchmark.hf_models`."""
    bfloat16: bool
    """Whether its speed is measured in bfloat16, where the hardware has it."""


RIVALS = {
    "training/one-sentence-a-row": Rival(hf_trainer.sentences, "bert", bfloat16=False),
    "training/concatenate-and-chunk-fp32": Rival(hf_trainer.chunks, "bert", bfloat16=False),
    "training/concatenate-and-chunk": Rival(hf_trainer.chunks, "bert", bfloat16=True),
    "training/modernbert": Rival(hf_trainer.chunks, "modernbert", bfloat16=True),
    "training/modernbert-fp32": Rival(hf_trainer.chunks, "modernbert", bfloat16=False),
    "training/torch-encoder": Rival(hf_trainer.chunks, "TorchEncoder", bfloat16=True),
}


def training(bench: Bench, name: str) -> list[Case]:
    """Train, against the rival of that name."""
    from mlm.distributed.device import has_bfloat16, measure_peak
    from mlm.training import flops

    rival, world = RIVALS[name], bench.world
    bfloat16 = rival.bfloat16 and has_bfloat16(world.device)
    recipe, train, size = bench.recipe, bench.corpus.train, bench.corpus.manifest.vocabulary_size
    encoder, batch_rows, row_length = recipe.model.encoder, recipe.train.batch_rows, recipe.data.row_length
    peaks: list[float] = []

    def ours() -> float:
        slots = batch_rows * row_length
        peaks.append(measure_peak(world.device, world.dtype, slots, encoder.width, encoder.feedforward_width))
        meter = bench.meter()
        train_ours(recipe, world, MeterObserver(meter), NEVER, lambda: meter.finished)
        return meter.rate

    def theirs() -> float:
        return hf_trainer.as_users_run_it(train_theirs, bench.anew(), rival, bfloat16)

    counted = (
        "tokens that are not padding, over whole steps after a warm-up; start-up, reading and tokenising are not; "
        f"ours in {world.precision}, theirs {rival.model} in {'bfloat16' if bfloat16 else 'float32'}; "
        f"{batch_rows} rows a step on our side, as many tokens on theirs"
    )
    case = Case.of(name + bench.label, "tokens/s", counted, *alternate(ours, theirs, bench.scale.repeats))
    per_token = flops.flops_per_token(recipe.model, size, flops.mean_context(train.rows), recipe.masking.rate)
    return [replace(case, peak_flops=max(peaks), peak_share=case.ours.median * per_token / max(peaks))]


def train_theirs(bench: Bench, rival: Rival, bfloat16: bool) -> float:
    """Train a rival in this process; return tokens a second."""
    import torch

    from mlm.benchmark import hf_models

    recipe, corpus, meter = bench.recipe, bench.corpus, bench.meter()
    rows = rival.rows(corpus.train.split, recipe.data.row_length)
    torch.manual_seed(recipe.train.seed)
    build = getattr(hf_models, rival.model)
    hf_trainer.train(
        build(recipe.model.encoder, corpus.manifest.vocabulary_size, recipe.data.row_length),
        hf_trainer.dataset(rows),
        hf_trainer.collator(corpus.tokenizer_path),
        rows_of_as_many_tokens(bench, rows),
        bfloat16=bfloat16,
        after_step=meter.after_step,
    )
    return meter.rate


def rows_of_as_many_tokens(bench: Bench, their_rows: Sequence[NDArray[np.int64]]) -> int:
    """Return of how many of their rows a step has as many tokens as one of ours."""
    ours = bench.recipe.train.batch_rows * bench.corpus.train.tokens / len(bench.corpus.train)
    return max(round(ours * len(their_rows) / sum(map(len, their_rows))), 1)


class Bystander:
    """An observer that takes note of nothing; others of the benchmark take note of what they are about."""

    def log(self, progress: "TrainingProgress", metrics: "LoggedMetrics") -> None:
        """Take no note."""

    def evaluated(self, progress: "TrainingProgress", metrics: Mapping[str, float], model: "nn.Module") -> None:
        """Take no note."""

    def checkpoint(self, progress: "TrainingProgress", model: "nn.Module", optimizer: "Optimizer") -> None:
        """Save nothing."""


@dataclass
class MeterObserver(Bystander):
    """Tells a meter how far training has come, and keeps what share of it was spent waiting for data."""

    meter: Meter
    waited_seconds: float = 0.0
    seconds: float = 0.0

    def log(self, progress: "TrainingProgress", metrics: "LoggedMetrics") -> None:
        """Take note of a step."""
        self.meter.after_step(progress.tokens, metrics.steps)
        self.waited_seconds += metrics.waited_seconds
        self.seconds += metrics.seconds


def train_ours(
    recipe: "PretrainConfig", world: "World", observer: "Observer", evaluate_steps: int, stop: Callable[[], bool]
) -> None:
    """Train as `mlm.pretrain` does, but for what it writes."""
    from mlm.build import build
    from mlm.training.budget import TrainingProgress
    from mlm.training.loop import Frequencies, LoopSettings, train

    made = build(recipe, world)
    # The device is waited for at each record; at each look, too, whose time is not to have any of the steps' in it.
    log_steps = 1 if world.device.type == "cpu" else min(WARMUP_STEPS, evaluate_steps)
    intervals = Frequencies(log_steps=log_steps, evaluate_steps=evaluate_steps, checkpoint_steps=NEVER)
    settings = LoopSettings(
        made.optimizer,
        recipe.schedule,
        made.length,
        intervals,
        recipe.train.clip_norm,
        recipe.train.seed,
        made.threads,
    )
    train(made.model, made.task, settings, world, observer, start=TrainingProgress(), stop=stop)
