"""Build token shards from text: streaming, in flat memory, and going on where a killed build was."""

import dataclasses
import errno
import fcntl
import hashlib
import itertools
import os
import shutil
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import numpy as np
from pydantic import Field
from tokenizers import Tokenizer
from tqdm import tqdm

from configs import Config, UserError
from tokenizer import shards, vocabulary
from tokenizer.lookup import Lookup
from tokenizer.shards import SIDES, Counts, FileRecord, Manifest, PackageRecord
from tokenizer.text import Cleaner, Seen, Side, Text

_BATCH_CHARACTERS = 4_000_000
_STATE = "build.sqlite"


class _State(Config):
    """How far a build is, as committed together with the hashes of the texts seen."""

    tokenizer_sha256: str
    text_fingerprint: str
    consumed_documents: int = 0
    counts: dict[Side, Counts] = Field(default={side: Counts() for side in SIDES})
    dropped: dict[str, int] = Field(default={})


def build(
    text: Text, tokenizer: Tokenizer, output: Path, *, fingerprint: str | None = None, commit_seconds: float = 5.0
) -> None:
    """Write the shards of `text` to the folder `output`, unless they are there already.

    The work is done in `output` + '.partial'. Killed at any time, the next call goes on from the last commit, at most
    `commit_seconds` of work before, and the result is the same byte for byte. A second process waits for the first.
    `fingerprint` is `text`'s, where the caller knows it.

    Raises:
        UserError: the text cannot be read, one side of the split is empty, or `output` holds something else.
        OSError: the disk is full or not writable.

    """
    start = _State(
        tokenizer_sha256=vocabulary.sha256(tokenizer),
        text_fingerprint=fingerprint or text.fingerprint(),
    )
    if _is_built(output, start):
        return
    partial = output.with_name(f"{output.name}.partial")
    with _locked(partial):
        if _is_built(output, start):  # by the process that had the lock before this one
            partial.rmdir()
            return
        try:
            with _Builder(text, tokenizer, partial, start) as builder:
                builder.run(commit_seconds)
                builder.seal()
        except UserError:
            shutil.rmtree(partial)
            raise
        except sqlite3.OperationalError as error:
            raise OSError(errno.ENOSPC, f"cannot write ({error})", str(partial)) from None
        partial.rename(output)


class _SideWriter:
    """Appends one side's sentences to its files."""

    def __init__(self, folder: Path, side: Side, token_type: str, counts: Counts) -> None:
        """Open the files and cut them to what `counts` says is in them."""
        (folder / side).mkdir(exist_ok=True)
        self.counts, self._side, self._token_type = counts, side, token_type
        self._files = [(folder / name).open("ab") for name in shards.layout(side, token_type, counts)]
        for file, (kind, count) in zip(self._files, self._layout(), strict=True):
            file.truncate(np.dtype(kind).itemsize * count)  # lengthens new offset files by their first value, 0
        self._documents: list[int] = []
        self._sentences: list[str] = []

    def _layout(self) -> Iterator[tuple[str, int]]:
        return iter(shards.layout(self._side, self._token_type, self.counts).values())

    def add(self, sentences: list[str]) -> None:
        """Take in a document, to be written by the next `flush`."""
        self._sentences += sentences
        self._documents.append(len(sentences))

    def flush(self, lookup: Lookup) -> None:
        """Encode and write what was added."""
        if not self._documents:
            return
        encoded, old = lookup.encode(self._sentences), self.counts
        values = (
            encoded.tokens,
            encoded.word_starts,
            old.tokens + np.cumsum(encoded.lengths),
            old.sentences + np.cumsum(self._documents),
        )
        for file, (kind, _), array in zip(self._files, self._layout(), values, strict=True):
            file.write(array.astype(kind).data)
        self.counts = Counts(
            documents=old.documents + len(self._documents),
            sentences=old.sentences + len(self._sentences),
            words=old.words + sum(text.count(" ") + (text[0] != " ") for text in self._sentences),
            tokens=old.tokens + len(encoded.tokens),
            text_bytes=old.text_bytes + sum(len(text.encode()) for text in self._sentences),
        )
        self._documents, self._sentences = [], []

    def sync(self) -> None:
        """Return when what was written has reached the disk."""
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        for file in self._files:
            file.close()


class _Builder:
    """The partial folder of one build, and what is open while it is filled."""

    def __init__(self, text: Text, tokenizer: Tokenizer, folder: Path, start: _State) -> None:
        """Go on with the build in `folder`, or from `start` if it holds none or another."""
        self._text, self._tokenizer, self._folder = text, tokenizer, folder
        self._state = _saved_state(folder, start)
        self._open = ExitStack()
        self._database = self._open.enter_context(closing(sqlite3.connect(folder / _STATE)))
        self._database.execute("CREATE TABLE IF NOT EXISTS state (saved TEXT)")
        self._cleaner = Cleaner(text, Seen(self._database), Counter(self._state.dropped))
        self._token_type = shards.token_type(tokenizer.get_vocab_size())
        self._writers = {
            side: self._open.enter_context(closing(_SideWriter(folder, side, self._token_type, counts)))
            for side, counts in self._state.counts.items()
        }
        self._lookup = Lookup(tokenizer)

    def __enter__(self) -> "_Builder":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def run(self, commit_seconds: float) -> None:
        """Write every document that the state does not hold yet."""
        pending_characters, committed = 0, time.monotonic()
        consumed = self._state.consumed_documents
        documents = itertools.islice(self._text.source.documents(), consumed, None)
        for document in tqdm(documents, "shards", initial=consumed, unit=" documents", disable=None):
            consumed += 1
            passage = self._cleaner.clean(document)
            if passage is not None:
                self._writers[passage.side].add(passage.sentences)
            pending_characters += len(document.text)
            if pending_characters > _BATCH_CHARACTERS:
                pending_characters = 0
                self._flush()
                if time.monotonic() - committed > commit_seconds:
                    self._commit(consumed)
                    committed = time.monotonic()
        self._flush()
        self._commit(consumed)

    def _flush(self) -> None:
        for writer in self._writers.values():
            writer.flush(self._lookup)

    def _commit(self, consumed: int) -> None:
        for writer in self._writers.values():
            writer.sync()
        self._state = self._state.model_copy(
            update={
                "consumed_documents": consumed,
                "counts": {side: writer.counts for side, writer in self._writers.items()},
                "dropped": dict(self._cleaner.dropped),
            }
        )
        self._database.execute("DELETE FROM state")
        self._database.execute("INSERT INTO state VALUES (?)", (self._state.model_dump_json(),))
        self._database.commit()

    def seal(self) -> None:
        """Describe the finished files in a manifest, and remove what only the build needed."""
        state = self._state
        _check_sides(state)
        self._open.close()
        tokenizer_json = vocabulary.serialise(self._tokenizer)
        (self._folder / shards.TOKENIZER).write_bytes(tokenizer_json)
        names = [shards.TOKENIZER]
        for side, counts in state.counts.items():
            names += shards.layout(side, self._token_type, counts)
        manifest = Manifest(
            format=shards.FORMAT,
            token_type=self._token_type,
            vocabulary_size=self._tokenizer.get_vocab_size(),
            tokenizer_sha256=state.tokenizer_sha256,
            text_fingerprint=state.text_fingerprint,
            text=self._text,
            train=state.counts["train"],
            heldout=state.counts["heldout"],
            dropped=state.dropped,
            packages=tuple(PackageRecord(**dataclasses.asdict(package)) for package in self._text.source.packages()),
            files={name: _record(self._folder / name) for name in names},
        )
        (self._folder / shards.MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        (self._folder / _STATE).unlink()


def _record(path: Path) -> FileRecord:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileRecord(size_bytes=path.stat().st_size, sha256=digest)


def _check_sides(state: _State) -> None:
    total = sum(counts.documents for counts in state.counts.values())
    if not total:
        raise UserError("the text is empty: after cleaning, no sentence of it is left: name another source")
    for side, counts in state.counts.items():
        if not counts.documents:
            raise UserError(
                f"all {total:,} documents fell to one side of the held-out split, none to {side}: "
                "change text.heldout_share, or add text"
            )


def _saved_state(folder: Path, start: _State) -> _State:
    """Return the state committed in `folder` by a build of the same text and tokenizer; else empty it."""
    if (folder / _STATE).exists():
        with closing(sqlite3.connect(folder / _STATE)) as database:
            try:
                rows = database.execute("SELECT saved FROM state").fetchall()
            except sqlite3.DatabaseError:  # killed before the first commit
                rows = []
        for (saved,) in rows:
            state = _State.model_validate_json(saved)
            if (state.tokenizer_sha256, state.text_fingerprint) == (start.tokenizer_sha256, start.text_fingerprint):
                return state
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return start


def _is_built(output: Path, start: _State) -> bool:
    if not output.exists():
        return False
    manifest = shards.read_manifest(output)
    if (manifest.tokenizer_sha256, manifest.text_fingerprint) != (start.tokenizer_sha256, start.text_fingerprint):
        raise UserError(f"{output} holds the shards of another text or tokenizer: name another folder, or remove it")
    return True


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Make `folder` and hold it alone among processes; the lock goes with the process, however it ends."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with _closing_descriptor(os.open(folder, os.O_RDONLY)) as descriptor:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"another process is building {folder}: waiting for it", file=sys.stderr)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if folder.exists() and folder.stat().st_ino == os.fstat(descriptor).st_ino:
                yield
                return


@contextmanager
def _closing_descriptor(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)
