"""Write the files of token shards, commit the state of the build, and seal the folder with its manifest."""

import dataclasses
import os
import sqlite3
import sys
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tokenizer import vocabulary
from tokenizer.cached_encoder import Encoded
from tokenizer.cleaning import Reason, Side, TextConfig
from tokenizer.shards import format, partial
from tokenizer.shards.format import SIDES, Counts, PackageRecord, ShardManifest, TokenType
from tokenizer.shards.partial import BuildState


class SideWriter:
    """Appends documents to the files of one side."""

    def __init__(self, folder: Path, side: Side, token_type: TokenType, counts: Counts) -> None:
        """Open the files and truncate each to the values that `counts` gives it."""
        (folder / side).mkdir(exist_ok=True)
        self.counts = counts
        self._files: list[tuple[BinaryIO, np.dtype[Any]]] = []
        for name, (kind, count) in format.layout(side, token_type, counts).items():
            file = (folder / name).open("ab")
            file.truncate(np.dtype(kind).itemsize * count)  # lengthens new offset files by their first value, 0
            self._files.append((file, np.dtype(kind)))

    def write(self, encoded: Encoded, document_lengths: NDArray[np.int64], new: Counts) -> None:
        """Append documents: the tokens of their sentences, the number of sentences of each, and their counts."""
        old = self.counts
        sentences, documents = old.tokens + np.cumsum(encoded.lengths), old.sentences + np.cumsum(document_lengths)
        arrays: tuple[NDArray[Any], ...] = (encoded.tokens, encoded.word_starts, sentences, documents)
        for (file, kind), array in zip(self._files, arrays, strict=True):
            file.write(array.astype(kind).data)
        self.counts = old + new

    def sync(self) -> None:
        """Return when the disk has all that was written."""
        for file, _ in self._files:
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """Close the files."""
        for file, _ in self._files:
            file.close()


class ShardWriter:
    """The files of both sides, and the database with the state of the build."""

    def __init__(self, folder: Path, database: sqlite3.Connection, state: BuildState, token_type: TokenType) -> None:
        """Resume from `state`: the files are truncated to it."""
        self.folder, self.database, self.state = folder, database, state
        self._open = ExitStack()
        self.writers = {
            side: self._open.enter_context(closing(SideWriter(folder, side, token_type, counts)))
            for side, counts in state.counts.items()
        }

    def commit(self, consumed: int, dropped: Mapping[Reason, int]) -> None:
        """Save all that was written, as the result of the first `consumed` documents of the source."""
        for writer in self.writers.values():
            writer.sync()
        changes = {
            "consumed_documents": consumed,
            "counts": {side: writer.counts for side, writer in self.writers.items()},
            "dropped": dict(dropped),
        }
        self.state = self.state.model_copy(update=changes)
        partial.commit(self.database, self.state)
        if not sys.stderr.isatty():
            print(f"shards: {consumed:,} documents", file=sys.stderr)

    def close(self) -> None:
        """Close the files."""
        self._open.close()


def seal(folder: Path, text: TextConfig, tokenizer: Tokenizer, state: BuildState) -> None:
    """Write the tokenizer and the manifest, which describes the finished files of `folder`."""
    (folder / format.TOKENIZER).write_bytes(vocabulary.serialise(tokenizer))
    token_type = format.token_type(tokenizer.get_vocab_size())
    layouts = [format.layout(side, token_type, Counts()) for side in SIDES]
    names = [format.TOKENIZER, *(name for layout in layouts for name in layout)]
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
        files={name: format.record(folder / name) for name in names},
        packages=tuple(PackageRecord(**dataclasses.asdict(package)) for package in text.source.packages()),
    )
    (folder / format.MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
