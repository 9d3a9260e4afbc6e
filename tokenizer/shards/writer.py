"""The folder in which one process at a time builds shards, and the state from which it resumes after a kill."""

import itertools
import logging
import os
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from tokenizers import Tokenizer

from configs import Config, UserError, streams
from configs.files import lock, sync
from tokenizer import vocabulary
from tokenizer.cached_encoder import Encoded
from tokenizer.cleaning import Reason, SeenHashes, Side, TextConfig
from tokenizer.shards import format
from tokenizer.shards.format import SIDES, Counts, ShardManifest, TokenType
from tokenizer.sources import Documentation, documentation

logger = logging.getLogger(__name__)

_DATABASE = "build.sqlite"
_HASHES_AT_ONCE = 1 << 16


class BuildState(Config):
    """The progress of a build, committed in one transaction with the hashes of the texts seen so far."""

    tokenizer_sha256: str
    text_fingerprint: str
    consumed_documents: int = 0
    counts: dict[Side, Counts] = Field(default={side: Counts() for side in SIDES})
    """Valid contents of each side's files; a killed process may have written beyond them."""
    dropped: dict[Reason, int] = Field(default={})
    """Documents or sentences that cleaning dropped, by reason."""
    split_at_sentences: bool = False
    """True where all documents fell to one side, so that their sentences are shared out."""

    def has_inputs_of(self, other: "BuildState | ShardManifest") -> bool:
        """Return True if both are of the same tokenizer and text."""
        return (self.tokenizer_sha256, self.text_fingerprint) == (other.tokenizer_sha256, other.text_fingerprint)


class ShardWriter(ExitStack):
    """The files of both sides, which it closes as a context, and the database with the state of the build."""

    def __init__(self, folder: Path, database: sqlite3.Connection, state: BuildState, token_type: TokenType) -> None:
        """Open the files, and truncate each to the values that `state` gives it."""
        super().__init__()
        self.database, self.state = database, state
        self.counts = dict(state.counts)
        self._files: dict[Side, list[tuple[BinaryIO, np.dtype[Any]]]] = {side: [] for side in SIDES}
        for side, files in self._files.items():
            (folder / side).mkdir(exist_ok=True)
            for name, (kind, count) in format.layout(side, token_type, state.counts[side]).items():
                file = self.enter_context((folder / name).open("ab"))
                file.truncate(np.dtype(kind).itemsize * count)  # lengthens new offset files by their first value, 0
                files.append((file, np.dtype(kind)))

    def see(self, hashes: NDArray[np.void]) -> None:
        """Take texts of these hashes for seen, unless a former process has committed that already."""
        if self.state.consumed_documents:
            return
        seen = SeenHashes(self.database)
        for start in range(0, len(hashes), _HASHES_AT_ONCE):
            seen.add(hashes[start : start + _HASHES_AT_ONCE].tolist())

    def write(self, side: Side, encoded: Encoded, document_lengths: NDArray[np.int64], new: Counts) -> None:
        """Append documents: the tokens of their sentences, the number of sentences of each, and their counts."""
        old = self.counts[side]
        sentences, documents = old.tokens + np.cumsum(encoded.lengths), old.sentences + np.cumsum(document_lengths)
        arrays: tuple[NDArray[Any], ...] = (encoded.tokens, encoded.word_starts, sentences, documents)
        for (file, kind), array in zip(self._files[side], arrays, strict=True):
            try:
                file.write(array.astype(kind).data)
            except OSError as error:
                raise OSError(error.errno, error.strerror, file.name) from error
        self.counts[side] = old + new

    def commit(self, consumed: int, dropped: Mapping[Reason, int]) -> None:
        """Save all that was written, as the result of the first `consumed` documents of the source."""
        for file, _ in itertools.chain.from_iterable(self._files.values()):
            file.flush()
            os.fsync(file.fileno())
        changes = {"consumed_documents": consumed, "counts": dict(self.counts), "dropped": dict(dropped)}
        self.state = self.state.model_copy(update=changes)
        self.database.execute("DELETE FROM state")
        self.database.execute("INSERT INTO state VALUES (?)", (self.state.model_dump_json(),))
        self.database.commit()
        if not streams.messages().isatty():  # a terminal has a progress bar
            logger.info("shards: %s documents", f"{consumed:,}")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make `folder` and hold its lock, which ends with the process, however that ends; wait for another holder."""
    while (descriptor := _lock(folder)) is None:
        pass
    try:
        if any(folder.iterdir()) and not (folder / _DATABASE).exists():
            raise UserError(f"{folder} is in the way and holds no unfinished build: move it, or name another output")
        yield
    finally:
        os.close(descriptor)


@contextmanager
def opened(folder: Path, start: BuildState, token_type: TokenType) -> Iterator[ShardWriter]:
    """Open the build in `folder` to resume it; one of another text or tokenizer than `start` is removed first."""
    with closing(_connected(folder)) as database:
        try:
            saved = database.execute("SELECT saved FROM state").fetchone()
            state = BuildState.model_validate_json(saved[0]) if saved else start
        except (sqlite3.DatabaseError, ValidationError):  # killed before there was a state; of another version; damaged
            state = None
    if state is None or not state.has_inputs_of(start):
        state = start
        clear(folder)
    with closing(_connected(folder)) as database, ShardWriter(folder, database, state, token_type) as writer:
        database.execute("PRAGMA journal_mode = WAL")  # pages beyond the cache reach the disk without a wait
        database.execute("PRAGMA cache_size = -8192")  # 8 MB
        database.execute("CREATE TABLE IF NOT EXISTS state (saved TEXT)")
        yield writer


def finish(folder: Path, output: Path, text: TextConfig, tokenizer: Tokenizer, state: BuildState) -> None:
    """Write the tokenizer and the manifest of the built files, remove the database, rename `folder` to `output`."""
    (folder / format.TOKENIZER).write_bytes(vocabulary.serialize(tokenizer))
    token_type = format.token_type(tokenizer.get_vocab_size())
    names = [format.TOKENIZER, *(name for side in SIDES for name in format.layout(side, token_type, Counts()))]
    manifest = ShardManifest(
        format=format.FORMAT,
        token_type=token_type,
        vocabulary_size=tokenizer.get_vocab_size(),
        tokenizer_sha256=state.tokenizer_sha256,
        text_fingerprint=state.text_fingerprint,
        text=text,
        train=state.counts["train"],
        heldout=state.counts["heldout"],
        dropped=dict(sorted(state.dropped.items())),
        split_at_sentences=state.split_at_sentences,
        files={name: format.record(folder / name) for name in names},
        packages=tuple(documentation.packages()) if isinstance(text.source, Documentation) else (),
    )
    (folder / format.MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    for path in (folder / format.TOKENIZER, folder / format.MANIFEST, folder):  # the others are synced by each commit
        sync(path)
    folder.rename(output)
    sync(output.parent)
    for path in output.glob(f"{_DATABASE}*"):  # and its journal
        path.unlink()


def clear(folder: Path) -> None:
    """Empty the folder of a build; the database goes last: without it a folder is taken for another's."""
    for path in sorted(folder.iterdir(), key=lambda path: (path.name == _DATABASE, path.name)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _lock(folder: Path) -> int | None:
    """Return the descriptor of `folder`, made and locked; None if another holder has just renamed or removed it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir()
    except FileExistsError:
        if folder.is_symlink() and not folder.exists():  # it would be tried for ever
            raise
    with suppress(FileNotFoundError), ExitStack() as unless_locked:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        unless_locked.callback(os.close, descriptor)
        lock(descriptor, folder, wait=True)
        if os.path.samestat(folder.stat(), os.fstat(descriptor)):
            unless_locked.pop_all()
            return descriptor
    return None


def _connected(folder: Path) -> sqlite3.Connection:
    # The holder of the folder's lock is alone: it needs neither locks of the database nor memory shared with others,
    # which network disks may lack.
    database = sqlite3.connect(f"{(folder / _DATABASE).absolute().as_uri()}?vfs=unix-none", uri=True)
    database.execute("PRAGMA locking_mode = EXCLUSIVE")
    return database
