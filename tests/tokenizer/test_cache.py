import os
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from configs import UserError
from tests.tokenizer.samples import files, prose, tokenizer, write_lines
from tokenizer import vocabulary
from tokenizer.cache import find_or_build_shards, learn_from
from tokenizer.cleaning import SeenHashes, TextConfig, clean_documents
from tokenizer.shards.build import BuildOptions, build
from tokenizer.shards.format import open_shards
from tokenizer.sources import Document
from tokenizer.vocabulary import VocabularyConfig

LINES = prose(400)
SMALL = VocabularyConfig(size=300)
HELDOUT = {"heldout_share": 0.1}


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_the_same_text_and_settings_are_never_processed_twice(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    text = files(write_lines(tmp_path / "a.txt", LINES), **HELDOUT)
    folder = find_or_build_shards(text, SMALL, cache)
    before = times(cache)
    assert find_or_build_shards(text, SMALL, cache) == folder
    (tmp_path / "elsewhere").mkdir()
    again = write_lines(tmp_path / "elsewhere" / "b.txt", LINES)
    os.utime(again, (1, 1))
    assert find_or_build_shards(files(again, **HELDOUT), SMALL, cache) == folder
    assert times(cache) == before
    assert open_shards(folder).manifest.vocabulary_size == 300
    tokenizers = [path.read_bytes() for path in cache.glob("tokenizer-*.json")]
    assert tokenizers == [(folder / "tokenizer.json").read_bytes()]


def test_changed_text_or_settings_are_never_mistaken_for_the_same(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.txt", LINES)
    texts = [
        files(path, **HELDOUT),
        files(path, heldout_share=0.2),
        files(path, segments="documents", **HELDOUT),
        files(path, deduplicate="sentences", **HELDOUT),
        files(write_lines(tmp_path / "b.txt", LINES[:-1]), **HELDOUT),
    ]
    vocabularies = [
        SMALL,
        VocabularyConfig(size=301),
        VocabularyConfig(size=300, lowercase=True),
        VocabularyConfig(size=300, cls_sep=True),
    ]
    cases = [(text, SMALL) for text in texts] + [(texts[0], settings) for settings in vocabularies[1:]]
    folders = {find_or_build_shards(text, settings, tmp_path / "cache") for text, settings in cases}
    assert len(folders) == len(cases)
    for folder in folders:
        open_shards(folder)


def test_a_text_changed_in_place_is_another(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.txt", LINES)
    status = path.stat()
    first = find_or_build_shards(files(path, **HELDOUT), SMALL, tmp_path / "cache")
    write_lines(path, LINES[::-1])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    assert find_or_build_shards(files(path, **HELDOUT), SMALL, tmp_path / "cache") != first


def append_once_there(awaited: Path, pattern: str, path: Path) -> threading.Thread:
    """Start a thread that appends to `path` as soon as `awaited` holds a file of the pattern."""

    def append() -> None:
        while not (awaited.exists() and any(awaited.glob(pattern))):
            time.sleep(0.001)
        with path.open("a") as file:
            file.write("Appended while it was read.\n")

    thread = threading.Thread(target=append)
    thread.start()
    return thread


@pytest.mark.parametrize("given", [True, False])
def test_a_text_that_grows_while_it_is_read_is_not_cached(tmp_path: Path, *, given: bool) -> None:
    path, cache, learned = tmp_path / "a.txt", tmp_path / "cache", tmp_path / "learned.json"
    write_lines(path, prose(10_000))
    learned.write_bytes(vocabulary.serialize(tokenizer(LINES)))
    thread = append_once_there(*((cache, "*.partial/train/*") if given else (tmp_path, "cache")), path)
    with pytest.raises(UserError, match=r"a\.txt changed while it was read"):
        find_or_build_shards(files(path, **HELDOUT), SMALL, cache, learned if given else None)
    thread.join()
    assert list(cache.iterdir()) == []


def test_nothing_is_kept_of_a_text_that_changed_after_its_fingerprint(tmp_path: Path) -> None:
    path, output = write_lines(tmp_path / "a.txt", LINES), tmp_path / "shards"
    text, learned = files(path, **HELDOUT), tokenizer(LINES)
    watch, fingerprint = text.source.watch(), text.fingerprint()
    write_lines(path, LINES[::-1])
    for options in (BuildOptions(), BuildOptions(commit_seconds=0, batch_characters=500)):
        with pytest.raises(UserError, match=r"a\.txt changed while it was read"):
            build(text, learned, output, fingerprint=fingerprint, watch=watch, options=options)
        assert [found.name for found in tmp_path.iterdir()] == ["a.txt"]
    with pytest.raises(UserError, match=r"a\.txt changed while it was read"):
        learn_from(text, SMALL, watch)
    assert build(text, learned, output)


def test_a_given_tokenizer_is_used_and_known_by_its_content(tmp_path: Path) -> None:
    text = files(write_lines(tmp_path / "a.txt", LINES), **HELDOUT)
    learned = tokenizer(LINES, size=280)
    pretty, compact = tmp_path / "pretty.json", tmp_path / "compact.json"
    pretty.write_bytes(vocabulary.serialize(learned))
    compact.write_text(learned.to_str())
    folder = find_or_build_shards(text, SMALL, tmp_path / "cache", pretty)
    assert open_shards(folder).manifest.vocabulary_size == 280
    assert find_or_build_shards(text, VocabularyConfig(size=261), tmp_path / "cache", compact) == folder
    assert not list((tmp_path / "cache").glob("tokenizer-*"))


def test_the_vocabulary_is_learned_from_the_training_side_alone(tmp_path: Path) -> None:
    text = TextConfig(heldout_share=0.3)
    seen = SeenHashes(sqlite3.connect(":memory:"))
    cleaned = [found for line in LINES for found in clean_documents(text, [Document(line)], seen)]
    training = [sentence for found in cleaned if found.side == "train" for sentence in found.sentences]
    assert 0 < len(training) < sum(len(found.sentences) for found in cleaned)
    learned, _ = learn_from(files(write_lines(tmp_path / "all.txt", LINES), heldout_share=0.3), SMALL)
    assert vocabulary.serialize(learned) == vocabulary.serialize(vocabulary.learn(iter(training), SMALL))


def test_a_damaged_cache_is_named(tmp_path: Path) -> None:
    text = files(write_lines(tmp_path / "a.txt", LINES), **HELDOUT)
    folder = find_or_build_shards(text, SMALL, tmp_path / "cache")
    (folder / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"damaged or foreign .*: remove the folder"):
        find_or_build_shards(text, SMALL, tmp_path / "cache")
    (saved,) = (tmp_path / "cache").glob("tokenizer-*.json")
    saved.write_text("{")
    with pytest.raises(UserError, match=r"is no valid tokenizer\.json"):
        find_or_build_shards(text, SMALL, tmp_path / "cache")
