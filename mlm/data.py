"""Training data as a function of (seed, step): rows of the shards in a new order each epoch, masked anew."""

import shutil
import tempfile
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from configs import UserError
from mlm.masking import Masking, WholeRows, corrupt, row_keys
from mlm.packing import Rows, pack
from tokenizer import vocabulary
from tokenizer.prepare import prepare
from tokenizer.shards import SIDES, Shards, Split, open_shards
from tokenizer.text import Side, Text
from tokenizer.vocabulary import CLS, MASK, PAD, SEP, SPECIAL_TOKENS, Vocabulary

PACKING = 1
"""Version of the packing, in the name of what is kept of it: to be raised whenever it packs otherwise."""
IGNORED = -100
"""Label of a slot that predicts nothing."""


@dataclass(frozen=True)
class Batch:
    """Corrupted rows with what is to be predicted in them. M is a fixed number of slots a row, times the rows."""

    ids_BL: Tensor
    """Token ids as the model sees them. int64"""
    segments_BL: Tensor
    """Number of each position's segment within its row, from 1; 0 is padding. int32"""
    positions_BL: Tensor
    """Position within the segment. int64"""
    predicted_M: Tensor
    """Where the predicted tokens stand in the flattened rows. int64"""
    labels_M: Tensor
    """The tokens that stood there; IGNORED in a slot that is not filled. int64"""
    targets: int
    """Number of predicted tokens."""
    tokens: int
    """Number of tokens that are not padding."""

    def idle(self) -> "Batch":
        """Return a batch that is computed and counts for nothing, for a rank that has no rows left of a step."""
        return replace(self, labels_M=torch.full_like(self.labels_M, IGNORED), targets=0, tokens=0)

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on `device`."""
        if device.type == "cpu":
            return self

        def moved(tensor: Tensor) -> Tensor:
            return tensor.pin_memory().to(device, non_blocking=True)

        return replace(
            self,
            ids_BL=moved(self.ids_BL),
            segments_BL=moved(self.segments_BL),
            positions_BL=moved(self.positions_BL),
            predicted_M=moved(self.predicted_M),
            labels_M=moved(self.labels_M),
        )


@dataclass(frozen=True)
class PackedRows:
    """One side of the shards, packed into rows."""

    split: Split
    rows: Rows
    row_length: int
    cls_sep: bool
    """Whether each segment stands between [CLS] and [SEP]."""
    vocabulary_size: int

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    @property
    def tokens(self) -> int:
        """Number of slots that are not padding, special tokens counted."""
        return int(self.split.tokens.shape[0]) + 2 * self.cls_sep * len(self.rows.starts)

    def assemble(self, rows_B: NDArray[np.int64]) -> WholeRows:
        """Lay the runs of tokens of the given rows into their slots."""
        B, L, special = len(rows_B), self.row_length, int(self.cls_sep)
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
        ids = np.full(B * L, PAD, np.int64)
        ids[written] = self.split.tokens[read]
        maskable = np.zeros(B * L, np.bool_)
        maskable[written] = True
        word_starts = np.zeros(B * L, np.bool_)
        word_starts[written] = self.split.word_starts[read]
        word_starts[begins + special] = True
        if self.cls_sep:
            ids[begins], ids[begins + slots - 1] = CLS, SEP
        return WholeRows(
            ids.reshape(B, L),
            segments.reshape(B, L),
            positions.reshape(B, L),
            maskable.reshape(B, L),
            word_starts.reshape(B, L),
        )

    def masked(
        self, rows_B: NDArray[np.int64], epochs_B: NDArray[np.int64], masking: Masking, rate: float, seed: int
    ) -> Batch:
        """Return the given rows with the masks of the given epochs; the masks are those of (seed, epoch, row)."""
        whole = self.assemble(rows_B)
        keys_B = row_keys(seed, np.zeros_like(epochs_B) if masking.static else epochs_B, rows_B)
        corruption = corrupt(
            whole,
            keys_B,
            masking,
            rate=rate,
            ordinary_ids=range(len(SPECIAL_TOKENS), self.vocabulary_size),
            mask_id=MASK,
        )
        labels_BM = np.take_along_axis(whole.ids_BL, corruption.positions_BM, axis=1)
        labels_BM = np.where(corruption.filled_BM, labels_BM, IGNORED)
        predicted_BM = corruption.positions_BM + np.arange(len(rows_B))[:, None] * self.row_length
        return Batch(
            torch.from_numpy(corruption.ids_BL),
            torch.from_numpy(whole.segments_BL),
            torch.from_numpy(whole.positions_BL),
            torch.from_numpy(predicted_BM.reshape(-1)),
            torch.from_numpy(labels_BM.reshape(-1)),
            targets=int(corruption.filled_BM.sum()),
            tokens=int((whole.segments_BL > 0).sum()),
        )

    def step_rows(self, seed: int, step: int, batch_rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows of a step and the epoch of each: every epoch is a new order of all rows."""
        turns_B = np.arange(step * batch_rows, (step + 1) * batch_rows)
        epochs_B, turns_B = np.divmod(turns_B, len(self))
        rows_B = np.empty(batch_rows, np.int64)
        for epoch in np.unique(epochs_B).tolist():
            mine_B = epochs_B == epoch
            rows_B[mine_B] = _epoch_order(seed, epoch, len(self))[turns_B[mine_B]]
        return rows_B, epochs_B


@dataclass(frozen=True)
class Corpus:
    """Text made ready for a model: its tokenizer, its shards, and both sides of these in rows."""

    shards: Shards
    tokenizer: Tokenizer
    tokenizer_path: Path
    train: PackedRows
    heldout: PackedRows


def open_corpus(
    text: Text, settings: Vocabulary, row_length: int, cache: Path, tokenizer_path: Path | None = None
) -> Corpus:
    """Return the corpus of `text`, building in `cache` what is not there yet.

    Args:
        text: where the text comes from.
        settings: the vocabulary to learn, unless `tokenizer_path` gives one.
        row_length: slots in a row, special tokens counted.
        cache: directory of tokenizers and shards.
        tokenizer_path: a tokenizer.json.

    Raises:
        UserError: the text or the tokenizer cannot be used.

    """
    return corpus_at(prepare(text, settings, cache, tokenizer_path), row_length)


def corpus_at(folder: Path, row_length: int) -> Corpus:
    """Return the corpus whose shards are in `folder`, packed into rows of `row_length` slots.

    Raises:
        UserError: the shards are missing or damaged.

    """
    shards = open_shards(folder)
    path = shards.path / "tokenizer.json"
    tokenizer = vocabulary.load(path)
    if tokenizer.get_vocab_size() != shards.manifest.vocabulary_size:
        raise UserError(f"the tokenizer in {shards.path} is not that of its tokens: delete the folder to build it anew")
    cls_sep = tokenizer.num_special_tokens_to_add(is_pair=False) > 0
    train, heldout = (packed_rows(shards, side, row_length, cls_sep=cls_sep) for side in SIDES)
    return Corpus(shards, tokenizer, path, train, heldout)


def packed_rows(shards: Shards, side: Side, row_length: int, *, cls_sep: bool) -> PackedRows:
    """Pack one side of the shards into rows; the packing is kept beside the shards and found again."""
    split: Split = getattr(shards, side)
    folder = shards.path / f"rows-{PACKING}-{side}-{row_length}{'-cls-sep' * cls_sep}"
    if not folder.exists():
        alone = shards.manifest.text.segments == "sentences"
        documents = np.arange(len(split.sentences)) if alone else np.asarray(split.documents)
        rows = pack(np.asarray(split.sentences), documents, row_length, 2 * cls_sep)
        partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=shards.path))
        for name, array in vars(rows).items():
            np.save(partial / f"{name}.npy", array)
        try:
            partial.rename(folder)
        except OSError:  # another process packed the same rows first
            if not folder.exists():
                raise
            shutil.rmtree(partial)
    rows = Rows(*(_mapped(folder / f"{name}.npy") for name in ("starts", "lengths", "borders")))
    if not _is_packing(rows, len(split.tokens)):
        raise UserError(f"{folder} holds no packing of these shards: delete it to build it anew")
    return PackedRows(split, rows, row_length, cls_sep, shards.manifest.vocabulary_size)


def _mapped(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"cannot read {path} ({error}): delete the folder {path.parent} to build it anew") from None
    return array


def _is_packing(rows: Rows, tokens: int) -> bool:
    """Tell whether the rows hold every token once, in runs that lie within the tokens."""
    arrays = (rows.starts, rows.lengths, rows.borders)
    if [array.dtype.str for array in arrays] != ["<i8", "<i4", "<i8"] or any(array.ndim != 1 for array in arrays):
        return False
    if len(rows.starts) != len(rows.lengths) or len(rows.borders) < 2 or not len(rows.starts):
        return False
    whole = rows.borders[0] == 0 and rows.borders[-1] == len(rows.starts) and (np.diff(rows.borders) > 0).all()
    inside = rows.starts.min() >= 0 and (rows.starts + rows.lengths).max() <= tokens and rows.lengths.min() > 0
    return bool(whole and inside and rows.lengths.sum(dtype=np.int64) == tokens)


def _ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the ranges start, start + 1, ... of the given lengths, one after the other."""
    before = lengths.cumsum() - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())


@lru_cache(maxsize=2)  # a step may touch two epochs
def _epoch_order(seed: int, epoch: int, rows: int) -> NDArray[np.int64]:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch]))).permutation(rows)
