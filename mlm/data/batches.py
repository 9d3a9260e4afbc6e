"""Training data as a function of (seed, step): rows of the shards, in a new order and with new masks each epoch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlm.data.masking import Masking, UnmaskedRows, corrupt, row_keys
from mlm.data.packing import Rows, concatenate
from tokenizer.shards.format import ShardArrays
from tokenizer.special_tokens import SpecialTokens, ordinary_ids

IGNORED = -100
"""Label of a slot that predicts nothing."""


@dataclass(frozen=True)
class Batch:
    """Corrupted rows, and the tokens to predict in them. M is a fixed number of slots per row."""

    ids_BL: Tensor
    """Token ids as the model sees them. int64"""
    segments_BL: Tensor
    """Number of each position's segment within its row, from 1; 0 is padding. int32"""
    positions_BL: Tensor
    """Position within the segment. int64"""
    predicted_BM: Tensor
    """Positions of the predicted tokens in each row. int64"""
    labels_BM: Tensor
    """The original tokens at these positions; IGNORED in a slot that is not filled. int64"""
    targets: int
    """Number of predicted tokens."""
    tokens: int
    """Number of tokens that are not padding."""

    def without_targets(self) -> "Batch":
        """Return the batch with no targets and counts of zero, for a rank without rows of its own in a step."""
        return replace(self, labels_BM=torch.full_like(self.labels_BM, IGNORED), targets=0, tokens=0)

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on `device`."""
        if self.ids_BL.device == device:
            return self
        moved: dict[str, Any] = {
            name: value.contiguous().pin_memory().to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class PackedRows:
    """One side of a corpus, packed into rows."""

    splits: tuple[ShardArrays, ...]
    """The side's arrays in each folder of shards, memory-mapped; a row lies in one of them."""
    rows: Rows
    """The rows of all folders; their runs are ranges of the tokens of all folders, laid end to end."""
    row_length: int
    special: SpecialTokens
    vocabulary_size: int

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    @classmethod
    def join(cls, parts: Sequence["PackedRows"]) -> "PackedRows":
        """Return the rows of several folders as one corpus: their indices are copied, their tokens are not."""
        if len(parts) == 1:
            return parts[0]
        splits = tuple(part.splits[0] for part in parts)
        firsts = _begins([len(split.tokens) for split in splits])
        moved = [replace(p.rows, starts=p.rows.starts + first) for p, first in zip(parts, firsts, strict=True)]
        return replace(parts[0], splits=splits, rows=concatenate(moved))

    @property
    def tokens(self) -> int:
        """Number of slots that are not padding, special tokens counted."""
        return sum(len(split.tokens) for split in self.splits) + 2 * self.special.adds_cls_sep * len(self.rows.starts)

    def documents(self, rows_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of the documents in the given rows, counted from 0 through all folders."""
        borders = self.rows.borders
        starts = self.rows.starts[_ranges(borders[rows_B], borders[rows_B + 1] - borders[rows_B])]
        firsts = _begins([len(split.tokens) for split in self.splits])
        first_documents = _begins([len(split.documents) - 1 for split in self.splits])
        owners = np.searchsorted(firsts, starts, side="right") - 1
        found = []
        for number, split in enumerate(self.splits):
            mine = starts[owners == number] - firsts[number]
            sentences = np.searchsorted(split.sentences, mine, side="right") - 1
            found.append(np.searchsorted(split.documents, sentences, side="right") - 1 + first_documents[number])
        return np.unique(np.concatenate(found))

    def assemble(self, rows_B: NDArray[np.int64]) -> UnmaskedRows:
        """Lay the runs of tokens of the given rows into their slots."""
        B, L, special = len(rows_B), self.row_length, int(self.special.adds_cls_sep)
        counts_B = self.rows.borders[rows_B + 1] - self.rows.borders[rows_B]
        runs = _ranges(self.rows.borders[rows_B], counts_B)
        starts, lengths = self.rows.starts[runs], self.rows.lengths[runs].astype(np.int64)
        slots = lengths + 2 * special
        before = slots.cumsum() - slots
        first_run_B = counts_B.cumsum() - counts_B
        begins = before - np.repeat(before[first_run_B] - np.arange(B) * L, counts_B)
        numbers = np.arange(1, len(runs) + 1) - np.repeat(first_run_B, counts_B)

        taken = _ranges(begins, slots)
        segments = np.zeros(B * L, np.int32)
        segments[taken] = np.repeat(numbers, slots)
        positions = np.zeros(B * L, np.int64)
        positions[taken] = np.arange(len(taken)) - np.repeat(before, slots)

        read, written = _ranges(starts, lengths), _ranges(begins + special, lengths)
        ids = np.full(B * L, self.special.pad, np.int64)
        ids[written] = self._read("tokens", read)
        maskable = np.zeros(B * L, np.bool_)
        maskable[written] = ids[written] != self.special.unknown
        word_starts = np.zeros(B * L, np.bool_)
        word_starts[written] = self._read("word_starts", read)
        word_starts[begins + special] = True
        if special:
            ids[begins], ids[begins + slots - 1] = self.special.framed([])
        flat: list[NDArray[Any]] = [ids, segments, positions, maskable, word_starts]
        return UnmaskedRows(*(array.reshape(B, L) for array in flat))

    def _read(self, name: Literal["tokens", "word_starts"], places: NDArray[np.int64]) -> NDArray[Any]:
        """Return an array's values at indices into all folders, laid end to end."""
        arrays: list[NDArray[Any]] = [getattr(split, name) for split in self.splits]
        if len(arrays) == 1:
            return arrays[0][places]
        firsts = _begins(list(map(len, arrays)))
        owners = np.searchsorted(firsts, places, side="right") - 1
        found = np.empty(len(places), arrays[0].dtype)
        for number, array in enumerate(arrays):
            mine = owners == number
            found[mine] = array[places[mine] - firsts[number]]
        return found

    def masked(
        self, rows_B: NDArray[np.int64], epochs_B: NDArray[np.int64], masking: Masking, rate: float, seed: int
    ) -> Batch:
        """Return the given rows, masked; the masks are a function of (seed, epoch, row)."""
        whole = self.assemble(rows_B)
        keys_B = row_keys(seed, np.zeros_like(epochs_B) if masking.static else epochs_B, rows_B)
        mask_id, ordinary = self.special.mask, ordinary_ids(self.special, self.vocabulary_size)
        corruption = corrupt(whole, keys_B, masking, rate=rate, ordinary_ids=ordinary, mask_id=mask_id)
        labels_BM = np.take_along_axis(whole.ids_BL, corruption.positions_BM, axis=1)
        labels_BM = np.where(corruption.filled_BM, labels_BM, IGNORED)
        arrays = (corruption.ids_BL, whole.segments_BL, whole.positions_BL, corruption.positions_BM, labels_BM)
        ids_BL, segments_BL, positions_BL, predicted_BM, labels = map(torch.from_numpy, arrays)
        targets, tokens = np.count_nonzero(labels_BM != IGNORED), np.count_nonzero(whole.segments_BL)
        return Batch(ids_BL, segments_BL, positions_BL, predicted_BM, labels, int(targets), int(tokens))

    def step_rows(self, seed: int, step: int, batch_rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows of a step and the epoch of each: every epoch is a new order of all rows."""
        turns_B = np.arange(step * batch_rows, (step + 1) * batch_rows)
        epochs_B, turns_B = np.divmod(turns_B, len(self))
        rows_B = np.empty(batch_rows, np.int64)
        for epoch in np.unique(epochs_B).tolist():
            mine_B = epochs_B == epoch
            rows_B[mine_B] = _epoch_order(seed, epoch, len(self))[turns_B[mine_B]]
        return rows_B, epochs_B


def _begins(sizes: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the offset of each array, from their sizes, when they are laid end to end."""
    return np.cumsum(sizes, dtype=np.int64) - np.asarray(sizes, np.int64)


def _ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the ranges start, start + 1, ... of the given lengths, one after the other."""
    before = lengths.cumsum() - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())


@lru_cache(maxsize=2)  # a step may touch two epochs
def _epoch_order(seed: int, epoch: int, rows: int) -> NDArray[np.int64]:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch]))).permutation(rows)
