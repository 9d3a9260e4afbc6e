"""Rows of a fixed length, packed from one side of the shards: each is a record with a checksum, read in one piece.

Opening them costs the same whatever their number. A folder of rows holds `rows.bin` (the records), `documents.bin` (the
number of each segment's document) and `rows.json`, which describes both.
"""

import itertools
import os
import tempfile
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from tqdm import tqdm

from configs import Config, UserError
from configs.files import ending_by_signals, sync
from configs.streams import messages
from tokenizer.cleaning import Side
from tokenizer.shards.format import SIDES, ShardArrays, Shards, TokenType, open_shards, verify
from tokenizer.shards.packing import WINDOW_SENTENCES, Rows, pack, windows
from tokenizer.shards.workers import Workers
from tokenizer.sources import hash_texts
from tokenizer.special_tokens import SpecialTokens

VERSION: Literal[3] = 3
"""Version of the packing and of its files, in the name of their folder; raise it whenever either changes."""
TEXT, SEGMENT, WORD, SPECIAL = 1, 2, 4, 8
"""Marks of a slot: it is not padding, begins a segment, begins a word of the tokenizer, holds [CLS] or [SEP]."""
ROWS_AT_ONCE = 2048
"""Rows that are laid out together, in arrays of 64-bit numbers."""
HEADER, RECORDS, DOCUMENTS = "rows.json", "rows.bin", "documents.bin"


class RowsHeader(Config):
    """The description of a folder of rows."""

    version: Literal[3]
    source: str
    """Hash of the checksums of the shards that the rows were packed from."""
    token_type: TokenType
    row_length: int = Field(ge=1)
    rows: int = Field(ge=1)
    segment_lengths: tuple[int, ...]
    """Number of segments of each length, from 0 tokens to `row_length`, special tokens aside."""


class Records:
    """The records of a file, of which only those asked for are read, all of them at once."""

    def __init__(self, path: Path, dtype: np.dtype[Any], count: int) -> None:
        """Open the file of `count` records."""
        self.descriptor, self.dtype, self.count = os.open(path, os.O_RDONLY), dtype, count
        weakref.finalize(self, os.close, self.descriptor)

    def __len__(self) -> int:
        """Return the number of records."""
        return self.count

    def __getitem__(self, rows_B: NDArray[np.int64]) -> NDArray[Any]:
        """Return copies of some records."""
        size = self.dtype.itemsize
        content, places = bytearray(len(rows_B) * size), [row * size for row in rows_B.tolist()]
        if hasattr(os, "posix_fadvise"):  # the disk seeks all of them at the same time, and nothing beside them
            for place in places:
                os.posix_fadvise(self.descriptor, place, size, os.POSIX_FADV_WILLNEED)
        view = memoryview(content)
        for number, place in enumerate(places):
            part = view[number * size : (number + 1) * size]
            while part and (read := os.preadv(self.descriptor, [part], place)):  # some network disks give less at once
                part, place = part[read:], place + read
        return np.frombuffer(content, self.dtype)


@dataclass(frozen=True)
class RowFile:
    """The rows of one side of one folder of shards."""

    records: NDArray[Any] | Records
    """A record each, of `record_type`."""
    documents: NDArray[np.int64]
    """The number of each segment's document in its side of the shards, in the order of the rows."""
    segment_lengths: NDArray[np.int64]
    """Number of segments of each length in tokens, special tokens aside."""
    folder: Path = Path("memory")
    shards: Path = Path("memory")
    """The folder that they were packed from."""

    @classmethod
    def open(cls, folder: Path, shards: Shards) -> "RowFile":
        """Map the rows of `shards` in `folder`; those that are incomplete or of other shards raise UserError."""
        try:
            header = RowsHeader.model_validate_json((folder / HEADER).read_bytes(), strict=False)
        except (OSError, ValidationError) as error:
            raise _foreign(folder, f"{HEADER} cannot be read") from error
        if header.source != source_of(shards):
            raise _foreign(folder, "they were packed from other shards")
        kind, segments = record_type(header.row_length, header.token_type), sum(header.segment_lengths)
        sizes = {RECORDS: header.rows * kind.itemsize, DOCUMENTS: 8 * segments}
        for name, size in sizes.items():
            if not (folder / name).is_file() or (folder / name).stat().st_size != size:
                raise _foreign(folder, f"{name} does not have {size:,} bytes")
        documents = np.memmap(folder / DOCUMENTS, "<i8", "r")
        records = Records(folder / RECORDS, kind, header.rows)
        return cls(records, documents, np.array(header.segment_lengths), folder, shards.path)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.records)

    @property
    def row_length(self) -> int:
        """Number of slots of a row."""
        return int(self.records.dtype["ids"].shape[0])

    def read(self, rows_B: NDArray[np.int64]) -> NDArray[Any]:
        """Return copies of some records; one that does not fit its checksum is a UserError."""
        records_B = self.records[rows_B]
        checksums_B = records_B["checksum"].tolist()
        for row, checksum, content in zip(rows_B.tolist(), checksums_B, _contents(records_B), strict=True):
            if zlib.crc32(content) != checksum:
                raise UserError(f"row {row} in {self.folder} is damaged: remove the folder to have it packed again")
        return records_B

    def documents_of(self, rows_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of the documents in some rows, in order."""
        records_B = self.read(rows_B)
        firsts, counts = records_B["first_segment"], (records_B["marks"] & SEGMENT > 0).sum(axis=1)
        segments = [np.arange(first, first + count) for first, count in zip(firsts, counts, strict=True)]
        return np.unique(self.documents[np.concatenate(segments)])


def record_type(row_length: int, token_type: TokenType) -> np.dtype[Any]:
    """Return the type of a row's record: ids and marks of its slots, the number of its first segment, a checksum."""
    slots = [("ids", token_type, (row_length,)), ("marks", "u1", (row_length,))]
    return np.dtype([*slots, ("first_segment", "<i8"), ("checksum", "<u4")])


def seal(window: RowFile, first_segment: int = 0) -> NDArray[Any]:
    """Return a packed window's records, their segments numbered from `first_segment`, each with its checksum."""
    records = window.records
    assert isinstance(records, np.ndarray)
    records["first_segment"] += first_segment
    records["checksum"] = [zlib.crc32(content) for content in _contents(records)]
    return records


def _contents(records: NDArray[Any]) -> Iterator[memoryview]:
    """Yield the bytes of each record that its checksum covers."""
    end = records.dtype.itemsize - records.dtype["checksum"].itemsize
    for content in records.view(np.uint8).reshape(len(records), -1):
        yield content.data[:end]


def beside(shards: Shards, side: Side, row_length: int, special: SpecialTokens) -> Path:
    """Return the folder in that of the shards for one side in rows, which need not be there."""
    return shards.path / f"rows-{VERSION}-{side}-{row_length}{'-cls-sep' * special.adds_cls_sep}"


def find_or_pack(shards: Shards, side: Side, row_length: int, special: SpecialTokens, cache: Path) -> RowFile:
    """Return one side of the shards in rows; if neither their folder nor `cache` has them, pack them into the cache.

    Shards that are damaged, rows of other shards, and a cache that cannot be written raise UserError.
    """
    inside = beside(shards, side, row_length, special)
    cached = cache / f"rows-{source_of(shards):.16}" / inside.name
    if inside.exists():
        return RowFile.open(inside, shards)
    if not cached.exists():
        try:
            write(shards, side, row_length, special, cached)
        except OSError as error:
            if error.filename is not None and Path(error.filename).is_relative_to(shards.path):
                raise  # reading the shards failed
            raise UserError(
                f"the text is not packed into rows of {row_length}, and the cache {cache} cannot be written"
                f" ({error.strerror}): pack it by python -m tokenizer.encode --row-lengths {row_length}"
            ) from error
    return RowFile.open(cached, shards)


def missing(shards: Shards, row_lengths: Sequence[int], special: SpecialTokens) -> list[tuple[Side, int]]:
    """Return the sides and lengths whose rows are not in the folder of the shards."""
    both = itertools.product(SIDES, row_lengths)
    return [(side, length) for side, length in both if not beside(shards, side, length, special).exists()]


def write_beside(shards: Shards, row_lengths: Sequence[int], special: SpecialTokens, workers: int) -> None:
    """Pack both sides of the shards into rows of these lengths in their folder, but for those that are there."""
    for side, length in missing(shards, row_lengths, special):
        write(shards, side, length, special, beside(shards, side, length, special), workers=workers)


def write(
    shards: Shards,
    side: Side,
    row_length: int,
    special: SpecialTokens,
    folder: Path,
    *,
    workers: int = 0,
    window_sentences: int = WINDOW_SENTENCES,
) -> None:
    """Pack one side of the shards into rows in `folder`, whole or not at all, in memory that does not grow.

    Documents are packed together in windows of about `window_sentences` sentences, in so many other processes.
    """
    verify(shards, side)
    split, kind = getattr(shards, side), shards.manifest.token_type
    alone = shards.manifest.text.segments == "sentences"
    counts, rows, segments = np.zeros(row_length + 1, np.int64), 0, 0
    folder.parent.mkdir(parents=True, exist_ok=True)
    found = list(windows(range(len(split.sentences)) if alone else split.documents, window_sentences))
    start = partial(_start_packing, shards.path, side, row_length, special)
    with (
        ending_by_signals(),  # else the folder would stay
        tempfile.TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as temporary,
        closing(Workers(start, workers if len(found) > 1 else 0)) as packing,
    ):
        with Path(temporary, RECORDS).open("wb") as records_file, Path(temporary, DOCUMENTS).open("wb") as documents:
            shown = tqdm(packing.map(found), folder.name, len(found), unit=" windows", disable=None, file=messages())
            for packed in shown:
                records_file.write(seal(packed, segments).data)
                documents.write(packed.documents.data)
                counts += packed.segment_lengths
                rows, segments = rows + len(packed), segments + len(packed.documents)
        header = RowsHeader(
            version=VERSION,
            source=source_of(shards),
            token_type=kind,
            row_length=row_length,
            rows=rows,
            segment_lengths=tuple(counts.tolist()),
        )
        Path(temporary, HEADER).write_text(header.model_dump_json() + "\n", encoding="utf-8")
        for path in (*Path(temporary).iterdir(), Path(temporary)):
            sync(path)
        Path(temporary).chmod(folder.parent.stat().st_mode & 0o777)  # a temporary one is private
        try:
            Path(temporary).rename(folder)
        except OSError:
            if not folder.exists():  # else another process packed the same rows first
                raise


def _start_packing(
    path: Path, side: Side, row_length: int, special: SpecialTokens
) -> Callable[[tuple[int, int]], RowFile]:
    """Return the function that packs a window of the shards in the folder `path`."""
    shards = open_shards(path)
    alone = shards.manifest.text.segments == "sentences"
    settings = (row_length, special, shards.manifest.token_type)
    return lambda window: pack_window(getattr(shards, side), window, *settings, alone=alone)


def pack_window(
    split: ShardArrays,
    window: tuple[int, int],
    row_length: int,
    special: SpecialTokens,
    token_type: TokenType,
    *,
    alone: bool = False,
) -> RowFile:
    """Return some of the documents, or sentences if they stand `alone`, in rows without checksums.

    `window` is the first of them and the one after the last. Segments are numbered from 0.
    """
    first, last = window
    borders = np.arange(first, last + 1) if alone else np.asarray(split.documents[first : last + 1])
    sentences = np.asarray(split.sentences[borders[0] : borders[-1] + 1])
    rows = pack(sentences, borders, row_length, 2 * special.adds_cls_sep)
    segment_sentences = np.searchsorted(sentences, rows.starts, side="right") - 1 + borders[0]
    documents = np.searchsorted(split.documents, segment_sentences, side="right") - 1
    records = np.zeros(len(rows), record_type(row_length, token_type))
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        _lay_out(records[part], split, rows, np.arange(len(rows))[part], special)
    return RowFile(records, documents, np.bincount(rows.lengths, minlength=row_length + 1))


def _lay_out(
    records: NDArray[Any], split: ShardArrays, rows: Rows, rows_B: NDArray[np.int64], special: SpecialTokens
) -> None:
    """Fill the records of some rows."""
    B, L = records["ids"].shape
    framed = int(special.adds_cls_sep)
    counts_B = rows.borders[rows_B + 1] - rows.borders[rows_B]
    runs = _ranges(rows.borders[rows_B], counts_B)
    starts, lengths = rows.starts[runs], rows.lengths[runs].astype(np.int64)
    slots = lengths + 2 * framed
    before = slots.cumsum() - slots
    begins = before - np.repeat(before[counts_B.cumsum() - counts_B] - np.arange(B) * L, counts_B)
    ids, marks = np.full(B * L, special.pad, records["ids"].dtype), np.zeros(B * L, np.uint8)
    read, written = _ranges(starts, lengths), _ranges(begins + framed, lengths)
    ids[written] = split.tokens[read]
    marks[written] = TEXT | WORD * split.word_starts[read]
    if framed:
        ids[begins], ids[begins + slots - 1] = special.framed([])
        marks[begins] = marks[begins + slots - 1] = TEXT | SPECIAL
    marks[begins + framed] |= WORD  # a segment that begins within a sentence may begin within a word
    marks[begins] |= SEGMENT
    records["ids"], records["marks"] = ids.reshape(B, L), marks.reshape(B, L)
    records["first_segment"] = rows.borders[rows_B]


def _ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the ranges start, start + 1, ... of the given lengths, one after the other."""
    before = lengths.cumsum() - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())


def source_of(shards: Shards) -> str:
    """Return the hash of the checksums of the shards, by which rows are theirs."""
    return hash_texts(*(record.sha256 for record in shards.manifest.files.values()))


def _foreign(folder: Path, fault: str) -> UserError:
    return UserError(f"{folder} holds no rows of its shards ({fault}): remove it to have them packed again")
