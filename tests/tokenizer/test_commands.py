"""The commands that a user runs, as real processes where a process is what is tested."""

import itertools
import resource
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.processes import call, run_module
from tests.tokenizer.samples import prose, tokenizer, write_lines
from tests.unread import run_closed
from tokenizer.cleaning import TextConfig
from tokenizer.shards.format import SIDES, open_shards
from tokenizer.shards.rows import SPECIAL, TEXT, RowFile, beside
from tokenizer.special_tokens import SpecialTokens
from tokenizer.vocabulary import load, serialize

LINES = prose(1000)
TOKENIZER = serialize(tokenizer(LINES, size=300))


def run(folder: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return call(folder, f"tokenizer.{module}", *arguments)


def done(folder: Path, module: str, *arguments: str) -> str:
    finished = run(folder, module, *arguments)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_lines(tmp_path / "a.txt", LINES[:500])
    write_lines(tmp_path / "b.txt", LINES[500:])
    return tmp_path


def test_text_becomes_a_tokenizer_and_shards(folder: Path) -> None:
    said = done(folder, "train", "[ab].txt", "--output", "new/tokenizer.json", "--vocabulary", "400")
    assert "new/tokenizer.json: 400 tokens" in said
    assert load(folder / "new" / "tokenizer.json").get_vocab_size() == 400
    encode = ["a.txt", "b.txt", "--tokenizer", "new/tokenizer.json", "--output", "shards/", "text.heldout_share=0.1"]
    said = done(folder, "encode", *encode)
    assert "MB/s" in said
    shards = open_shards(folder / "shards")
    assert shards.manifest.train.documents + shards.manifest.heldout.documents == 1000
    assert f"{shards.manifest.train.tokens:,}" in said
    done(folder, "encode", *encode[:-2], "rows/", encode[-1], "--row-lengths", "16,64")
    packed, special = open_shards(folder / "rows"), SpecialTokens.of(load(folder / "new" / "tokenizer.json"))
    for side, length in itertools.product(SIDES, (16, 64)):
        rows = RowFile.open(beside(packed, side, length, special), packed)
        text = rows.read(np.arange(len(rows)))["marks"] & (TEXT | SPECIAL) == TEXT
        assert text.sum() == getattr(packed.manifest, side).tokens


def test_what_is_built_does_not_depend_on_who_reads_the_messages(folder: Path) -> None:
    (folder / "t.json").write_bytes(TOKENIZER)
    words = ("-m", "tokenizer.encode", "a.txt", "b.txt", "--tokenizer", "t.json", "text.heldout_share=0.1", "--output")
    assert run_closed("<&- >&- 2>&-", *words, "closed", cwd=folder) == 0
    assert run_closed(">/dev/full 2>/dev/full", *words, "full", cwd=folder) == 0
    closed, full = ((folder / name / "manifest.json").read_bytes() for name in ("closed", "full"))
    assert closed == full


def test_what_the_error_about_bad_utf8_says_to_set_can_be_set(folder: Path) -> None:
    (folder / "bad.txt").write_bytes((folder / "a.txt").read_bytes() + b"caf\xe9\n")
    train = ["bad.txt", "--output", "t.json", "--vocabulary", "300"]
    refused = run(folder, "train", *train)
    (remedy,) = (word for word in refused.stderr.split() if "=" in word)
    assert "t.json: 300 tokens" in done(folder, "train", *train, remedy)


def test_what_is_there_already_is_kept(folder: Path) -> None:
    train = ["a.txt", "--output", "t.json", "--vocabulary", "300"]
    encode = ["a.txt", "--tokenizer", "t.json", "--output", "shards", "text.heldout_share=0.1"]
    for command, arguments in (("train", train), ("encode", encode)):
        done(folder, command, *arguments)
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        assert "already there" in done(folder, command, *arguments)
        refused = run(folder, command, *arguments, "text.heldout_share=0.3")
        assert refused.returncode == 2
        assert refused.stderr.splitlines()[-1].startswith("error: ")
        assert "another" in refused.stderr
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("train", ["none.txt"], "none.txt"),
        ("train", ["*.csv"], "*.csv"),
        ("train", ["a.txt", "--vocabulary", "99999"], "vocabulary.size"),
        ("train", ["a.txt", "--vocabulary", "100"], "vocabulary.size = '100'"),
        ("train", ["a.txt", "text.minimum_word=3"], "text.minimum_words?"),
        ("train", ["a.txt", "text.source.kind=hub", "text.source.name=x"], "text.source"),
        ("encode", ["a.txt", "--tokenizer", "none.json"], "none.json"),
        ("encode", ["a.txt", "--tokenizer", "a.txt"], "a.txt"),
        ("encode", ["bad.txt", "--tokenizer", "t.json"], "bad.txt, line 1, byte 3:"),
        ("encode", ["one.txt", "--tokenizer", "t.json"], "text.heldout_share"),
        (
            "encode",
            ["a.txt", "--tokenizer", "t.json", "--row-lengths", "128,7"],
            "'128,7' is not a list of lengths from 8",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exits_with_2(folder: Path, module: str, arguments: list[str], message: str) -> None:
    (folder / "bad.txt").write_bytes(b"bad\xff\n")
    write_lines(folder / "one.txt", ["one"])
    (folder / "t.json").write_bytes(TOKENIZER)
    failed = run(folder, module, *arguments, "--output", "new")
    assert failed.returncode == 2
    *progress, last = failed.stderr.splitlines()
    assert last.startswith("error: ")
    assert message in last
    assert all(line.startswith("shards: ") for line in progress)
    assert not list(folder.glob("new*"))


def test_a_full_disk_is_one_line_and_the_work_goes_on_from_there(folder: Path) -> None:
    (folder / "t.json").write_bytes(TOKENIZER)
    encode = ["[ab].txt", "--tokenizer", "t.json", "--output", "shards", "text.heldout_share=0.1"]

    def little_space() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    failed = run_module(folder, "tokenizer.encode", *encode, preexec_fn=little_space)
    assert failed.returncode == 2
    assert failed.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in failed.stderr
    assert not (folder / "shards").exists()
    done(folder, "encode", *encode)
    open_shards(folder / "shards")


@pytest.mark.parametrize("module", ["train", "encode"])
def test_help_teaches_every_option(folder: Path, module: str) -> None:
    said = done(folder, module, "--help")
    default = f"default {TextConfig().heldout_share}"
    for words in ("--output", "examples:", "text.source.kind", "text.source.paths", "text.heldout_share", default):
        assert words in said
    assert ("vocabulary.lowercase" in said) == (module == "train")


def test_what_cleaning_drops_is_said_in_a_line(folder: Path) -> None:
    write_lines(folder / "twice.txt", [*LINES, *LINES[:300], "Two words."])
    given = ["twice.txt", "text.minimum_words=3", "text.split_sentences=false"]
    line = "dropped: 300 duplicate documents, 1 short sentences"
    train = [*given, "--output", "t.json", "--vocabulary", "400"]
    encode = [*given, "--tokenizer", "t.json", "--output", "shards"]
    assert line in done(folder, "train", *train).splitlines()
    for _ in range(2):  # built, and found
        assert line in done(folder, "encode", *encode).splitlines()
    assert "dropped" not in done(folder, "train", "a.txt", "--output", "a.json", "--vocabulary", "300")
