"""Clean a source's documents: cut into sentences, without duplicates, each on its side of the held-out split."""

import hashlib
import sqlite3
from collections import Counter
from dataclasses import dataclass
from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from configs import Config
from tokenizer import sentences
from tokenizer.sources import Document, Documentation, Source

Side = Literal["train", "heldout"]
Reason = Literal["duplicate documents", "short sentences", "long sentences", "duplicate sentences"]
"""Why cleaning left something out."""
REASONS: tuple[Reason, ...] = get_args(Reason)

_FORMAT = 1
"""Part of the fingerprint: raise it whenever the same source and settings would give other sentences."""
HASH_BYTES = 16
"""Of the hash by which a text is known again."""


class Text(Config):
    """Where the text comes from and how it is cut."""

    source: Source = Documentation()
    """Where the text comes from."""
    segments: Literal["sentences", "documents"] = "sentences"
    """What the model reads as one text: each sentence alone, or runs of a document's consecutive sentences."""
    split_sentences: bool = True
    """Cut documents into sentences; false takes each document as one sentence."""
    minimum_words: int = Field(default=0, ge=0)
    """Drop sentences of fewer white-space-separated words."""
    maximum_words: int | None = Field(default=None, ge=1)
    """Drop sentences of more white-space-separated words; null: none."""
    deduplicate: Literal["none", "documents", "sentences"] = "documents"
    """Drop every document, or every sentence, that was there before, differences in white space aside."""
    heldout_share: float = Field(default=0.05, gt=0, lt=1)
    """The share of the documents that is never trained on, chosen by a hash of their text: the same everywhere."""

    @model_validator(mode="after")
    def _lengths_leave_something(self) -> Self:
        if self.maximum_words is not None and self.maximum_words < self.minimum_words:
            raise ValueError(f"minimum_words={self.minimum_words} is over maximum_words={self.maximum_words}")
        return self

    def fingerprint(self) -> str:
        """Return a hash of all that decides what cleaning makes of this text.

        Raises:
            UserError: the source cannot be read.

        """
        settings = self.model_dump_json(exclude={"source"})
        return hashlib.sha256(f"{_FORMAT}\0{settings}\0{self.source.fingerprint()}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Passage:
    """A cleaned document."""

    sentences: list[str]
    """As they are to be encoded: at least one, with single spaces for white space and none around them; but in runs
    of sentences each keeps the space before it, so that end to end they are the running text."""
    side: Side


class Seen:
    """A set of texts on disk: of each its hash, in a table of an SQLite database."""

    def __init__(self, database: sqlite3.Connection) -> None:
        """Keep the set in `database`, in transactions that are the caller's to commit."""
        self._cursor = database.execute("CREATE TABLE IF NOT EXISTS seen (hash BLOB PRIMARY KEY) WITHOUT ROWID")

    def add(self, text: str) -> bool:
        """Add `text`; return whether it is new."""
        return self.add_hash(_hash(text, HASH_BYTES))

    def add_hash(self, digest: bytes) -> bool:
        """Add the text of which this is the hash, of `HASH_BYTES`; return whether it is new."""
        return self._cursor.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,)).rowcount == 1


class Cleaner:
    """Cleans one document after the other, and counts what it drops."""

    def __init__(self, text: Text, seen: Seen, dropped: Counter[Reason]) -> None:
        """Clean as `text` says; remember in `seen`, count in `dropped`."""
        self._text, self._seen, self.dropped = text, seen, dropped
        self._chooses = text.minimum_words > 1 or text.maximum_words is not None or text.deduplicate == "sentences"

    def clean(self, document: Document) -> Passage | None:
        """Return the cleaned document, or None where nothing is left of it."""
        whole = sentences.collapse(document.text)
        if self._text.deduplicate == "documents" and not self._seen.add(whole):
            self.dropped["duplicate documents"] += 1
            return None
        kept = self._cut(document, whole)
        if self._chooses:
            kept = [sentence for sentence in kept if self._keeps(sentence.lstrip(" "))]
        if self._text.segments == "sentences":
            kept = [sentence.lstrip(" ") for sentence in kept]
        return Passage(kept, self._side(document.group or whole)) if kept else None

    def _cut(self, document: Document, whole: str) -> list[str]:
        """Return the document's sentences, each with the space before it."""
        if not self._text.split_sentences:
            return [whole]
        if document.sentences is not None:
            return [f" {sentence}" if index else sentence for index, sentence in enumerate(document.sentences)]
        return sentences.split(document.text)

    def _keeps(self, sentence: str) -> bool:
        text, words = self._text, sentence.count(" ") + 1
        if words < text.minimum_words:
            self.dropped["short sentences"] += 1
        elif text.maximum_words is not None and words > text.maximum_words:
            self.dropped["long sentences"] += 1
        elif text.deduplicate == "sentences" and not self._seen.add(sentence):
            self.dropped["duplicate sentences"] += 1
        else:
            return True
        return False

    def _side(self, key: str) -> Side:
        share = int.from_bytes(_hash(key, 8), "big") / 2**64
        return "heldout" if share < self._text.heldout_share else "train"


def _hash(text: str, size_bytes: int) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=size_bytes).digest()
