import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from configs import UserError
from tests.tokenizer.samples import FORMATS, files, prose, tokenizer, write, write_lines
from tokenizer.cleaning import TextConfig
from tokenizer.shards import parts
from tokenizer.shards.build import build
from tokenizer.shards.format import SIDES, open_shards
from tokenizer.shards.parts import Answer, Request, build_parts
from tokenizer.sources import Files

NEW = prose(800)
LINES = [*NEW, *NEW[100:150], *prose(100, seed=3), *NEW[:20]]
LEARNED = tokenizer(LINES, size=300)


class StopError(Exception):
    """The end of a process in the midst of its work."""


def here(task: Callable[[Request], Answer], requests: Sequence[Request]) -> list[Answer]:
    """Run tasks in an order that nobody may rely on."""
    answers = {number: task(request) for number, request in reversed(list(enumerate(requests)))}
    return [answers[number] for number in range(len(requests))]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def texts(folder: Path, **settings: object) -> TextConfig:
    """Return three files: the repetitions are in the last, and one is as long as several parts."""
    cuts = (0, 500, 520, len(LINES))
    paths = [write_lines(folder / f"{n}.txt", LINES[a:b]) for n, (a, b) in enumerate(itertools.pairwise(cuts))]
    return files(*paths, **{"heldout_share": 0.2, **settings})


@pytest.mark.parametrize("deduplicate", ["none", "documents", "sentences"])
def test_parts_hold_what_a_single_folder_holds(
    tmp_path: Path, deduplicate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_HASHES_AT_ONCE", 300)  # several ranges
    text = texts(tmp_path, deduplicate=deduplicate)
    folders, _ = build_parts(text, LEARNED, tmp_path / "parts", here, part_bytes=9000, row_lengths=(64,))
    build(text, LEARNED, tmp_path / "one")
    one, several = open_shards(tmp_path / "one"), list(map(open_shards, folders))
    assert len(several) > 4
    for side in SIDES:
        for name in ("tokens", "word_starts"):
            found = np.concatenate([getattr(getattr(part, side), name) for part in several])
            np.testing.assert_array_equal(found, getattr(getattr(one, side), name))
        for name in ("sentences", "documents"):
            found = np.concatenate([np.diff(getattr(getattr(part, side), name)) for part in several])
            np.testing.assert_array_equal(found, np.diff(getattr(getattr(one, side), name)))
    dropped = [sum(part.manifest.dropped.values()) for part in several]
    assert sum(dropped) == sum(one.manifest.dropped.values())
    assert all((folder / f"rows-3-{side}-64").is_dir() for folder in folders for side in SIDES)


@pytest.mark.parametrize(
    ("name", "settings", "several"),
    [
        (".txt", {}, True),
        (".jsonl", {}, True),
        (".csv", {}, False),
        (".parquet", {}, False),
        ("paragraphs.txt", {"document": "paragraph"}, True),
        ("returns.txt", {}, True),
        ("wide.txt", {}, False),
    ],
)
def test_a_file_is_cut_between_documents(tmp_path: Path, name: str, settings: dict[str, str], several: bool) -> None:
    contents = {
        "paragraphs.txt": "\r\n\r\n\r\n".join(line.replace(". ", ".\r\n") for line in LINES).encode(),
        "returns.txt": "\r\n".join(LINES).encode(),
        "wide.txt": "\n".join(LINES).encode("utf-16"),
    }
    content = contents[name] if name in contents else FORMATS[name](LINES)
    source = Files(paths=(str(write(tmp_path, f"a{name}", content)),)).model_copy(update=settings)
    parts = source.parts(2000)
    assert (len(parts) > 10) is several
    assert [one for part in parts for one in part.documents()] == list(source.documents())
    assert len({part.fingerprint() for part in parts}) == len(parts)


def test_a_part_of_repetitions_alone_has_no_folder(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.txt", NEW[:200])
    write_lines(tmp_path / "b.txt", NEW[:200])
    write_lines(tmp_path / "c.txt", NEW[200:400])
    paths = [tmp_path / f"{name}.txt" for name in "abc"]
    text, longest = files(*paths, heldout_share=0.2), max(path.stat().st_size for path in paths)
    for made in (True, False):
        folders, built = build_parts(text, LEARNED, tmp_path / "shards", here, part_bytes=longest)
        assert [folder.name for folder in folders] == ["part-00000", "part-00002"]
        assert built is made


@pytest.mark.parametrize("stop", [0, 7, 13, 17])
def test_a_restart_makes_what_is_missing(tmp_path: Path, stop: int) -> None:
    text, left = texts(tmp_path), stop

    def stopping(task: Callable[[Request], Answer], requests: Sequence[Request]) -> list[Answer]:
        def counted(request: Request) -> Answer:
            nonlocal left
            if not left:
                raise StopError
            left -= 1
            return task(request)

        return here(counted, requests)

    build_parts(text, LEARNED, tmp_path / "whole", here, part_bytes=9000)
    with pytest.raises(StopError):
        build_parts(text, LEARNED, tmp_path / "parts", stopping, part_bytes=9000)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("parts/part-*")}
    folders, built = build_parts(text, LEARNED, tmp_path / "parts", here, part_bytes=9000)
    assert built
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert build_parts(text, LEARNED, tmp_path / "parts", here, part_bytes=9000) == (folders, False)


def test_repetitions_of_a_text_that_has_changed_since_a_stop_drop_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last file repeats 20 texts of the first one, which is then replaced."""
    text = texts(tmp_path)

    def stopped(task: Callable[[Request], Answer], requests: Sequence[Request]) -> list[Answer]:
        if task is parts._make:
            raise StopError
        return here(task, requests)

    with pytest.raises(StopError):
        build_parts(text, LEARNED, tmp_path / "parts", stopped, part_bytes=9000)
    write_lines(tmp_path / "0.txt", prose(500, seed=9))
    write_lines(tmp_path / "3.txt", prose(50, seed=10))
    changed = files(*(tmp_path / f"{n}.txt" for n in range(4)), heldout_share=0.2)
    folders, _ = build_parts(changed, LEARNED, tmp_path / "parts", here, part_bytes=9000)
    build(changed, LEARNED, tmp_path / "one")
    one = open_shards(tmp_path / "one")
    dropped = sum(sum(open_shards(folder).manifest.dropped.values()) for folder in folders)
    assert dropped == sum(one.manifest.dropped.values())


def test_an_output_that_holds_something_else_stays_as_it_is(tmp_path: Path) -> None:
    text, output = texts(tmp_path), tmp_path / "parts"
    write(tmp_path, "file", b"")
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder", "thesis.txt", b"")
    for name in ("file", "folder"):
        with pytest.raises(UserError, match=name):
            build_parts(text, LEARNED, tmp_path / name, here)
    build_parts(text, LEARNED, output, here, part_bytes=9000)
    before = contents(output)
    others = [(text, 12_000), (text, 5000), (text.model_copy(update={"minimum_words": 2}), 9000)]
    for other, part_bytes in others:
        with pytest.raises(UserError, match="another text"):
            build_parts(other, LEARNED, output, here, part_bytes=part_bytes)
    assert contents(output) == before


def test_a_text_that_changes_between_the_passes_is_told(tmp_path: Path) -> None:
    def changing(task: Callable[[Request], Answer], requests: Sequence[Request]) -> list[Answer]:
        answers = here(task, requests)
        with (tmp_path / "1.txt").open("a") as file:
            file.write("One line more.\n")
        os.utime(tmp_path / "1.txt", (0, 0))
        return answers

    with pytest.raises(UserError, match="changed"):
        build_parts(texts(tmp_path), LEARNED, tmp_path / "parts", changing, part_bytes=9000)
