"""Rows in files: what is packed is there, whatever the windows; damage and foreign rows are named."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from configs import UserError
from tests.tokenizer.samples import files, prose, tokenizer, write_lines
from tokenizer.shards.build import build
from tokenizer.shards.format import Shards, open_shards
from tokenizer.shards.rows import RECORDS, SEGMENT, SPECIAL, TEXT, RowFile, find_or_pack, write
from tokenizer.special_tokens import SpecialTokens

LINES = prose(300)
LEARNED = tokenizer(LINES, size=300)
SPECIAL_TOKENS = SpecialTokens.of(LEARNED)


@pytest.fixture(scope="module", params=["sentences", "documents"])
def shards(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Shards:
    folder = tmp_path_factory.mktemp("shards")
    text = files(write_lines(folder / "a.txt", LINES), heldout_share=0.2, segments=request.param)
    build(text, LEARNED, folder / "shards")
    return open_shards(folder / "shards")


def copied(shards: Shards, folder: Path) -> Shards:
    return open_shards(Path(shutil.copytree(shards.path, folder)))


def segments(rows: RowFile) -> Counter[tuple[int, ...]]:
    """Return the tokens of every segment."""
    records = rows.read(np.arange(len(rows)))
    found = Counter[tuple[int, ...]]()
    for ids_L, marks_L in zip(records["ids"], records["marks"], strict=True):
        inside = marks_L & (TEXT | SPECIAL) == TEXT
        numbers_L = (marks_L & SEGMENT > 0).cumsum()
        found.update(tuple(ids_L[inside & (numbers_L == n)].tolist()) for n in range(1, int(numbers_L.max()) + 1))
    return found


@pytest.mark.parametrize(("window", "workers"), [(1, 0), (7, 2), (10**6, 2)])
@pytest.mark.parametrize("row_length", [12, 64])
def test_rows_hold_every_token_of_every_document_whatever_the_windows(
    shards: Shards, tmp_path: Path, window: int, workers: int, row_length: int
) -> None:
    write(shards, "train", row_length, SPECIAL_TOKENS, tmp_path / "rows", window_sentences=window, workers=workers)
    shutil.move(tmp_path / "rows", tmp_path / "cache" / "of" / "rows")
    rows = RowFile.open(tmp_path / "cache" / "of" / "rows", shards)
    split = shards.train
    assert sum(count * length for length, count in enumerate(rows.segment_lengths)) == len(split.tokens)
    found = segments(rows)
    assert found.total() == rows.segment_lengths.sum() == len(rows.documents)
    assert Counter(map(len, found.elements())) == {n: c for n, c in enumerate(rows.segment_lengths.tolist()) if c}
    tokens = Counter(token for segment in found.elements() for token in segment)
    assert tokens == Counter(split.tokens.tolist())
    records = rows.read(np.arange(len(rows)))
    for row in range(len(rows)):
        marks_L, first = records["marks"][row], int(records["first_segment"][row])
        begins = np.flatnonzero(marks_L & SEGMENT)
        for number, begin in enumerate(begins.tolist()):
            document = int(rows.documents[first + number])
            start, end = split.sentences[split.documents[document : document + 2]]
            length = int((np.append(begins, (marks_L & TEXT > 0).sum())[number + 1]) - begin)
            content = records["ids"][row, begin : begin + length].tobytes()
            assert content in split.tokens[start:end].tobytes(), "a segment is of its document"


def test_the_rows_of_one_side_are_packed_once(shards: Shards, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = find_or_pack(shards, "train", 32, SPECIAL_TOKENS, cache)
    kept = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    second = find_or_pack(shards, "train", 32, SPECIAL_TOKENS, cache)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == kept
    rows_B = np.arange(len(first))
    assert np.array_equal(first.read(rows_B), second.read(rows_B))
    find_or_pack(shards, "heldout", 32, SPECIAL_TOKENS, cache)
    find_or_pack(shards, "train", 16, SPECIAL_TOKENS, cache)
    (folder,) = cache.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["rows-3-heldout-32", "rows-3-train-16", "rows-3-train-32"]


def test_rows_beside_the_shards_are_read_and_the_cache_left_alone(shards: Shards, tmp_path: Path) -> None:
    copy = copied(shards, tmp_path / "copy")
    write(copy, "train", 32, SPECIAL_TOKENS, copy.path / "rows-3-train-32")
    rows = find_or_pack(copy, "train", 32, SPECIAL_TOKENS, tmp_path / "cache")
    assert rows.folder == copy.path / "rows-3-train-32"
    assert not (tmp_path / "cache").exists()


def test_a_damaged_row_is_named_when_it_is_read_and_the_others_are_not(shards: Shards, tmp_path: Path) -> None:
    folder = find_or_pack(shards, "train", 32, SPECIAL_TOKENS, tmp_path).folder
    content = bytearray((folder / RECORDS).read_bytes())
    size = len(content) // len(RowFile.open(folder, shards))
    for place in (2 * size, 3 * size - 5, 3 * size - 1):  # an id, the number of a segment, the checksum itself
        changed = bytearray(content)
        changed[place] ^= 4
        (folder / RECORDS).write_bytes(changed)
        rows = RowFile.open(folder, shards)
        rows.read(np.array([0, 1, 3]))
        with pytest.raises(UserError, match=rf"row 2 in {folder} is damaged: remove the folder"):
            rows.read(np.array([1, 2]))


@pytest.mark.parametrize("name", ["rows.bin", "documents.bin", "rows.json"])
def test_incomplete_and_foreign_rows_are_refused(shards: Shards, tmp_path: Path, name: str) -> None:
    folder = find_or_pack(shards, "train", 32, SPECIAL_TOKENS, tmp_path).folder
    (folder / name).write_bytes((folder / name).read_bytes()[:-3])
    for _ in range(2):
        with pytest.raises(UserError, match=rf"{folder} holds no rows of its shards \({name}.*remove it"):
            find_or_pack(shards, "train", 32, SPECIAL_TOKENS, tmp_path)
        (folder / name).unlink(missing_ok=True)


def test_rows_of_other_shards_are_refused(shards: Shards, tmp_path: Path) -> None:
    folder = find_or_pack(shards, "train", 32, SPECIAL_TOKENS, tmp_path).folder
    header = json.loads((folder / "rows.json").read_text())
    (folder / "rows.json").write_text(json.dumps(header | {"source": "0" * 64}))
    with pytest.raises(UserError, match="packed from other shards"):
        find_or_pack(shards, "train", 32, SPECIAL_TOKENS, tmp_path)


def test_damaged_shards_are_never_packed(shards: Shards, tmp_path: Path) -> None:
    copy = copied(shards, tmp_path / "copy")
    path = copy.path / "train" / "tokens.bin"
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(UserError, match=r"the checksum of tokens\.bin is wrong"):
        find_or_pack(open_shards(copy.path), "train", 32, SPECIAL_TOKENS, tmp_path / "cache")
    assert not list(tmp_path.rglob("rows-*/*"))


def test_a_cache_that_cannot_be_written_names_the_command_that_packs(shards: Shards, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"rows of 32, and the cache \S+ cannot be written .* --row-lengths 32"):
        find_or_pack(shards, "train", 32, SPECIAL_TOKENS, tmp_path / "cache")
