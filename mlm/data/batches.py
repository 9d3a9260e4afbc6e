"""Training data as a function of (seed, step): rows of the shards, in a new order and with new masks each epoch."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlm.data.masking import Masking, UnmaskedRows, corrupt, row_keys
from mlm.data.order import RowOrder
from tokenizer.shards.rows import SEGMENT, SPECIAL, TEXT, WORD, RowFile
from tokenizer.special_tokens import SpecialTokens, ordinary_ids

IGNORED = -100
"""Label of a slot that predicts nothing."""
SAMPLE_SEED = 1999
"""Seed of the rows that are counted: the same for every run."""


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
    corpora_B: Tensor | None = None
    """Number of the corpus of each row; None without a mixture. int64"""

    def with_slots(self, slots: int) -> "Batch":
        """Return the batch with the first slots of each row, of which the others must be empty."""
        return replace(self, predicted_BM=self.predicted_BM[:, :slots], labels_BM=self.labels_BM[:, :slots])

    def chosen(self, rows_b: Tensor) -> "Batch":
        """Return the rows of these numbers, or those that are True."""
        tensors: dict[str, Any] = {name: of[rows_b] for name, of in vars(self).items() if isinstance(of, Tensor)}
        rows = replace(self, **tensors)
        targets, tokens = int((rows.labels_BM != IGNORED).sum()), int((rows.segments_BL > 0).sum())
        return replace(rows, targets=targets, tokens=tokens)

    def without_targets(self) -> "Batch":
        """Return the batch with no targets and counts of zero, for a rank without rows of its own in a step."""
        return replace(self, labels_BM=torch.full_like(self.labels_BM, IGNORED), targets=0, tokens=0)

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on `device`."""
        if self.ids_BL.device == device:
            return self
        on_device: dict[str, Any] = {
            name: value.contiguous().pin_memory().to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **on_device)


@dataclass(frozen=True)
class PackedRows:
    """One side of a corpus, or of a mixture of corpora, packed into rows."""

    files: tuple[RowFile, ...]
    """The rows of each folder of shards, numbered through all folders."""
    order: RowOrder
    special: SpecialTokens
    vocabulary_size: int

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.order)

    @property
    def row_length(self) -> int:
        """Number of slots of a row."""
        return self.files[0].row_length

    @cached_property
    def _segments_of_corpora(self) -> NDArray[np.float64]:
        """Mean number of segments of each length in a row of each corpus."""
        corpora = self.order.corpora(self._firsts)
        found = np.zeros((len(self.order.sizes), self.row_length + 1))  # corpora, lengths
        for corpus, file in zip(corpora, self.files, strict=True):
            found[corpus] += file.segment_lengths / self.order.sizes[corpus]
        return found

    @property
    def segments_per_row(self) -> NDArray[np.float64]:
        """Mean number of segments of each length in a row of training, special tokens counted."""
        return np.roll(np.array(self.order.shares) @ self._segments_of_corpora, 2 * self.special.adds_cls_sep)

    @property
    def tokens_per_row(self) -> float:
        """Mean number of slots of a row of training that are not padding, special tokens counted."""
        return float(np.array(self.order.shares) @ self.tokens_per_row_of_corpora)

    @property
    def tokens_per_row_of_corpora(self) -> NDArray[np.float64]:
        """Mean number of slots of a row of each corpus that are not padding, special tokens counted."""
        return self._segments_of_corpora @ (np.arange(self.row_length + 1) + 2 * self.special.adds_cls_sep)

    @cached_property
    def _firsts(self) -> NDArray[np.int64]:
        """The number of each folder's first row."""
        ends = np.cumsum([len(file) for file in self.files])
        return np.array([0, *ends[:-1]])

    def _by_file(self, rows_B: NDArray[np.int64]) -> Iterator[tuple[RowFile, NDArray[np.bool_], NDArray[np.int64]]]:
        """Yield each file that holds any of the rows, True for these rows, and their numbers in the file."""
        owners_B = np.searchsorted(self._firsts, rows_B, side="right") - 1
        for number in np.unique(owners_B).tolist():
            mine_B = owners_B == number
            yield self.files[number], mine_B, rows_B[mine_B] - self._firsts[number]

    def _read(self, rows_B: NDArray[np.int64]) -> NDArray[Any]:
        """Return the records of rows."""
        records_B = np.empty(len(rows_B), self.files[0].records.dtype)
        for file, mine_B, rows in self._by_file(rows_B):
            records_B[mine_B] = file.read(rows)
        return records_B

    def documents(self, rows_B: NDArray[np.int64]) -> str:
        """Return the numbers of the documents in the given rows, in each of the folders of shards that hold any."""
        found = [(file.documents_of(rows).tolist(), file.shards) for file, _, rows in self._by_file(rows_B)]
        return "; ".join(f"{', '.join(map(str, documents))} in {shards}" for documents, shards in found)

    def assemble(self, rows_B: NDArray[np.int64]) -> UnmaskedRows:
        """Return the given rows as arrays."""
        records_B = self._read(rows_B)
        ids_BL, marks_BL = records_B["ids"].astype(np.int64), records_B["marks"]
        text_BL, begins_BL, starts_BL = (marks_BL & mark > 0 for mark in (TEXT, SEGMENT, WORD))
        places_L = np.arange(self.row_length)
        segments_BL = begins_BL.cumsum(axis=1, dtype=np.int32) * text_BL
        positions_BL = (places_L - np.maximum.accumulate(begins_BL * places_L, axis=1)) * text_BL
        maskable_BL = (marks_BL & (TEXT | SPECIAL) == TEXT) & (ids_BL != self.special.unknown)
        return UnmaskedRows(ids_BL, segments_BL, positions_BL, maskable_BL, starts_BL)

    def masked(
        self, rows_B: NDArray[np.int64], epochs_B: NDArray[np.int64], masking: Masking, rate: float, seed: int
    ) -> Batch:
        """Return the given rows, masked; the masks are a function of (seed, epoch, row)."""
        whole = self.assemble(rows_B)
        keys_B = row_keys(seed, epochs_B % masking.static if masking.static else epochs_B, rows_B)
        mask_id, ordinary = self.special.mask, ordinary_ids(self.special, self.vocabulary_size)
        corruption = corrupt(whole, keys_B, masking, rate=rate, ordinary_ids=ordinary, mask_id=mask_id)
        labels_BM = np.take_along_axis(whole.ids_BL, corruption.predicted_BM, axis=1)
        labels_BM = np.where(corruption.filled_BM, labels_BM, IGNORED)
        arrays = (corruption.ids_BL, whole.segments_BL, whole.positions_BL, corruption.predicted_BM, labels_BM)
        ids_BL, segments_BL, positions_BL, predicted_BM, labels = map(torch.from_numpy, arrays)
        targets, tokens = np.count_nonzero(labels_BM != IGNORED), np.count_nonzero(whole.segments_BL)
        corpora_B = torch.from_numpy(self.order.corpora(rows_B)) if len(self.order.sizes) > 1 else None
        return Batch(ids_BL, segments_BL, positions_BL, predicted_BM, labels, int(targets), int(tokens), corpora_B)

    def plain_tokens(self, rows_B: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the tokens of rows without special ones, and the place of each segment's first token among them."""
        records_B = self._read(rows_B)
        inside_BL = records_B["marks"] & (TEXT | SPECIAL) == TEXT
        begins_BL = np.roll(records_B["marks"] & SEGMENT > 0, int(self.special.adds_cls_sep), axis=1)
        return records_B["ids"][inside_BL].astype(np.int64), np.flatnonzero(begins_BL[inside_BL])

    def sample(self, most_tokens: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the `plain_tokens` of different rows, of about `most_tokens` at most, drawn alike in every run."""
        most_rows = max(int(most_tokens / self.tokens_per_row), 1)
        return self.plain_tokens(np.sort(self.order.first_rows(SAMPLE_SEED, most_rows)))
