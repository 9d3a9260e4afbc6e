"""Classification as a task of the training loop: batches of examples of like length, and their loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from configs import UserError
from finetune.data.augment import Augmentation, Variants, augmented
from finetune.data.examples import Examples
from finetune.encoders.encoder import TextEncoder, Tokens
from finetune.evaluation import metrics
from mlm.data.batches import IGNORED
from mlm.distributed.device import autocast
from mlm.distributed.world import World

POOL_BATCHES = 16
"""Batches whose examples are sorted by length together: enough for little padding, few enough to stay mixed."""
EVALUATION_TOKENS = 8192
"""Tokens, padding counted, of a batch in evaluation."""


@dataclass(frozen=True)
class Batch:
    """Examples in rows, padded to the longest."""

    ids_BL: Tensor
    """Token ids. int64"""
    real_BL: Tensor
    """Where there is no padding."""
    types_BL: Tensor
    """0 for the first text and 1 for the second. int64"""
    labels_B: Tensor
    """Class of each example. int64"""
    targets: int
    """Number of examples."""
    tokens: int
    """Number of tokens that are not padding."""

    def without_targets(self) -> "Batch":
        """Return a batch that is computed and counts for nothing, for a rank that has no examples left of a step."""
        return replace(self, labels_B=torch.full_like(self.labels_B, IGNORED), targets=0, tokens=0)


@dataclass(frozen=True)
class Encoded:
    """Examples with their tokens."""

    examples: Examples
    tokens: list[Tokens]

    @classmethod
    def of(cls, examples: Examples, encoder: TextEncoder, longest: int) -> "Encoded":
        """Return the examples with `encoder`'s tokens, `longest` of each at the most."""
        return cls(examples, encoder.tokenise(examples.texts, longest))

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each example, (N,)."""
        return np.array([len(tokens.ids) for tokens in self.tokens], np.int64)


@dataclass(frozen=True)
class Classification:
    """Tell the class of texts."""

    train: Encoded
    validation: Encoded
    world: World
    seed: int
    encoder: TextEncoder
    """What makes tokens of texts; its weights are the model's."""
    longest: int
    """Tokens of a text at the most."""
    batch_examples: int
    """Examples of a step, over all ranks and micro-batches."""
    micro_batch_examples: int
    """Examples computed at once on each rank."""
    class_weights_C: Tensor
    """Weight of each class in the loss; 1 on average over the training examples."""
    label_smoothing: float
    augmentation: Augmentation
    variants: Variants
    """Of each training example, its texts with words replaced; empty where none are."""

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps of an epoch; the last one may be short."""
        return -(-len(self.train.tokens) // self.batch_examples)

    def micro_batches(self, step: int, fraction: float) -> Sequence[Batch]:
        """Return this rank's micro-batches: a function of seed and step alone."""
        epoch, turn = divmod(step, self.steps_per_epoch)
        chosen = _epoch_batches(self.seed, epoch, self.batch_examples, self.train.lengths.tobytes())[turn]
        mine = chosen[self.world.rank :: self.world.size]
        parts = [mine[cut] for cut in self.world.share(len(chosen), self.micro_batch_examples)]
        return [
            self._batch(part, epoch) if len(part) else self._batch(chosen[:1], epoch).without_targets()
            for part in parts
        ]

    def _batch(self, indices: NDArray[np.int64], epoch: int) -> Batch:
        examples, tokens = self.train.examples, [self.train.tokens[index] for index in indices]
        if self.augmentation.changes:
            replaced = [self.variants[index] if self.variants else () for index in indices]
            texts = [
                augmented(examples.texts[i], self.augmentation, (self.seed, epoch, i), self.encoder.mask_text, variants)
                for i, variants in zip(indices.tolist(), replaced, strict=True)
            ]
            tokens = self.encoder.tokenise(texts, self.longest)
        return batch_of(tokens, examples.labels[indices], self.encoder.pad_id, self.world.device)

    def losses(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Return the summed cross-entropy in nats, and how many predictions were right."""
        scores_BC = score(model, batch, self.world)
        return {
            "loss": F.cross_entropy(
                scores_BC,
                batch.labels_B,
                self.class_weights_C,
                reduction="sum",
                ignore_index=IGNORED,
                label_smoothing=self.label_smoothing,
            ),
            "correct": (scores_BC.detach().argmax(dim=-1) == batch.labels_B).sum(),
        }

    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        """Return the loss in nats and the metrics on the validation part; nothing where that is empty."""
        if not self.validation.tokens:
            return {}
        labels_N = self.validation.examples.labels
        probabilities_NC = predict(model, self.validation.tokens, self.encoder.pad_id, self.world)
        found = measure(labels_N, probabilities_NC)
        return {name: value for name, value in found.items() if value is not None}


def batch_of(tokens: Sequence[Tokens], labels_B: NDArray[np.int64], pad_id: int, device: torch.device) -> Batch:
    """Lay examples into rows as long as the longest of them."""
    lengths_B = np.array([len(example.ids) for example in tokens])
    real_BL = np.arange(lengths_B.max()) < lengths_B[:, None]
    ids_BL, types_BL = np.full(real_BL.shape, pad_id, np.int64), np.zeros(real_BL.shape, np.int64)
    ids_BL[real_BL] = np.concatenate([example.ids for example in tokens])
    types_BL[real_BL] = np.concatenate([example.types for example in tokens])
    ids, real, types, labels = (torch.from_numpy(a).to(device) for a in (ids_BL, real_BL, types_BL, labels_B))
    return Batch(ids, real, types, labels, targets=len(tokens), tokens=int(lengths_B.sum()))


def score(model: nn.Module, batch: Batch, world: World) -> Tensor:
    """Return the model's scores of the classes, (B, C), computed in the world's precision, in float32."""
    with autocast(world.device, world.dtype):
        scores_BC: Tensor = model(batch.ids_BL, batch.real_BL, batch.types_BL)
    return scores_BC.float()


@torch.no_grad()
def predict(model: nn.Module, tokens: Sequence[Tokens], pad_id: int, world: World) -> NDArray[np.float64]:
    """Return the probability of every class for each example, (N, C); each rank computes some of them."""
    lengths_N = np.array([len(example.ids) for example in tokens])
    order = np.argsort(lengths_N, kind="stable")
    cuts = _cuts_of_like_size(lengths_N[order])
    found_NC = torch.zeros(0)
    for number, cut in enumerate(cuts):
        mine = number % world.size == world.rank
        if not mine and number:
            continue  # the first batch tells every rank how many classes there are
        batch = batch_of([tokens[i] for i in order[cut]], np.zeros(len(order[cut]), np.int64), pad_id, world.device)
        probabilities_BC = score(model, batch, world).double().softmax(dim=-1).cpu()
        if not number:
            found_NC = probabilities_BC.new_zeros(len(tokens), probabilities_BC.shape[1])
        if mine:
            found_NC[order[cut]] = probabilities_BC
    probabilities_NC: NDArray[np.float64] = world.sum_tensor(found_NC).numpy()
    return probabilities_NC


def measure(labels_N: NDArray[np.int64], probabilities_NC: NDArray[np.float64]) -> dict[str, float | None]:
    """Return the metrics, and the mean cross-entropy in nats as `loss`.

    Raises:
        UserError: the probabilities are not finite.

    """
    if not np.isfinite(probabilities_NC).all():
        raise UserError("training diverged, the scores are not finite: lower optim.lr")
    chances_N = probabilities_NC[np.arange(len(labels_N)), labels_N]
    loss = -np.log(np.maximum(chances_N, np.finfo(np.float64).tiny)).mean()
    return {"loss": float(loss)} | metrics.scores(labels_N, probabilities_NC)


def class_weights(labels_N: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """Return weights that give every class the same share of the loss, and are 1 on average over the examples."""
    counts_C = np.bincount(labels_N, minlength=classes)
    return len(labels_N) / (classes * np.maximum(counts_C, 1))


def _cuts_of_like_size(lengths: NDArray[np.int64]) -> list[slice]:
    """Cut rising lengths so that each part, padded to its longest, has at most EVALUATION_TOKENS, or one example."""
    cuts, start = [], 0
    for end in range(1, len(lengths) + 1):
        if end == len(lengths) or (end - start + 1) * lengths[end] > EVALUATION_TOKENS:
            cuts.append(slice(start, end))
            start = end
    return cuts


@lru_cache(maxsize=2)
def _epoch_batches(seed: int, epoch: int, size: int, lengths: bytes) -> list[NDArray[np.int64]]:
    """Return the examples of each step of an epoch.

    A random order is cut into pools, each pool sorted by length and cut into batches, and these are put into a
    random order again: examples of like length meet, and who meets whom is new each epoch. The batch that is
    short, where there is one, comes last.
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
