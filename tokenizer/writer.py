"""Write one side of the token shards, and what seals them."""

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tokenizer import shards, vocabulary
from tokenizer.lookup import Encoded
from tokenizer.partial import State
from tokenizer.shards import SIDES, Counts, Manifest, PackageRecord, TokenType
from tokenizer.text import Side, Text


@dataclass(slots=True)
class Batch:
    """Consecutive documents of one side, still text."""

    sentences: list[str] = field(default_factory=list)
    document_lengths: list[int] = field(default_factory=list)
    """Number of sentences of each document."""

    def add(self, sentences: list[str]) -> None:
        """Append a document."""
        self.sentences += sentences
        self.document_lengths.append(len(sentences))

    def counts(self, tokens: int) -> Counts:
        """Return what the batch holds, given its number of tokens."""
        running = "\n".join(self.sentences)
        return Counts(
            documents=len(self.document_lengths),
            sentences=len(self.sentences),
            words=running.count(" ") + sum(not sentence.startswith(" ") for sentence in self.sentences),
            tokens=tokens,
            text_bytes=len(running.encode()) - (len(self.sentences) - 1),
        )


class SideWriter:
    """Appends one side's batches to its files."""

    def __init__(self, folder: Path, side: Side, token_type: TokenType, counts: Counts) -> None:
        """Open the files and cut them to what `counts` says is in them."""
        (folder / side).mkdir(exist_ok=True)
        self.counts = counts
        layout = shards.layout(side, token_type, counts)
        self._types = [np.dtype(kind) for kind, _ in layout.values()]
        self._files = [(folder / name).open("ab") for name in layout]
        for file, (kind, count) in zip(self._files, layout.values(), strict=True):
            file.truncate(np.dtype(kind).itemsize * count)  # lengthens new offset files by their first value, 0

    def write(self, batch: Batch, encoded: Encoded) -> None:
        """Append a batch and its tokens."""
        old, new = self.counts, batch.counts(len(encoded.tokens))
        values: tuple[NDArray[np.generic], ...] = (
            encoded.tokens,
            encoded.word_starts,
            old.tokens + np.cumsum(encoded.lengths),
            old.sentences + np.cumsum(batch.document_lengths),
        )
        for file, kind, array in zip(self._files, self._types, values, strict=True):
            file.write(array.astype(kind).data)
        self.counts = Counts(**{name: getattr(old, name) + getattr(new, name) for name in Counts.model_fields})

    def sync(self) -> None:
        """Return when what was written has reached the disk."""
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()


def seal(folder: Path, text: Text, tokenizer: Tokenizer, state: State) -> None:
    """Describe the finished files of `folder` in its manifest."""
    (folder / shards.TOKENIZER).write_bytes(vocabulary.serialise(tokenizer))
    token_type = shards.token_type(tokenizer.get_vocab_size())
    names = [shards.TOKENIZER, *(name for side in SIDES for name in shards.layout(side, token_type, Counts()))]
    manifest = Manifest(
        format=shards.FORMAT,
        token_type=token_type,
        vocabulary_size=tokenizer.get_vocab_size(),
        tokenizer_sha256=state.tokenizer_sha256,
        text_fingerprint=state.text_fingerprint,
        text=text,
        train=state.counts["train"],
        heldout=state.counts["heldout"],
        dropped=state.dropped,
        files={name: shards.record(folder / name) for name in names},
        packages=tuple(PackageRecord(**dataclasses.asdict(package)) for package in text.source.packages()),
    )
    (folder / shards.MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
