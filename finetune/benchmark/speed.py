"""What the fine-tuning benchmark is made on, and its cases: training, and predicting the classes of texts."""

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from finetune.benchmark import hf_trainer
from finetune.benchmark.hf_trainer import Padding
from finetune.config import FinetuneConfig
from finetune.data.examples import Dataset, Examples
from finetune.encoders.published import PublishedEncoder
from finetune.training.classification import Classification, EncodedExamples, predict
from finetune.training.classifier import Classifier
from mlm.benchmark.hf_trainer import as_users_run_it
from mlm.benchmark.measure import Case, Meter, alternate
from mlm.distributed.world import World
from mlm.training.budget import TrainingLength, TrainingProgress
from mlm.training.loop import Frequencies, LoggedMetrics, LoopSettings, train
from mlm.training.optim import Optimizer

if TYPE_CHECKING:
    import datasets
    from torch import nn
    from transformers import BertForSequenceClassification

RECIPE = ("head.kind=linear", "head.pooling=cls")
"""Our side, where it differs from the default recipe: what BertForSequenceClassification pools."""
LONGEST = 64
"""Tokens of an example at the most; to so many theirs is padded."""
NEVER = 1_000_000_000


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    repeats: int
    seconds: float
    """How long each side trains or predicts in a turn, at least."""
    layers: int
    """Of the default encoder."""
    width: int
    """Of the default encoder."""
    batch_examples: int
    """Examples of a training step, and of theirs in prediction."""
    predicted: int
    """Examples whose classes are predicted at once."""


FULL = Scale(repeats=5, seconds=4.0, layers=4, width=256, batch_examples=32, predicted=1000)
QUICK = Scale(repeats=2, seconds=0.3, layers=2, width=32, batch_examples=8, predicted=40)


@dataclass(frozen=True)
class Bench:
    """What the cases share."""

    scale: Scale
    recipe: FinetuneConfig
    """Our side."""
    data: Dataset
    encoder: PublishedEncoder
    longest: int
    """Tokens of an example at the most, and what theirs is padded to where that is fixed."""
    world: World

    @cached_property
    def classifier(self) -> Classifier:
        """Our side's model, of which each turn trains a copy."""
        torch.manual_seed(0)
        return Classifier(self.encoder, self.recipe.head.build(self.encoder, len(self.data.class_names)))

    @cached_property
    def train(self) -> EncodedExamples:
        """The examples that are trained on."""
        return self.encoded(self.data.train)

    @cached_property
    def predicted(self) -> EncodedExamples:
        """The examples whose classes are predicted: of the test part where there is one."""
        examples = self.data.test or self.data.train
        return self.encoded(examples.take(range(min(len(examples), self.scale.predicted))))

    def encoded(self, examples: Examples) -> EncodedExamples:
        """Return examples with our side's tokens."""
        return EncodedExamples.of(examples, self.encoder, self.longest)

    def meter(self) -> Meter:
        """Return a new meter of training speed."""
        return Meter(self.scale.seconds, self.world.wait)

    def our_model(self) -> Classifier:
        """Return our side's model with the weights that both sides begin with."""
        return copy.deepcopy(self.classifier).to(self.world.device)

    def their_model(self) -> "BertForSequenceClassification":
        """Return their side's model with the same weights."""
        return hf_trainer.classifier(self.classifier, self.encoder, len(self.data.class_names))

    def their_dataset(self, encoded: EncodedExamples, padding: Padding) -> "datasets.Dataset":
        """Return the same examples for their side."""
        return hf_trainer.dataset(self.encoder.tokenizer, encoded.examples, self.longest, padding)


class Observer:
    """Tells a meter how many examples were trained on, and keeps nothing else."""

    def __init__(self, meter: Meter) -> None:
        self.meter, self.examples = meter, 0

    def log(self, progress: TrainingProgress, metrics: LoggedMetrics) -> None:
        """Take note of a step."""
        self.examples += metrics.targets
        self.meter.after_step(self.examples)

    def evaluated(self, progress: TrainingProgress, metrics: Mapping[str, float], model: "nn.Module") -> None:
        """Take no note."""

    def checkpoint(self, progress: TrainingProgress, model: "nn.Module", optimizer: Optimizer) -> None:
        """Save nothing."""


def train_padded_to_fixed(bench: Bench, name: str) -> Case:
    """Train, against the Trainer in float32 on examples that are all padded to the same length."""
    return _training(bench, name, "fixed", bfloat16=False)


def train_padded_to_batch(bench: Bench, name: str) -> Case:
    """Train, against the Trainer in our precision on examples padded to the longest of their batch."""
    return _training(bench, name, "batch", bfloat16=bench.world.dtype == torch.bfloat16)


def _training(bench: Bench, name: str, padding: Padding, *, bfloat16: bool) -> Case:
    batch = bench.scale.batch_examples

    def ours() -> float:
        meter = bench.meter()
        train_ours(bench, meter)
        return meter.rate

    def theirs() -> float:
        return as_users_run_it(train_theirs, bench, padding, bfloat16)

    counted = (
        f"examples trained on, {batch} a step, over whole steps after a warm-up; start-up and tokenising are not; "
        f"ours in {_written(bench.world.dtype == torch.bfloat16)}, theirs in {_written(bfloat16)} and padded to "
        + {"fixed": f"{bench.longest} tokens", "batch": "the longest of each batch"}[padding]
    )
    return Case.of(name, "examples/s", counted, *alternate(ours, theirs, bench.scale.repeats))


def train_theirs(bench: Bench, padding: Padding, bfloat16: bool) -> float:
    """Train by the Trainer in this process; return examples a second."""
    meter = bench.meter()
    hf_trainer.train(
        bench.their_model(),
        bench.their_dataset(bench.train, padding),
        hf_trainer.collator(bench.encoder.tokenizer, padding),
        bench.scale.batch_examples,
        bfloat16=bfloat16,
        after_step=meter.after_step,
    )
    return meter.rate


def train_ours(bench: Bench, meter: Meter) -> None:
    """Train as `finetune.linear_head` does, until the meter has measured enough."""
    recipe, settings, model = bench.recipe, bench.recipe.train, bench.our_model()
    few = replace(bench.predicted, tokens=bench.predicted.tokens[:2], examples=bench.predicted.examples.take(range(2)))
    task = Classification(
        train=bench.train,
        validation=few,
        world=bench.world,
        seed=0,
        encoder=bench.encoder,
        longest=bench.longest,
        batch_examples=settings.batch_examples,
        micro_batch_examples=settings.batch_examples,
        class_weights_C=torch.ones(len(bench.data.class_names), device=bench.world.device),
        label_smoothing=settings.label_smoothing,
        augmentation=recipe.augment,
        variants=(),
    )
    train(
        model,
        task,
        LoopSettings(
            recipe.optim.build(model, recipe.trainable.prepare(model)),
            recipe.schedule,
            TrainingLength(steps=NEVER),
            intervals=Frequencies(log_steps=1, evaluate_steps=NEVER, checkpoint_steps=NEVER),
            clip_norm=settings.clip_norm,
            seed=0,
        ),
        bench.world,
        Observer(meter),
        start=TrainingProgress(),
        stop=lambda: meter.finished,
    )


def predict_padded_to_fixed(bench: Bench, name: str) -> Case:
    """Predict classes, against the Trainer in float32 on examples that are all padded to the same length."""
    encoded, model = bench.predicted, bench.our_model().eval()

    def ours() -> float:
        def run() -> object:
            return predict(model, encoded.tokens, bench.encoder.pad_id, bench.world)

        return len(encoded.tokens) * _times_a_second(run, bench.scale.seconds)

    def theirs() -> float:
        return as_users_run_it(predict_theirs, bench)

    counted = (
        f"examples whose classes were predicted, {len(encoded.tokens)} in a call, over whole calls after a warm-up; "
        f"loading and tokenising are not; ours in {_written(bench.world.dtype == torch.bfloat16)}, theirs in float32, "
        f"{bench.scale.batch_examples} in a batch and padded to {bench.longest} tokens"
    )
    return Case.of(name, "examples/s", counted, *alternate(ours, theirs, bench.scale.repeats))


def predict_theirs(bench: Bench) -> float:
    """Predict classes by the Trainer in this process; return examples a second."""
    dataset = bench.their_dataset(bench.predicted, "fixed")
    collate = hf_trainer.collator(bench.encoder.tokenizer, "fixed")
    run = hf_trainer.predictor(bench.their_model(), collate, bench.scale.batch_examples)
    return len(dataset) * _times_a_second(lambda: run(dataset), bench.scale.seconds)


def mean_length(encoded: EncodedExamples) -> float:
    """Return the mean number of tokens of an example."""
    return float(np.mean(encoded.lengths))


def _written(bfloat16: bool) -> str:
    return "bfloat16" if bfloat16 else "float32"


def _times_a_second(run: Callable[[], object], seconds: float) -> float:
    run()
    count, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds or not count:
        run()
        count += 1
    return count / elapsed
