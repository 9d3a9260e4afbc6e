"""The corpus, recipe and references that the cases share, and the cases of training speed."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from configs import read
from mlm.benchmark import frame, hf_models, hf_trainer
from mlm.benchmark.frame import NEVER
from mlm.benchmark.measure import WARMUP_STEPS, Case, Meter, alternate
from mlm.build import build, corpus_of
from mlm.config import PretrainConfig
from mlm.data.corpus import Corpus
from mlm.distributed.device import has_bfloat16, measure_peak, precision_of, with_precision
from mlm.distributed.world import World, init_world
from mlm.model.encoder import EncoderConfig
from mlm.training.budget import TrainingProgress
from mlm.training.flops import flops_per_token, mean_context
from mlm.training.loop import Frequencies, LoopSettings, Observer, StepMetrics, train
from tokenizer.shards.format import ShardArrays

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
"""Differences of our side from the default recipe: they make the model that of transformers' BertForMaskedLM."""


@dataclass(frozen=True)
class Scale(frame.Scale):
    """Size of the measurements."""

    batch_tokens: int
    """Slots of a training step, padding included."""
    sentences: int
    """Largest number of sentences that shards are built from."""
    loss_seconds: float
    """Approximate training time of the reference before its loss is measured."""
    curve_steps: int
    """Training steps of the loss curves."""
    old_step: int
    """Step at which the late run is resumed."""


FULL = Scale(5, 3.0, batch_tokens=2048, sentences=10**6, loss_seconds=30.0, curve_steps=400, old_step=10**6)
FULL_ON_GPU = replace(FULL, batch_tokens=32_768)
QUICK = Scale(2, 0.4, batch_tokens=512, sentences=5000, loss_seconds=2.0, curve_steps=8, old_step=1000)


@dataclass(frozen=True)
class Bench:
    """The objects that the cases share; each costly one is made when a case first asks for it."""

    output: Path
    scale: Scale
    sizes: tuple[str, ...]
    """Text and sizes of our side, where they differ from the default recipe."""
    label: str = ""
    """End of the cases' names where several sizes are measured."""

    def __getstate__(self) -> dict[str, object]:
        """Return the fields alone: a process that the bench is sent to opens the corpus itself."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def overrides(self) -> tuple[str, ...]:
        """All differences of our side from the default recipe."""
        return (*RECIPE, *self.sizes)

    def read(self, *overrides: str) -> PretrainConfig:
        """Return the default recipe with `overrides`, its cache inside the benchmark's output folder."""
        return read(PretrainConfig, None, overrides).model_copy(update={"runs": str(self.output)})

    @cached_property
    def recipe(self) -> PretrainConfig:
        """The recipe of our side."""
        return self.read(*self.overrides)

    @cached_property
    def corpus(self) -> Corpus:
        """The text in rows."""
        return corpus_of(self.recipe)

    @cached_property
    def world(self) -> World:
        """The device and its precision."""
        return with_precision(init_world(), self.recipe.train.precision)

    def describe(self) -> dict[str, Any]:
        """Return the scale, the recipe and the text, for the JSON."""
        manifest = self.corpus.manifest
        return {
            "scale": asdict(self.scale),
            "recipe": self.recipe.model_dump(mode="json"),
            "training_tokens": manifest.train.tokens,
            "text_fingerprint": manifest.text_fingerprint,
        }


@dataclass(frozen=True)
class Reference:
    """A model that transformers' Trainer trains beside ours, and the rows it trains on."""

    cut: Callable[[ShardArrays, int], list[NDArray[np.int64]]]
    """Cuts the text into rows of at most a given length."""
    model: Callable[[EncoderConfig, int, int], nn.Module]
    """A function or class of `mlm.benchmark.hf_models`."""
    bfloat16: bool
    """Measure its speed in bfloat16, on hardware that has it."""

    def rows(self, bench: Bench) -> list[NDArray[np.int64]]:
        """Return the training text in rows."""
        return self.cut(bench.corpus.train.split, bench.recipe.data.row_length)

    def build(self, bench: Bench, seed: int) -> nn.Module:
        """Return a new model of the same size as ours; `seed` also fixes its dropout."""
        torch.manual_seed(seed)
        vocabulary_size = bench.corpus.manifest.vocabulary_size
        return self.model(bench.recipe.model.encoder, vocabulary_size, bench.recipe.data.row_length)


REFERENCES = {
    "training/one-sentence-a-row": Reference(hf_trainer.sentences, hf_models.bert, bfloat16=False),
    "training/concatenate-and-chunk-fp32": Reference(hf_trainer.chunks, hf_models.bert, bfloat16=False),
    "training/concatenate-and-chunk": Reference(hf_trainer.chunks, hf_models.bert, bfloat16=True),
    "training/modernbert": Reference(hf_trainer.chunks, hf_models.modernbert, bfloat16=True),
    "training/modernbert-fp32": Reference(hf_trainer.chunks, hf_models.modernbert, bfloat16=False),
    "training/torch-encoder": Reference(hf_trainer.chunks, hf_models.TorchEncoder, bfloat16=True),
}


def training(bench: Bench, name: str) -> list[Case]:
    """Train, beside the reference of that name."""
    reference, world, recipe = REFERENCES[name], bench.world, bench.recipe
    bfloat16 = reference.bfloat16 and has_bfloat16(world.device)
    encoder, batch_rows = recipe.model.encoder, recipe.train.batch_rows
    shape = batch_rows * recipe.data.row_length, encoder.width, encoder.feedforward_width
    peaks: list[float] = []

    def ours() -> float:
        peaks.append(measure_peak(world.device, world.dtype, *shape))
        return measure_ours(bench).meter.rate

    def theirs() -> float:
        return hf_trainer.as_users_run_it(train_theirs, bench, reference, bfloat16)

    counted = (
        "tokens without padding, over whole steps after a warm-up, without start-up, reading and tokenising; "
        f"ours in {precision_of(world.dtype)}, theirs {reference.model.__name__} in "
        f"{'bfloat16' if bfloat16 else 'float32'}; "
        f"{batch_rows} rows a step on our side, as many tokens on theirs"
    )
    case = Case.of(name + bench.label, "tokens/s", counted, *alternate(ours, theirs, bench.scale.repeats))
    share = case.ours.median * needed_flops(bench) / max(peaks)
    return [replace(case, peak_flops=max(peaks), peak_share=share)]


def needed_flops(bench: Bench) -> float:
    """Return the floating-point operations that our side needs to train on a token, at the mean masking rate."""
    recipe, corpus = bench.recipe, bench.corpus
    vocabulary_size, context = corpus.manifest.vocabulary_size, mean_context(corpus.train.rows)
    return flops_per_token(recipe.model, vocabulary_size, context, recipe.masking.mean_rate)


def train_theirs(bench: Bench, reference: Reference, bfloat16: bool) -> float:
    """Train a reference in this process; return tokens a second."""
    meter, rows = Meter(bench.scale.seconds), reference.rows(bench)
    model, collate = reference.build(bench, bench.recipe.train.seed), hf_trainer.collator(bench.corpus.tokenizer_path)
    batch_rows, dataset = rows_of_as_many_tokens(bench, rows), hf_trainer.dataset(rows)
    hf_trainer.train(model, dataset, collate, batch_rows, bfloat16=bfloat16, after_step=meter.after_step)
    return meter.rate


def rows_of_as_many_tokens(bench: Bench, their_rows: Sequence[NDArray[np.int64]]) -> int:
    """Return the number of their rows that hold as many tokens as one of our steps."""
    ours = bench.recipe.train.batch_rows * bench.corpus.train.tokens / len(bench.corpus.train)
    return max(round(ours * len(their_rows) / sum(map(len, their_rows))), 1)


@dataclass
class MeterObserver(Observer):
    """An observer that counts on a meter, and sums the time spent waiting for data."""

    meter: Meter
    counted: Callable[[StepMetrics], int] = attrgetter("tokens")
    total: int = 0
    waited_seconds: float = 0.0
    seconds: float = 0.0

    def log(self, progress: TrainingProgress, metrics: StepMetrics) -> None:
        """Record steps."""
        self.total += self.counted(metrics)
        self.meter.after_step(self.total, metrics.steps)
        self.waited_seconds += metrics.waited_seconds
        self.seconds += metrics.seconds


def measure_ours(bench: Bench) -> MeterObserver:
    """Train our side until its meter is finished."""
    observer = MeterObserver(Meter(bench.scale.seconds))
    train_ours(bench.recipe, bench.world, observer, NEVER, lambda: observer.meter.finished)
    return observer


def train_ours(
    recipe: PretrainConfig, world: World, observer: Observer, evaluate_steps: int, stop: Callable[[], bool]
) -> None:
    """Train as `mlm.pretrain` does, and write nothing."""
    made = build(recipe, world)
    # Each log waits for the device, which costs speed on CUDA; so a log has to end the steps before each evaluation.
    log_steps = 1 if world.device.type == "cpu" else min(WARMUP_STEPS, evaluate_steps)
    settings = LoopSettings(
        made.optimizer,
        recipe.schedule,
        made.length,
        Frequencies(log_steps=log_steps, evaluate_steps=evaluate_steps, checkpoint_steps=NEVER),
        recipe.train.clip_norm,
        recipe.train.seed,
        made.threads,
    )
    train(made.model, made.task, settings, world, [observer], start=TrainingProgress(), stop=stop)
