"""Small corpora, layouts and models that the tests of this folder share."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlm.data.batches import PackedRows
from mlm.data.masking import Masking
from mlm.data.order import RowOrder
from mlm.distributed import device
from mlm.distributed.world import World
from mlm.model.attention import SegmentMask
from mlm.model.encoder import EncoderConfig
from mlm.model.heads import MaskedLanguageModel, ModelConfig
from mlm.model.initialize import initialize
from mlm.objectives.masked import MaskedLMTask, heldout_batches
from tokenizer.shards.format import ShardArrays
from tokenizer.shards.rows import pack_window, seal
from tokenizer.special_tokens import SpecialTokens
from tokenizer.vocabulary import CLS, MASK, PAD, SEP, SPECIAL_TOKENS, UNK

VOCABULARY = 40
ROW_LENGTH = 24
CPU = World(torch.device("cpu"), torch.float32)
OURS = {
    adds: SpecialTokens(PAD, MASK, UNK, CLS, SEP, adds, between=(SEP,), ids=(PAD, UNK, CLS, SEP, MASK))
    for adds in (False, True)
}
"""The special tokens of our own vocabularies, by `vocabulary.cls_sep`."""
TINY = ModelConfig(encoder=EncoderConfig(width=16, heads=2, feedforward_width=24, layers=2))


def offsets(lengths: Sequence[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def split_of(documents: Sequence[Sequence[int]], seed: int = 0, vocabulary_size: int = VOCABULARY) -> ShardArrays:
    """Return random tokens in documents of sentences of the given lengths; every sentence begins with a word."""
    rng = np.random.default_rng(seed)
    sentences = offsets([length for document in documents for length in document])
    tokens = rng.integers(len(SPECIAL_TOKENS), vocabulary_size, sentences[-1])
    word_starts = rng.random(sentences[-1]) < 0.6
    word_starts[sentences[:-1]] = True
    return ShardArrays(
        tokens.astype(np.uint16), word_starts.astype(np.uint8), sentences, offsets(list(map(len, documents)))
    )


def packed(
    split: ShardArrays,
    row_length: int = ROW_LENGTH,
    *,
    cls_sep: bool = False,
    alone: bool = False,
    special: SpecialTokens | None = None,
) -> PackedRows:
    """Pack documents, or each sentence alone."""
    special = special or OURS[cls_sep]
    end = len(split.sentences if alone else split.documents) - 1
    rows = pack_window(split, (0, end), row_length, special, "<u2", alone=alone)
    seal(rows)
    return PackedRows((rows,), RowOrder((len(rows),)), special, VOCABULARY)


def joined(parts: Sequence[PackedRows], shares: Sequence[float] = ()) -> PackedRows:
    """Return rows of several folders as one corpus, or as a mixture of corpora by their shares."""
    sizes = tuple(map(len, parts))
    order = RowOrder(sizes, tuple(shares)) if shares else RowOrder((sum(sizes),))
    return replace(parts[0], files=tuple(part.files[0] for part in parts), order=order)


def sentences(count: int, seed: int = 0, longest: int = ROW_LENGTH) -> PackedRows:
    """Return rows of so many sentences of random length, each a segment of its own."""
    lengths = np.random.default_rng(seed).integers(1, longest + 1, count)
    return packed(split_of([[length] for length in lengths.tolist()], seed), alone=True)


def task_of(
    train: PackedRows, *, batch_rows: int = 6, micro_batch_rows: int = 6, masking: Masking | None = None
) -> MaskedLMTask:
    masking = masking or Masking()
    heldout = heldout_batches(sentences(12, seed=99), masking, CPU, most_rows=8, micro_batch_rows=4)
    return MaskedLMTask(train, heldout, masking, CPU, 0, batch_rows, micro_batch_rows)


def model_of(config: ModelConfig = TINY, seed: int = 0) -> MaskedLanguageModel:
    model = MaskedLanguageModel(config, VOCABULARY, ROW_LENGTH)
    initialize(model, config.encoder, seed)
    return model


def rows_of(segment_lengths: Sequence[Sequence[int]], length: int) -> tuple[Tensor, Tensor]:
    """Return segments and positions of rows that hold segments of the given lengths, then padding."""
    segments_BL = torch.zeros(len(segment_lengths), length, dtype=torch.int32)
    positions_BL = torch.zeros(len(segment_lengths), length, dtype=torch.int64)
    for row, lengths in enumerate(segment_lengths):
        begin = 0
        for number, size in enumerate(lengths, start=1):
            segments_BL[row, begin : begin + size] = number
            positions_BL[row, begin : begin + size] = torch.arange(size)
            begin += size
    return segments_BL, positions_BL


def segment_mask_of(
    segment_lengths: Sequence[Sequence[int]], length: int, dtype: torch.dtype = torch.float32
) -> SegmentMask:
    return SegmentMask.of(*rows_of(segment_lengths, length), dtype)


def same(one: Any, other: Any) -> bool:
    """Return whether two nested structures are equal bit for bit."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@contextmanager
def slow_in(dtype: torch.dtype) -> Iterator[None]:
    """Compare precisions as a processor does that multiplies matrices of one type at half the rate of the others."""

    def measure(where: torch.device, measured: torch.dtype, *shape: int, seconds: float = 0.0) -> float:
        return 1e9 if measured == dtype else 2e9

    with mock.patch.object(device, "measure_peak", measure):
        yield


class Lines(logging.Handler):
    """Appends each logged message to a list."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
