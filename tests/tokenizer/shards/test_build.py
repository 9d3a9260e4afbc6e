import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import unicodedata
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from configs import UserError
from tests.tokenizer.samples import files, prose, tokenizer, write_lines
from tokenizer import vocabulary
from tokenizer.cleaning import TextConfig
from tokenizer.shards.build import BuildOptions, build
from tokenizer.shards.format import SIDES, ShardArrays, open_shards
from tokenizer.shards.writer import locked
from tokenizer.sources.files import Watch

LINES = [*prose(50), *prose(1500), *prose(300)]  # some of them twice
LEARNED = tokenizer(LINES, size=400)
SETTINGS = {"heldout_share": 0.1}

BUILDER = """
import logging
import sys
from pathlib import Path
from tests.tokenizer.samples import files
from tokenizer import vocabulary
from tokenizer.shards.build import BuildOptions, build

logging.basicConfig(level=logging.INFO, format="%(message)s")
corpus, tokenizer, output, settings, count = sys.argv[1:]
found = files(Path(corpus), **eval(settings))
options = BuildOptions(workers=int(count), commit_seconds=0, batch_characters=2_000)
build(found, vocabulary.load(Path(tokenizer)), Path(output), options=options)
"""


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "corpus.txt", LINES)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(vocabulary.serialize(LEARNED))
    return path


def start(
    corpus: Path, saved: Path, output: Path, settings: Mapping[str, object], workers: int
) -> subprocess.Popen[str]:
    """Build in another process that commits after every few documents, and says so in a line."""
    words = [sys.executable, "-c", BUILDER, str(corpus), str(saved), str(output), repr(settings), str(workers)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(Path.cwd()), *sys.path]))}
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def decoded(split: ShardArrays, learned: Tokenizer) -> list[list[str]]:
    """Return the sentences of each document."""
    sentences = [
        learned.decode(split.tokens[a:b].tolist(), skip_special_tokens=False)
        for a, b in zip(split.sentences, split.sentences[1:], strict=False)
    ]
    return [sentences[a:b] for a, b in zip(split.documents, split.documents[1:], strict=False)]


@pytest.mark.parametrize("segments", ["sentences", "documents"])
def test_shards_hold_the_text_in_its_order(tmp_path: Path, segments: str) -> None:
    lines = ["One here.  Two 한글 🙂.", "Three [MASK]. Four. Five.", "", "Six.", "One here. Two 한글 🙂."]
    learned = tokenizer(lines, size=261)
    text = files(write_lines(tmp_path / "a.txt", lines), segments=segments, heldout_share=0.5)
    build(text, learned, tmp_path / "shards")
    shards = open_shards(tmp_path / "shards")
    found = sorted(decoded(shards.train, learned) + decoded(shards.heldout, learned))
    space = " " if segments == "documents" else ""
    assert found == [
        ["One here.", f"{space}Two 한글 🙂."],
        ["Six."],
        ["Three [MASK].", f"{space}Four.", f"{space}Five."],
    ]
    counts = [shards.manifest.train, shards.manifest.heldout]
    assert sum(n.documents for n in counts) == 3
    assert sum(n.sentences for n in counts) == 6
    assert sum(n.words for n in counts) == 10
    running = "".join(sentence for document in found for sentence in document)
    assert sum(n.text_bytes for n in counts) == sum(n.tokens for n in counts) == len(running.encode())
    assert shards.manifest.dropped == {"duplicate documents": 1}
    assert shards.manifest.text == text


def test_a_prefix_space_stands_before_a_document_and_not_between_its_sentences(tmp_path: Path) -> None:
    lines = ["我来了。你去吧。好。", "One here. Two.", "Three."]
    learned = tokenizer(lines, size=261, add_prefix_space=True)
    text = files(write_lines(tmp_path / "a.txt", lines), segments="documents", heldout_share=0.5)
    build(text, learned, tmp_path / "shards")
    shards, found = open_shards(tmp_path / "shards"), []
    for split in (shards.train, shards.heldout):
        borders = split.sentences[split.documents]
        found += [split.tokens[a:b].tolist() for a, b in itertools.pairwise(borders)]
    assert sorted(found) == sorted(learned.encode(line).ids for line in lines)


def test_tokens_and_word_starts_are_those_of_the_tokenizer(corpus: Path, tmp_path: Path) -> None:
    build(files(corpus, **SETTINGS), LEARNED, tmp_path / "shards")
    shards = open_shards(tmp_path / "shards")
    for side in SIDES:
        split: ShardArrays = getattr(shards, side)
        assert len(split.documents) > 50
        for a, b in zip(split.sentences[:200], split.sentences[1:201], strict=True):
            encoding = LEARNED.encode(LEARNED.decode(split.tokens[a:b].tolist()))
            assert split.tokens[a:b].tolist() == encoding.ids
            starts = np.diff([-1, *encoding.word_ids]) != 0
            assert (split.word_starts[a:b] == starts).all()


WORDS = st.text(st.characters(categories=("L", "M", "N", "P", "S")), min_size=1, max_size=12)


@given(st.lists(st.lists(WORDS, min_size=1, max_size=8).map(" ".join), max_size=12, unique=True))
def test_any_documents_come_back_from_shards_whole_and_on_one_side(documents: list[str]) -> None:
    lines = [f"{document} {number}" for number, document in enumerate([*documents, *"abcdefghijklmnop"])]
    with tempfile.TemporaryDirectory() as folder:
        text = files(write_lines(Path(folder) / "a.txt", lines), segments="documents", heldout_share=0.5)
        build(text, LEARNED, Path(folder) / "shards")
        shards = open_shards(Path(folder) / "shards")
        sides = [["".join(document) for document in decoded(getattr(shards, side), LEARNED)] for side in SIDES]
        for found in sides:
            assert found == [line for line in lines if line in found]
        assert sorted(sides[0] + sides[1]) == sorted(lines)
        for side in SIDES:
            split: ShardArrays = getattr(shards, side)
            assert split.sentences[split.documents[-1]] == len(split.tokens) == len(split.word_starts)
            assert split.word_starts[split.sentences[split.documents[:-1]]].all()


@pytest.mark.parametrize(("deduplicate", "workers"), [("documents", 2), ("sentences", 0), ("none", 0)])
def test_no_text_is_read_alike_on_both_sides(tmp_path: Path, deduplicate: str, workers: int) -> None:
    learned = tokenizer(LINES, size=300, normalisation="nfkc", lowercase=True)  # the text's settings say nothing of it
    lines = [f"Café Number {number} serves bread." for number in range(300)]
    lines += [unicodedata.normalize("NFD", line).upper() for line in lines]
    text = files(write_lines(tmp_path / "a.txt", lines), deduplicate=deduplicate, heldout_share=0.2)
    options = BuildOptions(workers=workers, batch_characters=2_000)
    build(text, learned, tmp_path / "shards", options=options)
    shards = open_shards(tmp_path / "shards")
    train, heldout = (decoded(getattr(shards, side), learned) for side in SIDES)
    assert len({sentence for (sentence,) in [*train, *heldout]}) == 300
    assert len(heldout) > 30
    assert not [document for document in heldout if document in train]
    dropped = {} if deduplicate == "none" else {f"duplicate {deduplicate}": 300}
    assert shards.manifest.dropped == dropped
    assert shards.manifest.remarks() == [f"dropped: 300 {reason}" for reason in dropped]
    assert shards.manifest.text_fingerprint != text.fingerprint()
    build(text, LEARNED, tmp_path / "plain")
    assert open_shards(tmp_path / "plain").manifest.text_fingerprint == text.fingerprint()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_single_document_has_both_sides_and_that_is_said(tmp_path: Path, workers: int) -> None:
    book = " ".join(f"Chapter {number} begins here. It says {number}." for number in range(500))
    text = files(write_lines(tmp_path / "a.txt", [book]), segments="documents")
    options = BuildOptions(workers=workers, batch_characters=1_000)
    assert build(text, LEARNED, tmp_path / "shards", options=options)
    assert not build(text, LEARNED, tmp_path / "shards", options=options)
    shards = open_shards(tmp_path / "shards")
    parts = {side: decoded(getattr(shards, side), LEARNED) for side in SIDES}
    assert 20 < len(parts["heldout"]) < 90
    both = [sentence.strip() for side in SIDES for part in parts[side] for sentence in part]
    assert sorted(both) == sorted(sentence.strip() for sentence in book.replace(". ", ".\n").split("\n"))
    assert all("".join(part).strip() in book for side in SIDES for part in parts[side])
    (remark,) = shards.manifest.remarks()
    assert "one side" in remark


def test_larger_vocabularies_take_larger_integers(tmp_path: Path) -> None:
    words = ["".join(letters) for letters in itertools.product("abcdefghijklmnopq", repeat=4)]
    learned = tokenizer([f" {word} {word}" for word in words], size=70_000)
    lines = [" ".join(words[place : place + 5]) for place in range(0, len(words), 50)]
    build(files(write_lines(tmp_path / "a.txt", lines), **SETTINGS), learned, tmp_path / "shards")
    shards = open_shards(tmp_path / "shards")
    assert shards.train.tokens.dtype == np.uint32
    assert shards.manifest.token_type == "<u4"
    assert shards.train.tokens.max() > 65_535
    assert set(lines) > {sentences[0] for sentences in decoded(shards.train, learned)}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("changed", [{"most_words": 5_000}, {"deduplicate": "sentences"}], ids=str)
def test_a_killed_build_goes_on_to_the_same_bytes(
    corpus: Path, saved: Path, tmp_path: Path, changed: Mapping[str, object], workers: int
) -> None:
    settings = {**SETTINGS, **changed}
    build(files(corpus, **settings), LEARNED, tmp_path / "at once", options=BuildOptions(workers=0))
    output, unfinished = tmp_path / "shards", tmp_path / "shards.partial"
    for commits in (1, 3, 9):
        builder = start(corpus, saved, output, settings, workers)
        assert builder.stderr is not None
        lines = [builder.stderr.readline() for _ in range(commits)]
        builder.send_signal(signal.SIGKILL)
        builder.communicate()
        assert all(line.startswith("shards: ") for line in lines), lines
        assert not output.exists()
        for path in unfinished.glob("*/*.bin"):  # what the process wrote after its last commit
            with path.open("ab") as file:
                file.write(b"remains")
    builder = start(corpus, saved, output, settings, workers)
    _, said = builder.communicate()
    assert builder.returncode == 0, said
    assert int(said.split()[1].replace(",", "")) > 200  # it did not start anew
    assert not unfinished.exists()
    assert content(output) == content(tmp_path / "at once")


def test_what_was_left_of_another_build_is_not_used(corpus: Path, saved: Path, tmp_path: Path) -> None:
    output = tmp_path / "shards"
    builder = start(corpus, saved, output, {**SETTINGS, "segments": "documents"}, 0)
    assert builder.stderr is not None
    builder.stderr.readline()
    builder.kill()
    builder.communicate()
    build(files(corpus, **SETTINGS), LEARNED, output)
    build(files(corpus, **SETTINGS), LEARNED, tmp_path / "other")
    assert content(output) == content(tmp_path / "other")


def test_a_damaged_state_starts_the_build_anew(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "shards.partial" / "train").mkdir(parents=True)
    (tmp_path / "shards.partial" / "build.sqlite").write_bytes(b"no database" * 999)
    (tmp_path / "shards.partial" / "train" / "tokens.bin").write_bytes(b"remains")
    assert build(files(corpus, **SETTINGS), LEARNED, tmp_path / "shards")
    build(files(corpus, **SETTINGS), LEARNED, tmp_path / "other")
    assert content(tmp_path / "shards") == content(tmp_path / "other")


def test_a_second_process_waits_and_finds_the_work_done(corpus: Path, saved: Path, tmp_path: Path) -> None:
    builders = [start(corpus, saved, tmp_path / "shards", SETTINGS, 0) for _ in range(3)]
    with ThreadPoolExecutor() as threads:
        said = list(threads.map(lambda builder: builder.communicate()[1], builders))
    assert [builder.returncode for builder in builders] == [0, 0, 0], said
    assert sum(any(line.startswith("shards: ") for line in words.splitlines()) for words in said) == 1
    open_shards(tmp_path / "shards")
    assert not (tmp_path / "shards.partial").exists()


def test_a_process_says_that_it_waits(corpus: Path, saved: Path, tmp_path: Path) -> None:
    with locked(tmp_path / "shards.partial"):
        builder = start(corpus, saved, tmp_path / "shards", SETTINGS, 0)
        assert builder.stderr is not None
        assert "another process is at work" in builder.stderr.readline()
        assert builder.poll() is None
    builder.communicate()
    assert builder.returncode == 0


def test_what_is_built_is_left_alone(corpus: Path, tmp_path: Path) -> None:
    assert build(files(corpus, **SETTINGS), LEARNED, tmp_path / "shards")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").rglob("*")}
    assert not build(files(corpus, **SETTINGS), LEARNED, tmp_path / "shards")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").rglob("*")} == before
    for text, learned in (
        (files(corpus, heldout_share=0.2), LEARNED),
        (files(corpus, **SETTINGS), tokenizer(LINES, size=300)),
    ):
        with pytest.raises(UserError, match=r"shards .* another text or tokenizer"):
            build(text, learned, tmp_path / "shards")


def test_a_folder_of_something_else_is_left_alone(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert build(files(corpus, **SETTINGS), LEARNED, tmp_path / "mine")  # an empty folder is as good as none
    write_lines(tmp_path / "file", ["mine"])
    with pytest.raises(UserError, match="holds no token shards"):
        build(files(corpus, **SETTINGS), LEARNED, tmp_path / "file")
    with pytest.raises(UserError, match="holds no token shards"):
        build(files(corpus, **SETTINGS), LEARNED, tmp_path)


@pytest.mark.parametrize(
    ("lines", "settings", "message"),
    [
        ([" ", ""], {}, "empty"),
        (["One."], {"minimum_words": 5}, "empty"),
        (["One.", "Two."], {}, "none to heldout: .*text.heldout_share"),
        (["One.", "Two."], {"heldout_share": 0.999999}, "none to train"),
        (["The same."] * 500, {"deduplicate": "none"}, "sentences that differ .500 documents"),
    ],
)
def test_an_empty_side_is_refused(tmp_path: Path, lines: list[str], settings: dict[str, object], message: str) -> None:
    text = files(write_lines(tmp_path / "a.txt", lines), **settings)
    with pytest.raises(UserError, match=message):
        build(text, LEARNED, tmp_path / "shards")
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt"}


def test_bad_input_in_the_middle_leaves_nothing_behind(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.txt", LINES)
    (tmp_path / "b.txt").write_bytes(b"one\n\xff\n")
    with pytest.raises(UserError, match=r"b\.txt, line 2, byte 4:"):
        build(files(tmp_path / "a.txt", tmp_path / "b.txt", **SETTINGS), LEARNED, tmp_path / "shards")
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", "b.txt"}


def test_a_text_that_cannot_be_read_for_a_while_costs_nothing_that_is_committed(
    corpus: Path, saved: Path, tmp_path: Path
) -> None:
    text, away, output = files(corpus, **SETTINGS), tmp_path / "away", tmp_path / "shards"
    fingerprint = text.fingerprint()
    build(text, LEARNED, tmp_path / "at once")
    builder = start(corpus, saved, output, SETTINGS, 0)
    assert builder.stderr is not None
    builder.stderr.readline()
    builder.kill()
    builder.communicate()
    corpus.rename(away)
    corpus.symlink_to(corpus)  # opening it is an error of the system, as on a network disk
    with pytest.raises(UserError, match=r"cannot read .*corpus\.txt: Too many levels"):
        build(text, LEARNED, output, fingerprint=fingerprint, watch=Watch(tuple))
    assert (tmp_path / "shards.partial" / "train" / "tokens.bin").stat().st_size
    away.rename(corpus)
    build(text, LEARNED, output, fingerprint=fingerprint)
    assert content(output) == content(tmp_path / "at once")


def test_the_manifest_says_what_each_package_gave(tmp_path: Path) -> None:
    text = TextConfig(heldout_share=0.1)
    learned = tokenizer(LINES)
    build(text, learned, tmp_path / "shards")
    manifest = open_shards(tmp_path / "shards").manifest
    assert {"python", "torch", "numpy"} <= {package.name for package in manifest.packages}
    total = sum(package.words for package in manifest.packages)
    assert total == manifest.train.words + manifest.heldout.words
    assert json.loads((tmp_path / "shards" / "manifest.json").read_text())["packages"][0]["version"]
