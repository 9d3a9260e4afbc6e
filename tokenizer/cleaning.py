"""Clean a source's documents: split into sentences, without duplicates, each on its side of the held-out split.

Splitting looks at one document alone and may run ahead, in any process; duplicates are found in the source's order.
"""

import hashlib
import itertools
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from tokenizers.normalizers import Normalizer

from configs import Config, UserError
from tokenizer import sentences
from tokenizer.cached_encoder import normalize_by
from tokenizer.sources import Document, Documentation, Files, Hub, Mixture, Source, hash_texts, hub

Side = Literal["train", "heldout"]
Reason = Literal[
    "duplicate documents",
    "short sentences",
    "long sentences",
    "duplicate sentences",
    "sentences beyond train_share",
    "sentences beyond most_words",
]
"""Reasons for which cleaning drops text."""
REASONS: tuple[Reason, ...] = get_args(Reason)
AsRead = Callable[[str], str]
"""Gives a text as a model reads it, by which texts are told to be equal; `str` where the tokenizer changes nothing."""

_FORMAT = 1
"""Part of the fingerprint: raise it whenever the same source and settings would give other sentences. Earlier runs
cannot be resumed then. So it was not raised for the marks of further scripts, which leave most texts as they were."""
_READING = "texts are equal as they are read"
"""Part of the fingerprint of a text that a tokenizer normalizes."""
HASH_BYTES = 16
"""Size of the hash that stands for a text among those seen."""
BATCH_CHARACTERS = 500_000
"""Characters of the documents that are cleaned together, about."""
DUPLICATE_DOCUMENTS, _SHORT, _LONG, _DUPLICATE_SENTENCES, _BEYOND_SHARE, _BEYOND_WORDS = range(len(REASONS))
"""Index of each reason in REASONS."""


class TextConfig(Config):
    """The source of the text and its cleaning."""

    source: Source = Documentation()
    """The source of the text."""
    segments: Literal["sentences", "documents"] = "sentences"
    """The texts that the model reads: each sentence alone, or stretches of a document's consecutive sentences."""
    split_sentences: bool = True
    """Split documents into sentences; false takes each document as one sentence."""
    minimum_words: int = Field(default=0, ge=0)
    """Drop sentences of fewer white-space-separated words."""
    maximum_words: int | None = Field(default=None, ge=1)
    """Drop sentences of more white-space-separated words; null: none."""
    deduplicate: Literal["none", "documents", "sentences"] = "documents"
    """Drop each document, or each sentence, that repeats an earlier one. Texts are equal if the tokenizer reads them
    alike: normalized and lower-cased as it does, whatever their white space."""
    train_share: float = Field(default=1.0, gt=0, le=1)
    """Share of the training documents that is trained on, chosen by the hash of their text. The held-out side does not
    depend on it: so it shows how well less text does."""
    most_words: int | None = Field(default=None, ge=1)
    """Largest number of white-space-separated words to train on: the first ones, in whole sentences; null: all. In a
    sorted text the first words are not like the others. The held-out side does not depend on it, so the source is read
    to its end."""
    heldout_share: float = Field(default=0.05, gt=0, lt=1)
    """Share of the documents that is never trained on, chosen by a hash of their text: the same on every machine, and
    for equal texts, unless `source.heldout_by` chooses. Where all documents fall to one side, as a single one does,
    their sentences are shared out."""

    @model_validator(mode="after")
    def _lengths_leave_something(self) -> Self:
        if self.maximum_words is not None and self.maximum_words < self.minimum_words:
            raise ValueError(f"minimum_words={self.minimum_words} is over maximum_words={self.maximum_words}")
        if self.most_words is not None and isinstance(self.source, Mixture):
            raise ValueError("most_words is of one source, not of a mixture: encode each of its parts, for data.shards")
        return self

    def absolute(self) -> Self:
        """Return the same text by paths that hold in any working directory."""
        if isinstance(self.source, Files | Mixture):
            return self.model_copy(update={"source": self.source.absolute()})
        return self

    def pinned(self) -> Self:
        """Return the same text, of data sets of the hub at their newest commits, unless they name a revision."""
        return self._at_commits(lambda source: source.revision or hub.commit(source.name, None))

    def unpinned(self) -> Self:
        """Return the same text, of data sets of the hub at no revision."""
        return self._at_commits(lambda source: None)

    def _at_commits(self, commit: Callable[[Hub], str | None]) -> Self:
        def at_commit(source: Source) -> Source:
            return source.model_copy(update={"revision": commit(source)}) if isinstance(source, Hub) else source

        source = at_commit(self.source)
        if isinstance(source, Mixture):
            parts = tuple(part.model_copy(update={"source": at_commit(part.source)}) for part in source.parts)
            source = source.model_copy(update={"parts": parts})
        return self.model_copy(update={"source": source})

    def corpora(self) -> list[Self]:
        """Return the corpora of a mixture as texts of their own, or else this text: each has its own held-out split."""
        if not isinstance(self.source, Mixture):
            return [self]
        return [self.model_copy(update={"source": part.source}) for part in self.source.parts]

    def documents(self) -> Iterator[Document]:
        """Yield the documents of the source, which is no mixture."""
        assert not isinstance(self.source, Mixture), "a mixture is read corpus by corpus"
        return self.source.documents()

    def fingerprint(self) -> str:
        """Return a hash of the source's content and all settings; a UserError says that it cannot be read."""
        # Fingerprints are older than these settings.
        defaults = {name: type(self).model_fields[name].default for name in ("train_share", "most_words")}
        unset = {name for name, default in defaults.items() if getattr(self, name) == default}
        return hash_texts(str(_FORMAT), self.model_dump_json(exclude={"source", *unset}), self.source.fingerprint())


def fingerprint_as_read(fingerprint: str, normalizer: Normalizer | None) -> str:
    """Return the fingerprint of a text that is split and deduplicated as a tokenizer with `normalizer` reads it."""
    return fingerprint if normalizer is None else hash_texts(fingerprint, _READING)


def as_read_by(normalizer: Normalizer | None) -> AsRead:
    """Return the function that gives a text with single spaces as a tokenizer with `normalizer` reads it.

    A text of which nothing would be left stays as it is: not all of those are equal.
    """
    normalize = normalize_by(normalizer)
    return str if normalizer is None else lambda text: sentences.collapse(normalize(text)) or text


def describe_dropped(counts: Mapping[str, int] | Mapping[Reason, int]) -> list[str]:
    """Return a line with the numbers of dropped texts by reason; none where none was dropped."""
    found = ", ".join(f"{count:,} {reason}" for reason, count in counts.items() if count)
    return [f"dropped: {found}"] if found else []


def remarks(dropped: Mapping[Reason, int], *, at_sentences: bool) -> list[str]:
    """Return lines on the texts that cleaning dropped and on a split at sentences; none if there is nothing to say."""
    one_side = "all documents fell to one side of the held-out split: their sentences are shared out between both"
    return [*describe_dropped(dropped), *([one_side] if at_sentences else [])]


@dataclass(frozen=True, slots=True)
class CleanDocument:
    """A cleaned document."""

    sentences: list[str]
    """One or more, ready to be encoded, with single spaces for white space. In runs of sentences each keeps the space
    before it, so that end to end they are the running text; else there is none around them."""
    side: Side


@dataclass(frozen=True, slots=True)
class SentenceTable:
    """The sentences of several documents in numbers, duplicates included."""

    lengths: NDArray[np.int64]
    """Number of sentences of each document."""
    heldout: NDArray[np.bool_]
    """True for each sentence on the held-out side."""
    dropped: NDArray[np.int64]
    """Number of sentences of each document dropped as too short or too long, (documents, reasons)."""
    hashes: list[bytes]
    """Hash of each document or each sentence, whichever is deduplicated; else none."""
    words: NDArray[np.int64]
    """White-space-separated words of each sentence."""
    text_bytes: NDArray[np.int64]
    """UTF-8 bytes of each sentence."""


class SeenHashes:
    """A set of hashes of texts, in a table of an SQLite database."""

    def __init__(self, database: sqlite3.Connection) -> None:
        """Keep the set in `database`; the caller commits its transactions."""
        self._cursor = database.execute("CREATE TABLE IF NOT EXISTS seen (hash BLOB PRIMARY KEY) WITHOUT ROWID")

    def add(self, hashes: Sequence[bytes]) -> NDArray[np.bool_]:
        """Add hashes of `HASH_BYTES` each; return True for each new one, of equal ones for the first only."""
        is_new = np.zeros(len(hashes), np.bool_)
        first_place = {digest: place for place, digest in reversed(list(enumerate(hashes)))}
        for digest in sorted(first_place):  # neighbors lie on the same page of the database
            inserted = self._cursor.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,))
            is_new[first_place[digest]] = inserted.rowcount
        return is_new


def clean_documents(
    text: TextConfig,
    documents: Iterable[Document],
    seen: SeenHashes,
    as_read: AsRead = str,
    *,
    at_sentences: bool = False,
    dropped: Counter[Reason] | None = None,
) -> Iterator[CleanDocument]:
    """Yield the cleaned documents of which a sentence is left, and add their hashes to `seen`.

    `dropped` is increased by the numbers dropped. Each call counts `text.most_words` anew. The other arguments are
    those of `split_documents`; with `at_sentences` each part of a document on one side is a document.
    """
    dropped = Counter() if dropped is None else dropped
    training_words = 0
    for batch in batch_documents(documents):
        all_sentences, table = split_documents(text, batch, as_read, at_sentences=at_sentences)
        kept = drop_duplicates(table, text, seen, dropped)
        kept = drop_beyond(table, text, kept, training_words, dropped)
        training_words += int(table.words[kept & ~table.heldout].sum())
        kept_sentences, lengths = itertools.compress(all_sentences, kept), kept_lengths(table, kept)
        sides = table.heldout[kept][np.cumsum(lengths) - lengths]  # of the first sentence of each
        for length, heldout in zip(lengths.tolist(), sides.tolist(), strict=True):
            yield CleanDocument([*itertools.islice(kept_sentences, length)], "heldout" if heldout else "train")


def clean_corpora(
    text: TextConfig,
    seen: SeenHashes,
    as_read: AsRead,
    at_sentences: Sequence[bool],
    dropped: Counter[Reason] | None = None,
) -> Iterator[CleanDocument]:
    """Yield the cleaned documents of `text`, of a mixture one of each corpus in turn; see `clean_documents`.

    So the first ones, from which a vocabulary is learned, are of all corpora. `at_sentences` is that of each corpus.
    """
    corpora = [
        clean_documents(corpus, corpus.documents(), seen, as_read, at_sentences=at, dropped=dropped)
        for corpus, at in zip(text.corpora(), at_sentences, strict=True)
    ]
    rounds = itertools.zip_longest(*corpora)
    return (document for documents in rounds for document in documents if document is not None)


def fall_to_one_side(text: TextConfig, as_read: AsRead) -> bool:
    """Return True if all documents are on one side, so that they must be split between the sides at sentences.

    The source is read up to the first document of the other side. A UserError says that `heldout_by` has too few texts
    for two sides.
    """
    text = text.model_copy(update={"train_share": 1.0})  # what is left out of training was on a side before
    sides, has_groups = set[bool](), False
    for document in text.documents():
        _, table = split_documents(text, [document], as_read)
        sides.update(table.heldout.tolist())
        has_groups = has_groups or document.group is not None
        if len(sides) > 1:
            return False
    if has_groups and sides:
        raise UserError(
            "all rows are on one side of the held-out split by the texts of text.source.heldout_by: name a column with"
            " more of them, or change text.heldout_share"
        )
    return True


def batch_documents(documents: Iterable[Document], limit: int = BATCH_CHARACTERS) -> Iterator[list[Document]]:
    """Yield the documents in lists of about `limit` characters."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters > limit:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def split_documents(
    text: TextConfig, documents: Sequence[Document], as_read: AsRead = str, *, at_sentences: bool = False
) -> tuple[list[str], SentenceTable]:
    """Split documents as `text` says; return the sentences of all, end to end, and their table.

    Equal texts, `as_read`, have equal hashes, and are on one side unless they have groups. With `at_sentences` each
    sentence has a side of its own.
    """
    sentences_of_all: list[str] = []
    hashes: list[bytes] = []
    heldout: list[bool] = []
    lengths, dropped = np.zeros(len(documents), np.int64), np.zeros((len(documents), len(REASONS)), np.int64)
    for place, document in enumerate(documents):
        whole = sentences.collapse(document.text)
        read = as_read(whole)
        if text.deduplicate == "documents":
            hashes.append(_hash(read, HASH_BYTES))
        found = _sentences(text, document, whole)
        if text.segments == "sentences":
            found = [sentence.lstrip(" ") for sentence in found]
        if text.minimum_words > 1 or text.maximum_words is not None:
            words = np.array([*map(_words, found)])
            is_short, is_long = words < text.minimum_words, words > (text.maximum_words or np.inf)
            dropped[place, _SHORT], dropped[place, _LONG] = is_short.sum(), is_long.sum()
            found = list(itertools.compress(found, ~(is_short | is_long)))
        if at_sentences:
            sides = [_side(text, as_read(sentence.lstrip(" "))) for sentence in found]
        else:
            sides = [_side(text, document.group or read)] * len(found)
        if None in sides:
            dropped[place, _BEYOND_SHARE] = sides.count(None)
            found = list(itertools.compress(found, sides))
        if text.deduplicate == "sentences":
            hashes += [_hash(as_read(sentence.lstrip(" ")), HASH_BYTES) for sentence in found]
        heldout += [side == "heldout" for side in sides if side]
        sentences_of_all += found
        lengths[place] = len(found)
    words = np.array([*map(_words, sentences_of_all)], np.int64)
    text_bytes = np.array([len(sentence.encode()) for sentence in sentences_of_all], np.int64)
    table = SentenceTable(lengths, np.array(heldout, np.bool_), dropped, hashes, words, text_bytes)
    return sentences_of_all, table


def drop_duplicates(
    table: SentenceTable, text: TextConfig, seen: SeenHashes, dropped: Counter[Reason]
) -> NDArray[np.bool_]:
    """Return True for each sentence that is kept, not being in `seen`; add it to `seen`, and count the others."""
    kept, by_document = np.ones(table.lengths.sum(), np.bool_), table.dropped.copy()
    if text.deduplicate == "documents":
        is_new = seen.add(table.hashes)
        by_document[~is_new] = 0
        by_document[~is_new, DUPLICATE_DOCUMENTS] = 1
        kept = np.repeat(is_new, table.lengths)
    numbers = by_document.sum(axis=0)
    if text.deduplicate == "sentences":
        kept = seen.add(table.hashes)
        numbers[_DUPLICATE_SENTENCES] = len(kept) - kept.sum()
    dropped.update(dict(zip(REASONS, numbers.tolist(), strict=True)))
    return kept


def drop_beyond(
    table: SentenceTable,
    text: TextConfig,
    kept: NDArray[np.bool_],
    training_words: int,
    dropped: Counter[Reason],
) -> NDArray[np.bool_]:
    """Return True for each kept sentence within `text.most_words`, `training_words` before it; count the others."""
    if text.most_words is None:
        return kept
    reason = REASONS[_BEYOND_WORDS]
    is_training = kept & ~table.heldout
    total = training_words + np.cumsum(table.words * is_training)
    # After the first sentence that is too long no shorter one is taken, wherever a batch ends.
    is_beyond = is_training & ((total > text.most_words) | (dropped[reason] > 0))
    dropped[reason] += int(is_beyond.sum())
    return kept & ~is_beyond


def kept_lengths(table: SentenceTable, kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the number of kept sentences of each document, or part of one on one side, of which any is kept."""
    owners = np.repeat(np.arange(len(table.lengths)), table.lengths)
    parts = np.cumsum(np.diff(2 * owners + table.heldout, prepend=-1) != 0)
    lengths = np.bincount(parts[kept])
    return lengths[lengths > 0]


def _sentences(text: TextConfig, document: Document, whole: str) -> list[str]:
    """Return the document's sentences, each with the space before it."""
    if not text.split_sentences:
        return [whole]
    if document.sentences is not None:
        return [f" {sentence}" if index else sentence for index, sentence in enumerate(document.sentences)]
    return sentences.split(document.text, whole)


def _words(sentence: str) -> int:
    return sentence.count(" ") + (not sentence.startswith(" "))  # one of a running text begins with its space


def _hash(text: str, size_bytes: int) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=size_bytes).digest()


def _side(text: TextConfig, key: str) -> Side | None:
    """Return the side of a document or sentence by its key; None where it is left out."""
    place = int.from_bytes(_hash(key, 8), "big") / 2**64
    if place < text.heldout_share:
        return "heldout"
    is_trained_on = text.train_share == 1 or place < text.heldout_share + text.train_share * (1 - text.heldout_share)
    return "train" if is_trained_on else None
