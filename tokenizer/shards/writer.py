"""Write token shards: one side's files, both sides' with the state of the build, and what seals them."""

import dataclasses
import os
import sqlite3
import sys
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray
from tokenizers import Tokenizer

from tokenizer import vocabulary
from tokenizer.cached_encoder import Encoded
from tokenizer.cleaning import Reason, Side, TextConfig
from tokenizer.shards import format, partial
from tokenizer.shards.format import SIDES, Counts, PackageRecord, ShardManifest, TokenType
from tokenizer.shards.partial import BuildState


class ColumnFiles:
    """Files of values that grow together."""

    def __init__(self, folder: Path, layout: Mapping[str, tuple[DTypeLike, int]]) -> None:
        """Open the files in `folder` and cut each to its number of values; by name, the type and the number."""
        self._types = [np.dtype(kind) for kind, _ in layout.values()]
        self._files = [(folder / name).open("ab") for name in layout]
        for file, kind, (_, count) in zip(self._files, self._types, layout.values(), strict=True):
            file.truncate(kind.itemsize * count)  # lengthens new offset files by their first value, 0

    def append(self, *arrays: NDArray[np.generic]) -> None:
        """Append an array to each file."""
        for file, kind, array in zip(self._files, self._types, arrays, strict=True):
            file.write(array.astype(kind).data)

    def sync(self) -> None:
        """Return when what was written has reached the disk."""
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()


class SideWriter(ColumnFiles):
    """Appends what belongs to one side to its files."""

    def __init__(self, folder: Path, side: Side, token_type: TokenType, counts: Counts) -> None:
        """Open the files and cut them to what `counts` says is in them."""
        (folder / side).mkdir(exist_ok=True)
        super().__init__(folder, format.layout(side, token_type, counts))
        self.counts = counts

    def write(self, encoded: Encoded, document_lengths: ArrayLike, new: Counts) -> None:
        """Append documents: their sentences' tokens, the number of sentences of each, and what all that comes to."""
        old = self.counts
        self.append(
            encoded.tokens,
            encoded.word_starts,
            old.tokens + np.cumsum(encoded.lengths),
            old.sentences + np.cumsum(document_lengths),
        )
        self.counts = old + new


class ShardWriter:
    """A folder of shards that grows: its files, its database, and how far they are."""

    def __init__(self, folder: Path, database: sqlite3.Connection, state: BuildState, token_type: TokenType) -> None:
        """Go on from `state`: whatever the files hold beyond it is cut off."""
        self.folder, self.database, self.state = folder, database, state
        self._open = ExitStack()
        self.writers = {
            side: self._open.enter_context(closing(SideWriter(folder, side, token_type, counts)))
            for side, counts in state.counts.items()
        }

    def commit(self, consumed: int, dropped: Mapping[Reason, int]) -> None:
        """Save all that was written, and that `consumed` documents of the source, so far, are done with."""
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
    """Describe the finished files of `folder` in its manifest."""
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
