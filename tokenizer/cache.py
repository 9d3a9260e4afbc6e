"""Build a text's vocabulary and shards, or find them by content where they were built before."""

import sqlite3
from contextlib import closing
from pathlib import Path

from tokenizers import Tokenizer
from tqdm import tqdm

from configs import files
from tokenizer import vocabulary
from tokenizer.cleaning import SeenHashes, TextConfig, clean_documents
from tokenizer.shards import format
from tokenizer.shards.build import build
from tokenizer.sources import hash_texts
from tokenizer.vocabulary import VocabularyConfig

_LEARNING = 1
"""Part of the key of a learned vocabulary: raise it whenever the same text would give another one."""


def find_or_build_shards(
    text: TextConfig, settings: VocabularyConfig, cache: Path, tokenizer_path: Path | None = None
) -> Path:
    """Return the folder of `text`'s token shards in `cache`, building vocabulary and shards that are missing.

    Both are named by the start of a hash of their inputs. The vocabulary is learned from the training side of the text,
    unless `tokenizer_path` names a tokenizer.json to encode with. A text or tokenizer that cannot be read, or is too
    small, is a UserError.
    """
    fingerprint = text.fingerprint()
    cache.mkdir(parents=True, exist_ok=True)
    if tokenizer_path is None:
        key = hash_texts(str(_LEARNING), settings.model_dump_json(), fingerprint)
        tokenizer_path = cache / f"tokenizer-{key:.16}.json"
        if not tokenizer_path.exists():
            save(learn_from(text, settings), tokenizer_path)
    tokenizer = vocabulary.load(tokenizer_path)
    key = hash_texts(str(format.FORMAT), vocabulary.sha256(tokenizer), fingerprint)
    output = cache / f"shards-{key:.16}"
    build(text, tokenizer, output, fingerprint=fingerprint)
    return output


def learn_from(text: TextConfig, settings: VocabularyConfig) -> Tokenizer:
    """Return a tokenizer learned from the training side of `text`; a UserError says that it cannot be."""
    # A database without a name is a temporary file. The library reads the text in a thread of its own.
    with files.temporary(), closing(sqlite3.connect("", check_same_thread=False)) as database:
        documents = tqdm(text.source.documents(), "vocabulary", unit=" documents", disable=None)
        cleaned = clean_documents(text, documents, SeenHashes(database))
        sentences = (sentence for document in cleaned if document.side == "train" for sentence in document.sentences)
        return vocabulary.learn(sentences, settings)


def save(tokenizer: Tokenizer, path: Path) -> None:
    """Write a standard tokenizer.json, whole or not at all."""
    with files.written(path) as partial:
        partial.write_bytes(vocabulary.serialise(tokenizer))
