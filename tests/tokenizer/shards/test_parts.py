import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from configs import UserError
from tests.tokenizer.samples import files, prose, tokenizer, write_lines
from tests.tokenizer.shards.test_build import content
from tokenizer import vocabulary
from tokenizer.cleaning import Text
from tokenizer.shards import merge as merging
from tokenizer.shards.build import build
from tokenizer.shards.format import open_shards, read_manifest
from tokenizer.shards.merge import merge
from tokenizer.shards.parts import UNITS, Part

LEARNED = tokenizer(prose(300), size=300)


def repetitive(documents: int, seed: int = 0) -> list[str]:
    """Return documents out of few sentences, in every length, so that all that may repeat repeats everywhere."""
    chance = random.Random(seed)
    sentences = [
        f"{'Ä 한 x ' * chance.randint(0, 3)}{name}{number}." for name in ("Alpha", "Beta b") for number in range(150)
    ]
    return [" ".join(chance.choices(sentences, k=chance.randint(1, 5))) for _ in range(documents)]


LINES = [*repetitive(150), *prose(30), *repetitive(150, seed=1), *repetitive(40), *prose(20)]


def in_parts(text: Text, output: Path, count: int) -> Path:
    for number in range(1, count + 1):
        assert build(text, LEARNED, output, part=Part(number, count), workers=0)
    assert merge(text, LEARNED, output, count)
    return output


def at_once(text: Text, output: Path) -> Path:
    assert build(text, LEARNED, output, workers=0)
    open_shards(output)
    return output


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("deduplicate", ["none", "documents", "sentences"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"segments": "documents", "minimum_words": 2, "maximum_words": 8},
        {"split_sentences": False, "minimum_words": 4},
    ],
)
def test_parts_merge_to_the_bytes_of_one_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, deduplicate: str, settings: dict[str, Any]
) -> None:
    monkeypatch.setattr(merging, "_ROUND_BYTES", 2_000)
    text = files(write_lines(tmp_path / "a.txt", LINES), deduplicate=deduplicate, heldout_share=0.3, **settings)
    one = at_once(text, tmp_path / "one")
    dropped = read_manifest(one).dropped
    duplicates = {reason.split()[1]: number for reason, number in dropped.items() if reason.startswith("duplicate")}
    assert set(duplicates) == {deduplicate} - {"none"}
    assert all(number > 50 for number in duplicates.values())
    assert ("short sentences" in dropped) == ("minimum_words" in settings)
    assert content(in_parts(text, tmp_path / "parts", count)) == content(one)


@pytest.mark.parametrize("deduplicate", ["none", "documents", "sentences"])
@pytest.mark.parametrize(
    ("lines", "settings"),
    [
        (["One. Two.", "Three."], {}),  # more parts than documents
        (["One. Two.", "Three. Four."] * 4, {}),  # all of a part after the first two is a repeat
        (["One. Two.", "x. y.", "Six three. x.", "Two two."], {"minimum_words": 2}),  # nothing is left of one
        (["A b. C.", "C. A b.", "A b. C.", "E f. C. A b.", "G h."], {"minimum_words": 2}),  # emptied by another
    ],
)
def test_small_and_empty_parts(tmp_path: Path, lines: list[str], settings: dict[str, Any], deduplicate: str) -> None:
    path = write_lines(tmp_path / "a.txt", lines)
    for tenths in range(1, 10):  # some split leaves text on both sides
        text = files(path, deduplicate=deduplicate, heldout_share=tenths / 10, **settings)
        try:
            one = at_once(text, tmp_path / "one")
        except UserError:
            continue
        for count in (2, 4, 5):
            assert content(in_parts(text, tmp_path / f"in {count}", count)) == content(one)
        return
    pytest.fail("no split leaves text on both sides")


def test_documents_in_groups_keep_their_side_and_packages_are_listed(tmp_path: Path) -> None:
    text = Text(heldout_share=0.1, deduplicate="sentences")
    assert content(in_parts(text, tmp_path / "parts", 3)) == content(at_once(text, tmp_path / "one"))


def test_a_document_longer_than_a_round_is_merged_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "_ROUND_BYTES", 50)
    monkeypatch.setattr(merging, "_ROUND_UNITS", 6)
    lines = [" ".join(LINES[place : place + 30]) for place in range(0, 300, 30)]
    text = files(write_lines(tmp_path / "a.txt", lines), deduplicate="sentences", heldout_share=0.4)
    assert content(in_parts(text, tmp_path / "parts", 2)) == content(at_once(text, tmp_path / "one"))


BUILDER = """
import sys
from pathlib import Path
from tests.tokenizer.samples import files
from tokenizer import build, merge, text as cleaning, vocabulary
from tokenizer.parts import Part

cleaning.BATCH_CHARACTERS = merge._ROUND_BYTES = 500
corpus, tokenizer, output, settings, task = sys.argv[1:]
text, learned, output = files(Path(corpus), **eval(settings)), vocabulary.load(Path(tokenizer)), Path(output)
if task.startswith("merge"):
    merge.merge(text, learned, output, int(task.split()[1]), commit_seconds=0)
else:
    part = Part.parse(task) if task != "whole" else None
    build.build(text, learned, output, part=part, workers=0, commit_seconds=0)
"""


class Built:
    """A text that other processes build and merge, with a commit after every few documents."""

    def __init__(self, folder: Path, deduplicate: str) -> None:
        self.settings = {"deduplicate": deduplicate, "heldout_share": 0.3, "minimum_words": 2}
        self.corpus = write_lines(folder / "a.txt", LINES)
        self.tokenizer = folder / "tokenizer.json"
        self.tokenizer.write_bytes(vocabulary.serialise(LEARNED))
        self.output = folder / "shards"
        self.one = content(at_once(files(self.corpus, **self.settings), folder / "one"))

    def run(self, task: str, kill_after: int | None = None) -> list[str]:
        """Do a task, or kill it after some commits; return what it said."""
        words = [sys.executable, "-c", BUILDER, str(self.corpus), str(self.tokenizer), str(self.output)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(Path.cwd()), *sys.path]))}
        with subprocess.Popen(
            [*words, repr(self.settings), task], stderr=subprocess.PIPE, text=True, env=environment
        ) as process:
            assert process.stderr is not None
            said = [process.stderr.readline() for _ in range(kill_after or 0)]
            if kill_after:
                process.send_signal(signal.SIGKILL)
            said += process.communicate()[1].splitlines()
        assert process.returncode == (-signal.SIGKILL if kill_after else 0), said
        assert all(line.startswith("shards: ") for line in said), said
        return said


def documents(said: str) -> int:
    """Return how many documents were done with at a commit."""
    return int(said.split()[1].replace(",", ""))


@pytest.mark.parametrize("deduplicate", ["documents", "sentences"])
def test_a_killed_part_and_a_killed_merge_go_on_to_the_same_bytes(tmp_path: Path, deduplicate: str) -> None:
    built = Built(tmp_path, deduplicate)
    unfinished = tmp_path / "shards.part-2-of-3.partial"
    built.run("1/3")
    built.run("3/3")
    before = 0
    for commits in (2, 4):
        killed = [documents(line) for line in built.run("2/3", kill_after=commits)]
        assert killed[0] > before  # it did not start anew
        before = killed[-1]
        for path in unfinished.rglob("*.bin"):  # what the process wrote after its last commit
            with path.open("ab") as file:
                file.write(b"remains")
    assert {UNITS, "tokens.bin"} <= {path.name for path in unfinished.rglob("*.bin")}
    with pytest.raises(UserError, match=r"part 2/3 is unfinished: .*shards.part-2-of-3 .* with --part 2/3"):
        merge(files(built.corpus, **built.settings), LEARNED, built.output, 3)
    assert documents(built.run("2/3")[0]) > before
    said = built.run("merge 3", kill_after=4)
    assert not built.output.exists()
    assert documents(built.run("merge 3")[0]) > documents(said[-1])
    assert content(built.output) == built.one


def test_a_merge_goes_on_where_a_build_was_killed_and_the_other_way(tmp_path: Path) -> None:
    built = Built(tmp_path, "documents")
    for task in ("1/3", "2/3", "3/3"):
        built.run(task)
    for first, other in (("whole", "merge 3"), ("merge 3", "whole")):
        killed = built.run(first, kill_after=4)
        assert documents(built.run(other)[0]) > documents(killed[-1])
        assert content(built.output) == built.one
        shutil.rmtree(built.output)
