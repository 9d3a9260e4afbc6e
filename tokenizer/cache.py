"""Build a text's vocabulary and shards, or find them by content where they were built before."""

import logging
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

from tokenizers import Tokenizer
from tqdm import tqdm

from configs import UserError, files, streams
from tokenizer import vocabulary
from tokenizer.cleaning import (
    Reason,
    SeenHashes,
    TextConfig,
    as_read_by,
    clean_corpora,
    fall_to_one_side,
    fingerprint_as_read,
    remarks,
)
from tokenizer.shards import format
from tokenizer.shards.build import build
from tokenizer.sources import hash_texts
from tokenizer.sources.files import Watch
from tokenizer.vocabulary import VocabularyConfig

logger = logging.getLogger(__name__)

_LEARNING = 2
"""Part of the key of a learned vocabulary: raise it whenever the same text would give another one."""


def find_or_build_shards(
    text: TextConfig, settings: VocabularyConfig, cache: Path, tokenizer_path: Path | None = None
) -> Path:
    """Return the folder of `text`'s token shards in `cache`, building vocabulary and shards that are missing.

    Both are named by the start of a hash of their inputs. The vocabulary is learned from the training side of the text,
    unless `tokenizer_path` names a tokenizer.json to encode with. A text or tokenizer that cannot be read, or is too
    small, is a UserError.
    """
    watch = text.source.watch()
    fingerprint = text.fingerprint()
    tokenizer = vocabulary.load(tokenizer_path or find_or_learn(text, settings, cache, fingerprint, watch))
    output = shards_path(cache, tokenizer, fingerprint_as_read(fingerprint, tokenizer.normalizer))
    build(text, tokenizer, output, fingerprint=fingerprint, watch=watch)
    return output


def find_or_learn(
    text: TextConfig, settings: VocabularyConfig, cache: Path, fingerprint: str = "", watch: Watch | None = None
) -> Path:
    """Return the tokenizer.json in `cache` that was learned from `text`, or learn it now.

    A text that cannot be read, or is too small, is a UserError.
    """
    watch, fingerprint = watch or text.source.watch(), fingerprint or text.fingerprint()
    of_corpora = ["each corpus has its own held-out split"] if len(text.corpora()) > 1 else []  # it had not before
    read = fingerprint_as_read(fingerprint, settings.normalizer())
    key = hash_texts(str(_LEARNING), settings.model_dump_json(), read, *of_corpora)
    path = cache / f"tokenizer-{key:.16}.json"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        tokenizer, _ = learn_from(text, settings, watch)  # the shards tell the remarks
        save(tokenizer, path)
    return path


def find_kept_shards(text: TextConfig, cache: Path, tokenizer_path: Path, fingerprint: str) -> Path | None:
    """Return the shards in `cache` of the text that had `fingerprint`; None if there are none, or the text has changed.

    Where the text is gone, or cannot be read any more, a line says that its shards are used.
    """
    tokenizer = vocabulary.load(tokenizer_path)
    output = shards_path(cache, tokenizer, fingerprint)
    if not (output / format.MANIFEST).is_file():
        return None
    try:
        plain = text.fingerprint()  # earlier runs recorded it whatever the tokenizer normalizes
        return output if fingerprint in (plain, fingerprint_as_read(plain, tokenizer.normalizer)) else None
    except (UserError, OSError) as error:
        logger.info("the text is gone (%s): its shards in %s are used", error, output)
        return output


def shards_path(cache: Path, tokenizer: Tokenizer, fingerprint: str) -> Path:
    """Return the folder in `cache` of the shards of a text by its fingerprint, which need not exist."""
    return cache / f"shards-{hash_texts(str(format.FORMAT), vocabulary.sha256(tokenizer), fingerprint):.16}"


def learn_from(text: TextConfig, settings: VocabularyConfig, watch: Watch | None = None) -> tuple[Tokenizer, list[str]]:
    """Return a tokenizer learned from the training side of `text`, and remarks on its cleaning.

    `watch` is a watch over the text that has begun before; a text that changes meanwhile, or is too small, is a
    UserError.
    """
    as_read, dropped = as_read_by(settings.normalizer()), Counter[Reason]()
    # A database without a name is a temporary file. The library reads the text in a thread of its own.
    with (
        watch or text.source.watch(),
        files.temporary(),
        closing(sqlite3.connect("", check_same_thread=False)) as database,
    ):
        at_sentences = [fall_to_one_side(corpus, as_read) for corpus in text.corpora()]
        cleaned = clean_corpora(text, SeenHashes(database), as_read, at_sentences, dropped)
        documents = tqdm(cleaned, "vocabulary", unit=" documents", disable=None, file=streams.messages())
        sentences = (sentence for document in documents if document.side == "train" for sentence in document.sentences)
        return vocabulary.learn(sentences, settings), remarks(dropped, at_sentences=any(at_sentences))


def save(tokenizer: Tokenizer, path: Path) -> None:
    """Write a standard tokenizer.json, whole or not at all."""
    with files.written(path) as partial:
        partial.write_bytes(vocabulary.serialize(tokenizer))
