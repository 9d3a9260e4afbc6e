"""The corpus, recipe and references that the cases share, and the cases of training speed, long rows and waiting."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, partial
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
from mlm.benchmark.measure import Case, alternate, as_users_run_it
from mlm.build import build, corpus_of
from mlm.config import PretrainConfig
from mlm.data.corpus import Corpus
from mlm.distributed.device import has_bfloat16, measure_peak, precision_of, with_precision
from mlm.distributed.world import World, init_world
from mlm.model.encoder import EncoderConfig
from mlm.tracking.flops import flops_at
from mlm.training.budget import TrainingProgress
from mlm.training.loop import Intervals, LoopSettings, Observer, StepMetrics, train
from tokenizer.shards.format import ShardArrays

WARMUP_STEPS, COUNTED_STEPS = 8, 16
"""Steps before the clock starts, and the fewest steps it runs for: batches differ in their padding."""
SHORTEST, LONGER = 128, (512, 2048, 8192)
STEP_TOKENS = 8
"""Tokens of a step, as a multiple of those of the other cases: by default two of the longest rows."""
SEGMENTS = ("sentences", "documents")
RECIPE = (
    "name=benchmark",
    "model.transform=true",
    "model.encoder={norm: post, embedding_norm: true, activation: gelu, positions: {kind: learned}}",
    "evaluation={most_rows: 8, words: 0}",
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
    curve_steps: int
    """Training steps of the loss curves."""
    old_step: int
    """Step at which the late run is resumed."""


FULL = Scale(5, 3.0, batch_tokens=2048, sentences=10**6, curve_steps=400, old_step=10**6)
FULL_ON_GPU = replace(FULL, batch_tokens=32_768)
QUICK = Scale(2, 0.4, batch_tokens=512, sentences=5000, curve_steps=8, old_step=1000)


def synchronize() -> None:
    """Wait until the GPU, if there is one, has finished its queue."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@dataclass
class Meter(Observer):
    """Measures training speed over whole steps, without the first ones, and over at least `seconds`."""

    seconds: float
    counted: Callable[[StepMetrics], int] = attrgetter("tokens")
    """The number whose rate is measured, in our training loop."""
    synchronize: Callable[[], None] = synchronize
    clock: Callable[[], float] = time.perf_counter
    steps: int = 0
    total: int = 0
    batch_seconds: float = 0.0
    """Time spent waiting for data, in all steps."""
    start: tuple[int, int, float] = (0, 0, 0.0)
    """Steps, number and time at the end of the warm-up."""
    rate: float = 0.0
    """Tokens a second; 0 until the measurement is finished."""
    waited_share: float = 0.0
    """Mean time of a step spent waiting for data, as a share of a step's time."""

    def log(self, progress: TrainingProgress, metrics: StepMetrics) -> None:
        """Record steps of our training loop."""
        self.batch_seconds += metrics.batch_seconds
        self.after_step(self.total + self.counted(metrics), metrics.steps)

    def after_step(self, total: int, steps: int = 1) -> bool:
        """Record the end of one step or more and the number so far; return whether `rate` is known."""
        self.total, self.steps = total, self.steps + steps
        if not self.start[0]:
            if self.steps >= WARMUP_STEPS:
                self.synchronize()
                self.start = self.steps, total, self.clock()
        elif self.steps >= WARMUP_STEPS + COUNTED_STEPS and self.clock() - self.start[2] >= self.seconds:
            self.synchronize()
            elapsed = self.clock() - self.start[2]
            self.rate = (total - self.start[1]) / elapsed
            self.waited_share = self.batch_seconds / self.steps * (self.steps - self.start[0]) / elapsed
        return self.rate > 0


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

    def read(self, *overrides: str) -> PretrainConfig:
        """Return the default recipe with `overrides`, its cache inside the benchmark's output folder."""
        return read(PretrainConfig, None, overrides).model_copy(update={"runs": str(self.output)})

    @property
    def overrides(self) -> tuple[str, ...]:
        """All differences of our side from the default recipe."""
        return (*RECIPE, *self.sizes)

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
        scale, recipe = asdict(self.scale), self.recipe.model_dump(mode="json")
        return {"scale": scale, "recipe": recipe, "text_fingerprint": self.corpus.manifest.text_fingerprint}


@dataclass(frozen=True)
class Reference:
    """A model that transformers' Trainer trains beside ours, and the rows it trains on."""

    cut: Callable[[ShardArrays, int], list[NDArray[np.int64]]]
    """Cuts the text into rows of at most a given length."""
    model: Callable[[EncoderConfig, int, int], nn.Module]
    """A function or class of `mlm.benchmark.hf_models`."""
    bfloat16: bool = False
    """Measure its speed in bfloat16, on hardware that has it."""

    def build(self, bench: Bench, seed: int) -> nn.Module:
        """Return a new model of the same size as ours; `seed` also fixes its dropout."""
        torch.manual_seed(seed)
        vocabulary_size = bench.corpus.manifest.vocabulary_size
        return self.model(bench.recipe.model.encoder, vocabulary_size, bench.recipe.data.row_length)

    def rows(self, bench: Bench) -> tuple[list[dict[str, list[int]]], int]:
        """Return the training text in rows, and the number of rows that hold as many tokens as one of our steps."""
        rows = self.cut(bench.corpus.shards[0].train, bench.recipe.data.row_length)
        ours = bench.recipe.train.batch_rows * bench.corpus.train.tokens_per_row
        return hf_trainer.examples(rows), max(round(ours * len(rows) / sum(map(len, rows))), 1)

    def train(
        self,
        bench: Bench,
        model: nn.Module,
        collate: hf_trainer.Collate,
        after_step: Callable[[int], bool],
        **settings: Any,
    ) -> None:
        """Train `model` by the Trainer; `settings` replace the defaults of TrainingArguments and our batch size."""
        import datasets

        rows, batch_rows = self.rows(bench)
        settings = {"per_device_train_batch_size": batch_rows} | settings
        hf_trainer.trainer(model, collate, datasets.Dataset.from_list(rows), after_step, **settings).train()


REFERENCES = {
    "one-sentence-a-row": Reference(hf_trainer.sentences, hf_models.bert),
    "concatenate-and-chunk-fp32": Reference(hf_trainer.chunks, hf_models.bert),
    "concatenate-and-chunk": Reference(hf_trainer.chunks, hf_models.bert, bfloat16=True),
    "modernbert": Reference(hf_trainer.chunks, hf_models.modernbert, bfloat16=True),
    "modernbert-fp32": Reference(hf_trainer.chunks, hf_models.modernbert),
    "torch-encoder": Reference(hf_trainer.chunks, hf_models.TorchEncoder, bfloat16=True),
}


def training(bench: Bench, name: str) -> list[Case]:
    """Train, beside the reference of that name."""
    reference, world, recipe = REFERENCES[name.removeprefix("training/")], bench.world, bench.recipe
    bfloat16 = reference.bfloat16 and has_bfloat16(world.device)
    encoder, batch_rows, peaks = recipe.model.encoder, recipe.train.batch_rows, list[float]()
    shape = batch_rows * recipe.data.row_length, encoder.width, encoder.feedforward_width

    def ours() -> float:
        peaks.append(measure_peak(world.device, world.dtype, *shape))
        return measure_ours(bench).rate

    def theirs() -> float:
        return as_users_run_it(measure_theirs, bench, reference, bfloat16).rate

    counted = (
        "tokens without padding, over whole steps after a warm-up, without start-up, reading and tokenizing; "
        f"ours in {precision_of(world.dtype)}, theirs {reference.model.__name__} in "
        f"{'bfloat16' if bfloat16 else 'float32'}; {batch_rows} rows a step on our side, as many tokens on theirs"
    )
    case = Case.of(name, "tokens/s", counted, *alternate(ours, theirs, bench.scale.repeats))
    share = case.ours.median * needed_flops(bench) / max(peaks)
    return [replace(case, peak_flops=max(peaks), peak_share=share)]


def long_rows(bench: Bench, name: str) -> list[Case]:
    """Train in rows of each length, beside rows of the shortest; the name ends with the segments of the text.

    A token attends to its segment, so that sentences cost the same in rows of any length, and whole documents more.
    """
    cases, segments, tokens = list[Case](), name.rpartition("/")[2], STEP_TOKENS * bench.scale.batch_tokens
    shortest = in_rows_of(bench, SHORTEST, tokens, segments)
    for length in LONGER:
        if length > tokens:  # of --quick
            continue
        one = in_rows_of(bench, length, tokens, segments)
        turns = alternate(partial(measure_ours, one), partial(measure_ours, shortest), bench.scale.repeats)
        rates = ([meter.rate for meter in side] for side in turns)
        counted = f"tokens without padding in rows of {length}, segments are {segments}; theirs: ours in rows of 128"
        needed = {"ours": needed_flops(one), "theirs": needed_flops(shortest)}
        cases.append(replace(Case.of(f"{name}/{length}", "tokens/s", counted, *rates), flops_per_token=needed))
    return cases


def in_rows_of(bench: Bench, length: int, tokens: int, segments: str) -> Bench:
    """Return the bench in rows of a length, with so many tokens a step, and rotary positions, as long rows have."""
    overrides = (
        f"text.segments={segments}",
        "model.encoder.positions={kind: rotary}",
        f"data.row_length={length}",
        f"train.batch_rows={max(tokens // length, 1)}",
    )
    return replace(bench, sizes=(*bench.sizes, *overrides))


def data_wait(bench: Bench, name: str) -> list[Case]:
    """Train, and measure the share of the time spent waiting for batches; theirs: the collator's share."""
    theirs = partial(as_users_run_it, measure_theirs, bench, REFERENCES["one-sentence-a-row"], False)
    turns = alternate(partial(measure_ours, bench), theirs, bench.scale.repeats)
    counted = "share of training spent on making batches; theirs: on collating alone, a sentence a row"
    return [Case.of(name, "% of time", counted, *([100 * meter.waited_share for meter in side] for side in turns))]


def needed_flops(bench: Bench) -> float:
    """Return the floating-point operations that our side needs to train on a token, at the mean masking rate."""
    return flops_at(bench.recipe, bench.corpus)(0.5)


def measure_theirs(bench: Bench, reference: Reference, bfloat16: bool) -> Meter:
    """Train a reference in this process."""
    meter, collate = Meter(bench.scale.seconds), hf_trainer.collator(bench.corpus.tokenizer_path)

    def timed(examples: list[Any]) -> dict[str, Any]:
        began = time.perf_counter()
        batch = collate(examples)
        meter.batch_seconds += time.perf_counter() - began
        return batch

    reference.train(bench, reference.build(bench, bench.recipe.train.seed), timed, meter.after_step, bf16=bfloat16)
    return meter


def measure_ours(bench: Bench) -> Meter:
    """Train our side."""
    meter = Meter(bench.scale.seconds)
    train_ours(bench.recipe, bench.world, meter, NEVER, lambda: meter.rate > 0)
    return meter


def train_ours(
    recipe: PretrainConfig, world: World, observer: Observer, evaluate_steps: int, stop: Callable[[], bool]
) -> None:
    """Train as `mlm.pretrain` does, and write nothing."""
    made = build(recipe, world)
    # Each log waits for the device, which costs speed on CUDA; so a log has to end the steps before each evaluation.
    log_steps = 1 if world.device.type == "cpu" else min(WARMUP_STEPS, evaluate_steps)
    intervals = Intervals(log_steps=log_steps, evaluate_steps=evaluate_steps, checkpoint_steps=NEVER)
    clip_norm, seed = recipe.train.clip_norm, recipe.train.seed
    settings = LoopSettings(made.optimizer, recipe.schedule, made.length, intervals, clip_norm, seed, made.threads)
    train(made.model, made.task, settings, world, [observer], start=TrainingProgress(), stop=stop)
