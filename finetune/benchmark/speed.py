"""The data, encoder and recipe that the cases share, and the cases: training and predicting classes."""

import argparse
import copy
import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from configs import UserError, read
from finetune.benchmark import hf_trainer
from finetune.config import FinetuneConfig
from finetune.data.bigram_shift import BigramShift
from finetune.data.examples import Dataset
from finetune.data.labelled import Labelled
from finetune.encoders.published import PublishedEncoder, load_published
from finetune.training.classification import Classification, EncodedExamples, predict
from finetune.training.classifier import Classifier
from mlm.benchmark import frame, hf_models
from mlm.benchmark.hf_trainer import Collate, open_tokenizer, trainer
from mlm.benchmark.measure import Case, alternate, as_users_run_it, times_a_second
from mlm.benchmark.speed import Meter
from mlm.distributed.device import precision_of, with_precision
from mlm.distributed.world import World, init_world
from mlm.model.encoder import EncoderConfig
from mlm.training.budget import TrainingLength, TrainingProgress
from mlm.training.loop import Intervals, LoopSettings, train
from tokenizer.cache import save
from tokenizer.cleaning import TextConfig
from tokenizer.vocabulary import MAXIMUM_SIZE, MINIMUM_SIZE, VocabularyConfig, learn

if TYPE_CHECKING:
    import datasets
    from transformers import BertForSequenceClassification

RECIPE = ("head.kind=linear", "head.pooling=cls")
"""Differences of our side from the default recipe: the pooling of BertForSequenceClassification."""
SEED, DROPOUT = 0, 0.1
"""Seed of the weights, and dropout of the random encoder, as in BERT."""
LONGEST = 64
"""Largest number of tokens of an example, and the length that theirs is padded to."""


@dataclass(frozen=True)
class Scale(frame.Scale):
    """Size of the measurements."""

    layers: int
    width: int
    """Layers and width of the random encoder."""
    batch_examples: int
    """Examples of a training step, and of their batches in prediction."""
    predicted: int
    """Examples of one call of prediction."""


FULL = Scale(repeats=5, seconds=4.0, layers=4, width=256, batch_examples=32, predicted=1000)
QUICK = Scale(repeats=2, seconds=0.3, layers=2, width=32, batch_examples=8, predicted=40)


@dataclass(frozen=True)
class Bench:
    """The objects that the cases share."""

    scale: Scale
    recipe: FinetuneConfig
    """The recipe of our side."""
    data: Dataset
    encoder: PublishedEncoder
    world: World

    @property
    def longest(self) -> int:
        """Largest number of tokens of an example, and the length of theirs where it is fixed."""
        return min(self.encoder.longest, LONGEST)

    @cached_property
    def classifier(self) -> Classifier:
        """The model of our side; each turn trains a copy."""
        torch.manual_seed(SEED)
        return Classifier(self.encoder, self.recipe.head.build(self.encoder, len(self.data.class_names)))

    @cached_property
    def train(self) -> EncodedExamples:
        """The training examples, with the tokens of our side."""
        return EncodedExamples.of(self.data.train, self.encoder, self.longest)

    @cached_property
    def predicted(self) -> EncodedExamples:
        """The examples to predict, from the test part if there is one."""
        examples = self.data.test or self.data.train
        taken = examples.take(range(min(len(examples), self.scale.predicted)))
        return EncodedExamples.of(taken, self.encoder, self.longest)

    def our_model(self) -> Classifier:
        """Return our model with the initial weights."""
        return copy.deepcopy(self.classifier).to(self.world.device)

    def theirs(
        self, encoded: EncodedExamples, padding: hf_trainer.Padding
    ) -> "tuple[BertForSequenceClassification, Collate, datasets.Dataset]":
        """Return their model with the same weights, their collator, and the same examples for it."""
        model = hf_trainer.classifier(self.classifier, self.encoder.model, len(self.data.class_names))
        return model, *hf_trainer.dataset(self.encoder.tokenizer, encoded.examples, self.longest, padding)

    def describe(self) -> dict[str, Any]:
        """Return the scale, the recipe, the encoder and the data, for the JSON."""
        about = {"scale": asdict(self.scale), "recipe": self.recipe.model_dump(mode="json"), "longest": self.longest}
        about |= {"training_examples": len(self.data.train), "mean_tokens": float(np.mean(self.train.lengths))}
        return about | {"encoder": self.encoder.model.config.to_dict()}


def prepare(options: argparse.Namespace) -> Bench:
    """Return the data, the encoder and the recipe of the command line; an unusable one is a UserError."""
    scale = frame.with_options(QUICK if options.quick else FULL, options)
    labelled = options.file and Labelled(train=options.file, text=options.text, label=options.label)
    data = (labelled or BigramShift()).load(TextConfig())
    if options.encoder is not None:
        encoder = load_published(options.encoder, None, random=False, seed=SEED)
    else:
        encoder = random_encoder(options.output / "tokenizer.json", data, scale, options.vocabulary)
    if (found := encoder.model.config.model_type) != "bert":
        raise UserError(f"the encoder's type is {found!r}, whose classifier has another head: take one of type 'bert'")
    recipe = read(FinetuneConfig, None, (*RECIPE, f"train.batch_examples={scale.batch_examples}"))
    return Bench(scale, recipe, data, encoder, with_precision(init_world(), recipe.train.precision))


def random_encoder(path: Path, data: Dataset, scale: Scale, vocabulary_size: int) -> PublishedEncoder:
    """Return a BERT of the benchmark's size with random weights; its tokenizer is written to `path`."""
    if not MINIMUM_SIZE <= vocabulary_size <= MAXIMUM_SIZE:
        raise UserError(f"--vocabulary {vocabulary_size}: must be {MINIMUM_SIZE} to {MAXIMUM_SIZE}")
    texts, vocabulary = itertools.chain(*data.train.texts), VocabularyConfig(size=vocabulary_size, cls_sep=True)
    save(learn(texts, vocabulary), path)
    heads, wide = max(scale.width // 64, 1), 4 * scale.width
    sizes = EncoderConfig(layers=scale.layers, width=scale.width, heads=heads, feedforward_width=wide, dropout=DROPOUT)
    torch.manual_seed(SEED)
    return PublishedEncoder(hf_models.bert(sizes, vocabulary_size, 2 * LONGEST).bert, open_tokenizer(path))


def train_ours(bench: Bench, meter: Meter, micro_batches: int = 1) -> None:
    """Train as `finetune.linear_head` does, until the meter is finished."""
    recipe, settings, model = bench.recipe, bench.recipe.train, bench.our_model()
    task = Classification(
        train=bench.train,
        validation=EncodedExamples(bench.train.examples.take([]), []),
        world=bench.world,
        seed=SEED,
        encoder=bench.encoder,
        longest=bench.longest,
        batch_examples=settings.batch_examples * micro_batches,
        micro_batch_examples=settings.batch_examples,
        class_weights_C=torch.ones(len(bench.data.class_names), device=bench.world.device),
        label_smoothing=settings.label_smoothing,
        augmentation=recipe.augment,
        variants=(),
    )
    optimizer = recipe.optim.build(model, recipe.trainable.prepare(model))
    intervals = Intervals(log_steps=1, evaluate_steps=frame.NEVER, checkpoint_steps=frame.NEVER)
    loop = LoopSettings(optimizer, recipe.schedule, TrainingLength(frame.NEVER), intervals, settings.clip_norm, SEED)
    train(model, task, loop, bench.world, [meter], start=TrainingProgress(), stop=lambda: meter.rate > 0)


def training_of_ours(bench: Bench, micro_batches: int = 1) -> float:
    """Train our side, so many batches a step; return examples a second."""
    meter = Meter(bench.scale.seconds, attrgetter("targets"))
    train_ours(bench, meter, micro_batches)
    return meter.rate


def training_of_theirs(bench: Bench, padding: hf_trainer.Padding, bfloat16: bool, micro_batches: int = 1) -> float:
    """Train by the Trainer in this process, which accumulates by Accelerate; return examples a second."""
    meter, size = Meter(bench.scale.seconds), bench.scale.batch_examples
    sides = *bench.theirs(bench.train, padding), meter.after_step, lambda batch: len(batch["labels"])
    steps: dict[str, Any] = {"per_device_train_batch_size": size, "gradient_accumulation_steps": micro_batches}
    trainer(*sides, bf16=bfloat16, **steps).train()
    return meter.rate


def prediction_of_ours(bench: Bench) -> float:
    """Predict classes; return examples a second."""
    tokens, model = bench.predicted.tokens, bench.our_model().eval()
    call = partial(predict, model, tokens, bench.encoder.pad_id, bench.world)
    return len(tokens) * times_a_second(call, bench.scale.seconds)


def prediction_of_theirs(bench: Bench, padding: hf_trainer.Padding, bfloat16: bool) -> float:
    """Predict classes by the Trainer in this process; return examples a second."""
    model, collate, rows = bench.theirs(bench.predicted, padding)
    settings: dict[str, Any] = {"per_device_eval_batch_size": bench.scale.batch_examples, "bf16_full_eval": bfloat16}
    call = partial(trainer(model, collate, **settings).predict, rows)
    return len(rows) * times_a_second(call, bench.scale.seconds)


@dataclass(frozen=True)
class Comparison:
    """A case: the speed of one kind of work on both sides."""

    ours: Callable[[Bench], float]
    theirs: Callable[[Bench, hf_trainer.Padding, bool], float]
    padding: hf_trainer.Padding
    """Theirs: to a fixed length in float32, or to the longest of the batch in our precision."""
    counted: str

    def measure(self, bench: Bench, name: str) -> list[Case]:
        """Measure both sides in turn."""
        own = precision_of(bench.world.dtype)
        precision, padded = (own, "the longest of each batch") if self.padding == "batch" else ("float32", "")
        counted = (
            f"{self.counted}, without loading and tokenizing; ours in {own}, theirs in {precision},"
            f" {bench.scale.batch_examples} a batch and padded to {padded or f'{bench.longest} tokens'}"
        )
        theirs = partial(as_users_run_it, self.theirs, bench, self.padding, precision == "bfloat16")
        return [Case.of(name, "examples/s", counted, *alternate(lambda: self.ours(bench), theirs, bench.scale.repeats))]


TRAINED = "trained examples, as many a step on both sides, over whole steps after a warm-up"
ACCUMULATED = 4
"""Batches whose gradients are added up to one step."""
PREDICTED = "predicted examples, over whole calls after a warm-up"
CASES = {
    "training/padded-to-64": Comparison(training_of_ours, training_of_theirs, "fixed", TRAINED),
    "training/padded-to-batch": Comparison(training_of_ours, training_of_theirs, "batch", TRAINED),
    "training/accumulated": Comparison(
        partial(training_of_ours, micro_batches=ACCUMULATED),
        partial(training_of_theirs, micro_batches=ACCUMULATED),
        "batch",
        f"{TRAINED}; {ACCUMULATED} batches are added up to a step",
    ),
    "prediction/padded-to-64": Comparison(prediction_of_ours, prediction_of_theirs, "fixed", PREDICTED),
}
