"""Have a text's vocabulary and shards ready, reusing by content what was built before."""

import hashlib
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from tokenizers import Tokenizer

from tokenizer import shards, vocabulary
from tokenizer.build import build
from tokenizer.text import Cleaner, Seen, Text
from tokenizer.vocabulary import Vocabulary

_LEARNING = 1
"""Part of what a learned vocabulary is reused by: raise it whenever the same text would give another one."""


def prepare(text: Text, vocabulary_settings: Vocabulary, cache: Path, tokenizer: Path | None = None) -> Path:
    """Return the folder of `text`'s token shards in `cache`; only what is not there yet is built.

    Without a `tokenizer` (a tokenizer.json), one is learned from the training side of the text.

    Raises:
        UserError: the text or tokenizer cannot be read, or is too small.
        OSError: the disk is full or not writable.

    """
    fingerprint = text.fingerprint()
    cache.mkdir(parents=True, exist_ok=True)
    if tokenizer is None:
        key = _key(str(_LEARNING), vocabulary_settings.model_dump_json(), fingerprint)
        tokenizer = cache / f"tokenizer-{key}.json"
        if not tokenizer.exists():
            save(learn_from(text, vocabulary_settings), tokenizer)
    loaded = vocabulary.load(tokenizer)
    output = cache / f"shards-{_key(str(shards.FORMAT), vocabulary.sha256(loaded), fingerprint)}"
    build(text, loaded, output, fingerprint=fingerprint)
    return output


def learn_from(text: Text, settings: Vocabulary) -> Tokenizer:
    """Return a tokenizer learned from the training side of `text`.

    Raises:
        UserError: the text cannot be read, or is too small.

    """
    with (
        tempfile.TemporaryDirectory() as folder,
        # the library asks for the text from a thread of its own
        closing(sqlite3.connect(Path(folder) / "seen.sqlite", check_same_thread=False)) as database,
    ):
        return vocabulary.learn(_training_sentences(text, database), settings)


def save(tokenizer: Tokenizer, path: Path) -> None:
    """Write a standard tokenizer.json, whole or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}.", delete=False) as file:
        file.write(vocabulary.serialise(tokenizer))
    Path(file.name).replace(path)


def _training_sentences(text: Text, database: sqlite3.Connection) -> Iterator[str]:
    cleaner = Cleaner(text, Seen(database), Counter())
    for document in text.source.documents():
        passage = cleaner.clean(document)
        if passage is not None and passage.side == "train":
            yield from passage.sentences


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
