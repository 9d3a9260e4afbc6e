"""Classification, or regression, as a task of the training loop: batches of examples of like length, and their loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from configs import UserError
from finetune.data.augment import Augmentation, Variants, augmented
from finetune.data.examples import Examples
from finetune.encoders.encoder import EncodedExample, TextEncoder, padded
from finetune.evaluation import metrics
from finetune.evaluation.metrics import Metric, deviation_of
from mlm.data.batches import IGNORED
from mlm.distributed.device import autocast
from mlm.distributed.threads import pool_of
from mlm.distributed.world import World

POOL_BATCHES = 16
"""Batches whose examples are sorted by length together: enough for little padding, few enough to stay mixed."""
EVALUATION_TOKENS, EVALUATION_TOKENS_OF_A_THREAD = 8192, 1024
"""Number of tokens of a batch in evaluation, with padding: computed alone, or by one of several threads."""


@dataclass(frozen=True)
class ExampleBatch:
    """Examples in rows, padded to the longest of them."""

    ids_BL: Tensor
    """Token ids. int64"""
    real_BL: Tensor
    """True for tokens, false for padding."""
    types_BL: Tensor
    """Token types: 0 for the first text and 1 for the second. int64"""
    labels_B: Tensor
    """Class of each example, int64; or its number, float32."""
    targets: int
    """Number of examples."""
    tokens: int
    """Number of tokens that are not padding."""

    def without_targets(self) -> "ExampleBatch":
        """Return a batch without weight in the loss, for a rank that has no examples left in a step."""
        return replace(self, labels_B=torch.full_like(self.labels_B, IGNORED), targets=0, tokens=0)


@dataclass(frozen=True)
class EncodedExamples:
    """Examples with their tokens."""

    examples: Examples
    tokens: list[EncodedExample]

    @classmethod
    def of(cls, examples: Examples, encoder: TextEncoder, longest: int) -> "EncodedExamples":
        """Return the examples with the tokens of `encoder`, at most `longest` each."""
        return cls(examples, encoder.tokenize(examples.texts, longest))

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each example, (N,)."""
        return np.array([len(tokens.ids) for tokens in self.tokens], np.int64)

    @cached_property
    def packed_lengths(self) -> bytes:
        """`lengths` as the key of a cache: one object, which is hashed once."""
        return self.lengths.tobytes()


@dataclass(frozen=True)
class Classification:
    """The task of the training loop: to predict the class of texts, or a number."""

    train: EncodedExamples
    validation: EncodedExamples
    world: World
    seed: int
    encoder: TextEncoder
    longest: int
    """Largest number of tokens of a text."""
    batch_examples: int
    """Number of examples of a step, over all ranks and micro-batches."""
    micro_batch_examples: int
    """Number of examples of a micro-batch on each rank."""
    class_weights_C: Tensor
    """Weight of each class in the loss, 1 on average over the training examples; or one over the numbers' deviation."""
    label_smoothing: float
    augmentation: Augmentation
    variants: Variants
    threads: int = 1
    """Micro-batches computed at the same time."""

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps of an epoch; the last one may be short."""
        return -(-len(self.train.tokens) // self.batch_examples)

    def micro_batches(self, step: int, fraction: float) -> Sequence[ExampleBatch]:
        """Return this rank's micro-batches, a function of seed and step alone."""
        epoch, turn = divmod(step, self.steps_per_epoch)
        chosen = _epoch_batches(self.seed, epoch, self.batch_examples, self.train.packed_lengths)[turn]
        parts = [chosen[cut] for cut in self.world.share(len(chosen), self.micro_batch_examples)]
        return [
            self._batch(part, epoch) if len(part) else self._batch(chosen[:1], epoch).without_targets()
            for part in parts
        ]

    def _batch(self, indices: NDArray[np.int64], epoch: int) -> ExampleBatch:
        examples, tokens = self.train.examples, [self.train.tokens[index] for index in indices]
        if self.augmentation.changes:
            replaced = [self.variants[index] if self.variants else () for index in indices]
            texts = [
                augmented(examples.texts[i], self.augmentation, (self.seed, epoch, i), variants)
                for i, variants in zip(indices.tolist(), replaced, strict=True)
            ]
            tokens = self.encoder.tokenize(texts, self.longest)
        return batch_of(tokens, examples.labels[indices], self.encoder.pad_id, self.world.device)

    def losses(self, model: nn.Module, batch: ExampleBatch) -> Mapping[str, Tensor]:
        """Return the summed cross-entropy in nats as `loss`, and the number of right predictions as `correct`.

        Of numbers, the loss is the summed squared error, in units of their variance, and nothing is right or wrong.
        """
        logits_BC, weights_C, smoothing = (
            compute_logits(model, batch, self.world),
            self.class_weights_C,
            self.label_smoothing,
        )
        if batch.labels_B.is_floating_point():
            # In units of the deviation first: squares of large numbers are beyond float32.
            error = ((logits_BC[:, 0] - batch.labels_B) * weights_C).square().sum()
            return {"loss": error * (batch.targets > 0)}
        loss = F.cross_entropy(
            logits_BC, batch.labels_B, weights_C, reduction="sum", ignore_index=IGNORED, label_smoothing=smoothing
        )
        return {"loss": loss, "correct": (logits_BC.detach().argmax(dim=-1) == batch.labels_B).sum()}

    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        """Return the loss in nats and the metrics on the validation examples; nothing if there are none."""
        if not self.validation.tokens:
            return {}
        probabilities_NC = predict(model, self.validation.tokens, self.encoder.pad_id, self.world, self.threads)
        scale = deviation_of(self.train.examples.labels)
        found = measure(self.validation.examples.labels, probabilities_NC, scale)
        return {name: value for name, value in found.items() if value is not None}


def batch_of(
    tokens: Sequence[EncodedExample], labels_B: NDArray[Any], pad_id: int, device: torch.device
) -> ExampleBatch:
    """Return examples as a batch, padded to the longest of them."""
    labels = torch.from_numpy(labels_B)
    rows = (*padded(tokens, pad_id), labels.float() if labels.is_floating_point() else labels)
    ids_BL, real_BL, types_BL, labels = (part.to(device) for part in rows)
    count = sum(len(example.ids) for example in tokens)
    return ExampleBatch(ids_BL, real_BL, types_BL, labels, targets=len(tokens), tokens=count)


def compute_logits(model: nn.Module, batch: ExampleBatch, world: World) -> Tensor:
    """Return the logits of the classes, or the number, (B, C), in float32; the world's precision computes them."""
    with autocast(world.device, world.dtype):
        logits_BC: Tensor = model(batch.ids_BL, batch.real_BL, batch.types_BL)
    return logits_BC.float()


def predict(
    model: nn.Module, tokens: Sequence[EncodedExample], pad_id: int, world: World, threads: int = 1
) -> NDArray[np.float64]:
    """Return the probability of every class for each example, (N, C); ranks and threads share the work.

    A single class is a number, (N, 1).
    """
    lengths_N = np.array([len(example.ids) for example in tokens])
    order = np.argsort(lengths_N, kind="stable")
    size = EVALUATION_TOKENS if threads == 1 else EVALUATION_TOKENS_OF_A_THREAD
    cuts = _cuts_of_like_size(lengths_N[order], size)
    # Every rank computes the first batch, which tells the number of classes.
    mine = [number for number in range(len(cuts)) if number % world.size == world.rank or not number]

    @torch.no_grad()
    def probabilities(number: int) -> Tensor:
        chosen = order[cuts[number]]
        batch = batch_of([tokens[i] for i in chosen], np.zeros(len(chosen), np.int64), pad_id, world.device)
        logits_BC = compute_logits(model, batch, world).cpu().double()
        return logits_BC.softmax(dim=-1) if logits_BC.shape[1] > 1 else logits_BC

    if threads == 1:
        computed = list(map(probabilities, mine))
    else:
        with pool_of(threads) as pool:
            computed = list(pool.map(probabilities, mine))
    found_NC = computed[0].new_zeros(len(tokens), computed[0].shape[1]) if computed else torch.zeros(0)
    for number, probabilities_BC in zip(mine, computed, strict=True):
        if number % world.size == world.rank:
            found_NC[order[cuts[number]]] = probabilities_BC
    probabilities_NC: NDArray[np.float64] = world.sum_tensor(found_NC).numpy()
    return probabilities_NC


def measure(
    labels_N: NDArray[Any], probabilities_NC: NDArray[np.float64], scale: float = 1.0, only: Metric | None = None
) -> dict[Metric, float | None]:
    """Return the metrics, and the mean cross-entropy in nats as `loss`; a UserError if a probability is not finite.

    Of numbers, the loss is the mean squared error in units of `scale` squared. Where `only` one metric is asked for,
    those that take long are left out.
    """
    if not np.isfinite(probabilities_NC).all():
        raise UserError("training diverged, the scores are not finite: lower optim.lr")
    if labels_N.dtype == np.float64:
        return metrics.number_scores(labels_N, probabilities_NC[:, 0], scale)
    probabilities_N = probabilities_NC[np.arange(len(labels_N)), labels_N]
    loss = -np.log(np.maximum(probabilities_N, np.finfo(np.float64).tiny)).mean()
    return {"loss": float(loss), **metrics.scores(labels_N, probabilities_NC, only)}


def _cuts_of_like_size(lengths: NDArray[np.int64], most: int) -> list[slice]:
    """Cut rising lengths into batches of at most `most` tokens with padding, or of one example."""
    cuts, start = [], 0
    for end in range(1, len(lengths) + 1):
        if end == len(lengths) or (end - start + 1) * lengths[end] > most:
            cuts.append(slice(start, end))
            start = end
    return cuts


@lru_cache(maxsize=2)
def _epoch_batches(seed: int, epoch: int, size: int, lengths: bytes) -> list[NDArray[np.int64]]:
    """Return the examples of each step of an epoch.

    A random order is cut into pools; each pool is sorted by length and cut into batches; the batches are shuffled. So
    the examples of a batch have similar lengths, and its composition differs in each epoch. A short batch comes last.
    """
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch])))
    lengths_N = np.frombuffer(lengths, np.int64)
    order = generator.permutation(len(lengths_N))
    whole = len(order) // size * size
    batches: list[NDArray[np.int64]] = []
    for start in range(0, whole, POOL_BATCHES * size):
        pool = order[start : min(start + POOL_BATCHES * size, whole)]
        batches += np.split(pool[np.argsort(lengths_N[pool], kind="stable")], len(pool) // size)
    batches = [batches[turn] for turn in generator.permutation(len(batches))]
    return batches + ([order[whole:]] if whole < len(order) else [])
