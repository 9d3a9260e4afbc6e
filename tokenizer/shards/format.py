"""Token shards: a folder of flat little-endian files to be memory-mapped, described and sealed by a manifest.

Each side of the held-out split has files of its own, without headers:
`tokens` (ids), `word_starts` (1 where a token starts a word of the tokenizer's), `sentences` (offsets into tokens)
and `documents` (offsets into sentences).
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from configs import Config, UserError
from tokenizer.cleaning import Reason, Side, TextConfig, remarks
from tokenizer.sources.documentation import PackageWords

TokenType = Literal["<u2", "<u4"]
"""NumPy's name of the type of the ids."""
FORMAT: Literal[1] = 1
"""Version of the files and the manifest; shards of another version are refused."""
VALUES_AT_ONCE = 1 << 20
"""Values that are checked together, in memory that does not grow with the file."""
SIDES: tuple[Side, ...] = ("train", "heldout")
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
PARTS = "parts.json"


class Counts(Config):
    """Sizes of one side of the held-out split."""

    documents: int = Field(default=0, ge=0)
    sentences: int = Field(default=0, ge=0)
    words: int = Field(default=0, ge=0)
    """White-space-separated words."""
    tokens: int = Field(default=0, ge=0)
    text_bytes: int = Field(default=0, ge=0)
    """UTF-8 bytes of the sentences before the tokenizer's own normalisation."""

    def __add__(self, other: Self) -> Self:
        """Return the counts of both together."""
        return self.model_validate({name: n + getattr(other, name) for name, n in self})


class FileRecord(Config):
    """One file's size and checksum."""

    size_bytes: int
    sha256: str


class ShardManifest(Config):
    """The contents of a folder of shards and their origin."""

    format: Literal[1]
    token_type: TokenType
    vocabulary_size: int
    tokenizer_sha256: str
    text_fingerprint: str
    text: TextConfig
    train: Counts
    heldout: Counts
    dropped: dict[Reason, int]
    """Documents or sentences that cleaning dropped, by reason."""
    split_at_sentences: bool = False
    """True where all documents fell to one side, so that their sentences were shared out."""
    files: dict[str, FileRecord]
    packages: tuple[PackageWords, ...] = ()

    def remarks(self) -> list[str]:
        """Return those of `cleaning`."""
        return remarks(self.dropped, at_sentences=self.split_at_sentences)


class PartList(Config):
    """The finished parts of a text, beside their folders."""

    fingerprint: str
    """Hash of the tokenizer and of the text."""
    folders: tuple[str, ...]
    """Names of the folders of shards; a part that only repeats earlier texts has none."""


@dataclass(frozen=True)
class ShardArrays:
    """One side of the held-out split, memory-mapped read-only."""

    tokens: NDArray[Any]
    """Ids, uint16 or uint32."""
    word_starts: NDArray[np.uint8]
    """1 where a token starts one of the tokenizer's words, else 0."""
    sentences: NDArray[np.int64]
    """Sentence i is tokens[sentences[i]:sentences[i + 1]]."""
    documents: NDArray[np.int64]
    """Document i is the sentences from documents[i] to documents[i + 1]."""


@dataclass(frozen=True)
class Shards:
    """An opened folder of shards."""

    path: Path
    manifest: ShardManifest
    train: ShardArrays
    heldout: ShardArrays


def token_type(vocabulary_size: int) -> TokenType:
    """Return NumPy's name of the smallest type for the ids of a vocabulary."""
    return "<u2" if vocabulary_size <= 1 << 16 else "<u4"


def layout(side: Side, token_type: TokenType, counts: Counts) -> Mapping[str, tuple[str, int]]:
    """Return the type and the number of values of each of a side's files, by its path in the folder."""
    return {
        f"{side}/tokens.bin": (token_type, counts.tokens),
        f"{side}/word_starts.bin": ("|u1", counts.tokens),
        f"{side}/sentences.bin": ("<i8", counts.sentences + 1),
        f"{side}/documents.bin": ("<i8", counts.documents + 1),
    }


def record(path: Path) -> FileRecord:
    """Return the size and the checksum of a file."""
    with path.open("rb") as file:
        return FileRecord(size_bytes=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def open_shards(path: Path) -> Shards:
    """Map the shards in the folder `path`, whatever their size; none, incomplete or foreign ones are a UserError.

    Their content is not read: `verify` does that, once, before they are packed into rows.
    """
    manifest = read_manifest(path)
    train, heldout = (layout(side, manifest.token_type, getattr(manifest, side)) for side in SIDES)
    if set(manifest.files) != {*train, *heldout, TOKENIZER}:
        raise _damaged(path, "its manifest names other files")
    for name, expected in manifest.files.items():
        file = path / name
        if not file.exists():
            raise _damaged(path, f"{file.name} is missing")
        if (size := file.stat().st_size) != expected.size_bytes:
            raise _damaged(path, f"{file.name} has {size:,} bytes instead of {expected.size_bytes:,}")
    for name, (kind, count) in (*train.items(), *heldout.items()):
        if manifest.files[name].size_bytes != np.dtype(kind).itemsize * count:
            raise _damaged(path, f"{name} does not have the size that its counts give")
    return Shards(path, manifest, _map(path, train), _map(path, heldout))


def verify(shards: Shards, side: Side) -> None:
    """Raise a UserError for a wrong checksum of one side's files or of the tokenizer, or ids outside the vocabulary."""
    split: ShardArrays = getattr(shards, side)
    for name, expected in shards.manifest.files.items():
        if name.startswith((f"{side}/", TOKENIZER)) and record(shards.path / name).sha256 != expected.sha256:
            raise _damaged(shards.path, f"the checksum of {Path(name).name} is wrong")
    for offsets, end in ((split.sentences, len(split.tokens)), (split.documents, len(split.sentences) - 1)):
        rises = all((np.diff(part) >= 0).all() for part in _parts(offsets, overlap=1))
        if offsets[0] != 0 or offsets[-1] != end or not rises:
            raise _damaged(shards.path, f"the offsets of the {side} side do not fit")
    if any(int(part.max()) >= shards.manifest.vocabulary_size for part in _parts(split.tokens)):
        raise _damaged(shards.path, f"the {side} side has ids outside the vocabulary")


def _parts(array: NDArray[Any], overlap: int = 0) -> Iterator[NDArray[Any]]:
    """Yield an array in parts, each with the first values of the next one."""
    for start in range(0, len(array), VALUES_AT_ONCE):
        yield array[start : start + VALUES_AT_ONCE + overlap]


def read_parts(path: Path) -> PartList:
    """Return the list of finished parts at `path`; a damaged one is a UserError."""
    try:
        return PartList.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(f"{path} is damaged, or of another version: remove it") from error


def parts_of(path: Path) -> list[Path]:
    """Return the folders of shards in a folder that holds a text in parts, else the folder itself."""
    parts = path / PARTS
    return [path / name for name in read_parts(parts).folders] if parts.exists() else [path]


def read_manifest(path: Path) -> ShardManifest:
    """Return the manifest of the shards in the folder `path`; a missing, damaged or foreign one is a UserError."""
    try:
        return ShardManifest.model_validate_json((path / MANIFEST).read_bytes(), strict=False)
    except FileNotFoundError:
        raise UserError(f"{path} holds no token shards: build them with python -m tokenizer.encode") from None
    except OSError as error:
        raise UserError(f"cannot read {path / MANIFEST}: {error.strerror}") from error
    except ValidationError as error:
        raise _damaged(path, f"{MANIFEST}: {error.errors()[0]['msg']}, or it is of another version") from error


def _map(path: Path, files: Mapping[str, tuple[str, int]]) -> ShardArrays:
    """Map a side's files read-only; an empty one, which cannot be mapped, is an empty array."""
    # As plain arrays: every slice of a memmap is made in Python.
    arrays = (
        np.asarray(np.memmap(path / name, kind, "r", shape=(count,))) if count else np.empty(0, kind)
        for name, (kind, count) in files.items()
    )
    return ShardArrays(*arrays)


def _damaged(path: Path, fault: str) -> UserError:
    return UserError(f"the shards in {path} are damaged or foreign ({fault}): remove the folder and build them again")
