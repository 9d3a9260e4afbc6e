"""Parts as a user meets them: the commands, and what is refused."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from configs import UserError
from tests.tokenizer.samples import files, prose, tokenizer, write_lines
from tests.tokenizer.shards.test_build import content
from tests.tokenizer.shards.test_parts import LEARNED, LINES, at_once
from tests.tokenizer.test_commands import run
from tokenizer import vocabulary
from tokenizer.shards.build import build
from tokenizer.shards.format import open_shards, read_manifest
from tokenizer.shards.merge import merge
from tokenizer.shards.parts import MAXIMUM_PARTS, UNITS, Part


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_lines(tmp_path / "a.txt", LINES)
    (tmp_path / "t.json").write_bytes(vocabulary.serialise(LEARNED))
    return tmp_path


ENCODE = ["a.txt", "--tokenizer", "t.json", "--output", "shards", "text.heldout_share=0.3"]


def done(folder: Path, *options: str) -> str:
    finished = run(folder, "encode", *ENCODE, *options)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_processes_build_their_parts_at_the_same_time(folder: Path) -> None:
    words = [sys.executable, "-m", "tokenizer.encode", *ENCODE]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(Path.cwd()), *sys.path]))}
    processes = [
        subprocess.Popen([*words, "--part", part], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
        for part in ("1/2", "2/2")
    ]
    said = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert not any("waiting" in words for words in said), said
    assert "MB/s" in done(folder, "--merge", "2")
    one = at_once(files(folder / "a.txt", heldout_share=0.3), folder / "one")
    shards = content(folder / "shards")
    assert shards.keys() == content(one).keys()
    differing = [name for name, held in content(one).items() if shards[name] != held]
    assert differing == ["manifest.json"]  # it names the files as the user did
    assert read_manifest(folder / "shards").inputs == read_manifest(one).inputs
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert "part-2-of-2: already there" in done(folder, "--part", "2/2")
    assert "shards: already there" in done(folder, "--merge", "2")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--part", "9/8"], "--part 9/8: there is no such part: name one from 1/8 to 8/8"),
        (["--part", "0/8"], "--part 0/8: there is no such part: name one from 1/8 to 8/8"),
        (["--part", "a/b"], "--part a/b names no part: write --part 2/8 for the second of 8"),
        (["--part", "-1/8"], "expected one argument: see python -m tokenizer.encode --help"),
        (["--part", "2"], "--part 2 names no part"),
        (["--part", "2/0"], f"--part 2/0: 0 is no number of parts: there may be 1 to {MAXIMUM_PARTS}"),
        (["--part", "2/101"], f"--part 2/101: 101 is no number of parts: there may be 1 to {MAXIMUM_PARTS}"),
        (["--merge", "0"], f"--merge 0: 0 is no number of parts: there may be 1 to {MAXIMUM_PARTS}"),
        (["--merge", "two"], "--merge two: two is no number of parts"),
        (["--part", "1/2", "--merge", "2"], "not allowed with argument"),
        (["--merge", "2"], "part 1/2 (and 1 more) is missing: "),
    ],
)
def test_a_mistake_is_one_line_and_exits_with_2(folder: Path, options: list[str], message: str) -> None:
    failed = run(folder, "encode", *ENCODE, *options)
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: ")
    assert failed.stderr.count("\n") == 1
    assert message in failed.stderr
    assert not list(folder.glob("shards*"))


def test_parts_of_something_else_are_not_merged(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.txt", LINES)
    text, output = files(path, heldout_share=0.3), tmp_path / "shards"
    build(text, LEARNED, output, part=Part(1, 2))
    with pytest.raises(UserError, match=r"part 2/2 is missing: .* or copy it there; .* shards.part-1-of-2$"):
        merge(text, LEARNED, output, 2)
    with pytest.raises(UserError, match=r"part 1/3 \(and 2 more\) is missing: .* shards.part-1-of-2$"):
        merge(text, LEARNED, output, 3)
    with pytest.raises(UserError, match="holds the shards of another text"):
        build(files(path, heldout_share=0.2), LEARNED, output, part=Part(1, 2))
    second = tmp_path / "shards.part-2-of-2"
    for other, learned, part in (
        (files(write_lines(tmp_path / "b.txt", LINES[1:]), heldout_share=0.3), LEARNED, Part(2, 2)),
        (text.model_copy(update={"deduplicate": "none"}), LEARNED, Part(2, 2)),
        (text, tokenizer(prose(300), size=290), Part(2, 2)),
        (text, LEARNED, Part(2, 3)),
        (text, LEARNED, Part(1, 2)),
    ):
        build(other, learned, tmp_path / "other", part=part)
        part.folder(tmp_path / "other").rename(second)
        with pytest.raises(UserError, match=r"part-2-of-2 is no part 2/2 of .* build it again with --part 2/2"):
            merge(text, LEARNED, output, 2)
        shutil.rmtree(second)
    at_once(text, second)  # the whole is no part either
    with pytest.raises(UserError, match="is no part 2/2 of"):
        merge(text, LEARNED, output, 2)
    assert not list(tmp_path.glob("shards*partial"))


def test_a_damaged_part_is_not_merged(tmp_path: Path) -> None:
    text, output = files(write_lines(tmp_path / "a.txt", LINES), heldout_share=0.3), tmp_path / "shards"
    build(text, LEARNED, output, part=Part(1, 1))
    units = tmp_path / "shards.part-1-of-1" / UNITS
    units.write_bytes(units.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match=r"part-1-of-1 are damaged .*the checksum of units.bin is wrong.* build them"):
        merge(text, LEARNED, output, 1)


def test_a_part_is_not_taken_for_the_whole(tmp_path: Path) -> None:
    text = files(write_lines(tmp_path / "a.txt", LINES), heldout_share=0.3)
    build(text, LEARNED, tmp_path / "shards", part=Part(1, 2))
    with pytest.raises(UserError, match="its manifest names other files"):
        open_shards(tmp_path / "shards.part-1-of-2")


def test_what_a_whole_build_refuses_is_refused_at_the_merge(tmp_path: Path) -> None:
    text = files(write_lines(tmp_path / "a.txt", ["One.", "Two."]), minimum_words=5)
    for number in (1, 2):
        build(text, LEARNED, tmp_path / "shards", part=Part(number, 2))
    with pytest.raises(UserError, match="the text is empty"):
        merge(text, LEARNED, tmp_path / "shards", 2)
    assert {path.name for path in tmp_path.glob("shards*")} == {"shards.part-1-of-2", "shards.part-2-of-2"}
    (tmp_path / "mine").mkdir()
    write_lines(tmp_path / "mine" / "a.txt", ["mine"])
    with pytest.raises(UserError, match="is there already, and holds no token shards"):
        build(text, LEARNED, tmp_path / "mine", part=Part(1, 2))
