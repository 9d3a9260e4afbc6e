"""Unigram and bigram baselines on the held-out masks of a model."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mlm.data.batches import IGNORED, Batch
from tokenizer.special_tokens import SpecialTokens


class Unigram:
    """Probabilities of tokens by their shares of the training tokens, with add-one smoothing."""

    def __init__(self, tokens: NDArray[np.int64], vocabulary_size: int) -> None:
        counts_V = np.bincount(tokens, minlength=vocabulary_size) + 1.0
        self.probabilities_V: NDArray[np.float64] = counts_V / counts_V.sum()

    def probabilities(self, left: int) -> NDArray[np.float64]:
        """Return the probability of every token after any left neighbor, (V,)."""
        return self.probabilities_V


class Bigram:
    """Probabilities given the left neighbor, by interpolated Kneser-Ney smoothing (Chen & Goodman 1999, section 2.7).

    The discount is n1 / (n1 + 2 n2) of the pairs seen once and twice (Ney et al. 1994). The left neighbor is the token
    that the encoder sees, or START at the beginning of a segment. If it is `mask_id`, `unigram` predicts.
    """

    START = -1

    def __init__(
        self,
        tokens: NDArray[np.int64],
        segments: NDArray[np.int64],
        unigram: Unigram,
        vocabulary_size: int,
        mask_id: int,
    ) -> None:
        """Count the pairs of training tokens; `segments` holds the offset of each segment."""
        left = np.concatenate([[self.START], tokens[:-1]])
        left[segments] = self.START
        codes, counts = np.unique((left + 1) * vocabulary_size + tokens, return_counts=True)
        once, twice = (counts == 1).sum(), (counts == 2).sum()
        self.discount = float(once / (once + 2 * twice)) if once and twice else 0.5
        self.unigram, self.mask_id = unigram, mask_id
        self.right, self.counts = codes % vocabulary_size, counts.astype(np.float64)
        self.borders = np.searchsorted(codes // vocabulary_size, np.arange(vocabulary_size + 2))
        # The number of distinct left neighbors of a token predicts better than its count whether it follows a new one.
        continuations_V = np.bincount(self.right, minlength=vocabulary_size) + unigram.probabilities_V
        self.continuation_V: NDArray[np.float64] = continuations_V / continuations_V.sum()

    def probabilities(self, left: int) -> NDArray[np.float64]:
        """Return the probability of every token to the right of `left`, (V,)."""
        if left == self.mask_id:
            return self.unigram.probabilities_V
        seen = slice(*self.borders[left + 1 : left + 3])
        counts = self.counts[seen]
        if not len(counts):
            return self.continuation_V
        probabilities_V: NDArray[np.float64] = self.discount * len(counts) / counts.sum() * self.continuation_V
        probabilities_V[self.right[seen]] += (counts - self.discount) / counts.sum()
        return probabilities_V


def measure_baseline(
    baseline: Unigram | Bigram, batches: Sequence[Batch], special: SpecialTokens
) -> Mapping[str, float]:
    """Return a baseline's mean loss in nats and its accuracy on the batches' masks, from their corrupted input."""
    left, labels = (
        np.concatenate(parts) for parts in zip(*(_left_neighbors(batch, special) for batch in batches), strict=True)
    )
    loss, correct = 0.0, 0
    for neighbor in np.unique(left):
        probabilities_V = baseline.probabilities(int(neighbor))
        wanted = labels[left == neighbor]
        loss -= float(np.log(probabilities_V[wanted]).sum())
        correct += int((wanted == probabilities_V.argmax()).sum())
    return {"loss": loss / len(labels), "accuracy": correct / len(labels)}


def _left_neighbors(batch: Batch, special: SpecialTokens) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the left neighbor of each target in the corrupted rows, START at a segment's beginning, and its label."""
    ids_BL, positions_BL = batch.ids_BL.cpu().numpy(), batch.positions_BL.cpu().numpy()
    predicted_BM, labels_BM = batch.predicted_BM.cpu().numpy(), batch.labels_BM.cpu().numpy()
    rows, slots = np.nonzero(labels_BM != IGNORED)
    predicted = predicted_BM[rows, slots]
    left = ids_BL[rows, predicted - 1]
    begins = (positions_BL[rows, predicted] == 0) | (left == special.cls)
    return np.where(begins, Bigram.START, left), labels_BM[rows, slots]
