import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs import UserError
from tests.tokenizer.samples import files, prose, tokenizer, write_lines
from tokenizer.shards import format
from tokenizer.shards.build import build
from tokenizer.shards.format import SIDES, open_shards, verify

LINES = prose(200)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    text = files(write_lines(folder / "a.txt", LINES), heldout_share=0.2)
    build(text, tokenizer(LINES, size=300), folder / "shards")
    return folder / "shards"


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "copy"))


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    edit(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def change(folder: Path, name: str, edit: Callable[[np.ndarray[Any, Any]], object], kind: str) -> None:
    """Change a file's values and set its checksum right, as only a wrong program would."""
    values = np.fromfile(folder / name, kind)
    edit(values)
    values.tofile(folder / name)
    digest = hashlib.sha256(values.tobytes()).hexdigest()
    edit_manifest(folder, lambda manifest: manifest["files"][name].update(sha256=digest))


def check(folder: Path) -> None:
    shards = open_shards(folder)
    for side in SIDES:
        verify(shards, side)


def test_the_splits_are_mapped_and_cannot_be_written(folder: Path) -> None:
    shards = open_shards(folder)
    for split, counts in ((shards.train, shards.manifest.train), (shards.heldout, shards.manifest.heldout)):
        assert isinstance(split.tokens.base, np.memmap)
        assert len(split.tokens) == len(split.word_starts) == split.sentences[-1] == counts.tokens
        assert len(split.sentences) == split.documents[-1] + 1 == counts.sentences + 1
        assert len(split.documents) == counts.documents + 1
        for array in vars(split).values():
            assert not array.flags.writeable


@pytest.mark.parametrize("name", ["train/tokens.bin", "train/sentences.bin", "heldout/word_starts.bin"])
@pytest.mark.parametrize("part", [slice(0, -1), slice(0, 0), slice(1, None)])
def test_truncated_files_are_refused(folder: Path, name: str, part: slice) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[part])
    with pytest.raises(
        UserError, match=r"damaged or foreign \(\w+.bin has .* bytes instead of .*\): remove the folder"
    ):
        open_shards(folder)


@pytest.mark.parametrize("name", ["train/tokens.bin", "heldout/documents.bin", "tokenizer.json"])
def test_changed_files_are_refused(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=r"the checksum of .* is wrong"):
        check(folder)


def test_missing_files_are_refused(folder: Path) -> None:
    (folder / "heldout" / "tokens.bin").unlink()
    with pytest.raises(UserError, match=r"tokens.bin is missing"):
        open_shards(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda manifest: manifest.update(format=2), "another version"),
        (lambda manifest: manifest.pop("train"), "another version"),
        (lambda manifest: manifest.update(token_type=">u2"), "another version"),
        (lambda manifest: manifest["files"].pop("train/tokens.bin"), "names other files"),
        (lambda manifest: manifest["files"].update({"../a": manifest["files"]["tokenizer.json"]}), "names other files"),
        (lambda manifest: manifest["train"].update(tokens=2**62), "does not have the size that its counts give"),
        (lambda manifest: manifest["train"].update(documents=0), "does not have the size that its counts give"),
        (lambda manifest: manifest.update(token_type="<u4"), "does not have the size that its counts give"),
        (lambda manifest: manifest.update(vocabulary_size=10), "ids outside the vocabulary"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    folder: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit_manifest(folder, edit)
    with pytest.raises(UserError, match=message) as caught:
        check(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values_at_once", [1 << 20, 3])
def test_offsets_that_do_not_fit_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values_at_once: int
) -> None:
    monkeypatch.setattr(format, "VALUES_AT_ONCE", values_at_once)
    check(folder)
    edits: list[Callable[[np.ndarray[Any, Any]], object]] = [
        lambda offsets: offsets.__setitem__(0, 1),
        lambda offsets: offsets.__setitem__(-1, offsets[-1] + 1),
        lambda offsets: offsets.__setitem__(3, offsets[5] + 1),
        lambda offsets: offsets.__setitem__(3, -1),
    ]
    for number, edit in enumerate(edits):
        for name in ("train/sentences.bin", "heldout/documents.bin"):
            copy = Path(shutil.copytree(folder, tmp_path / f"{number}{name[0]}"))
            change(copy, name, edit, "<i8")
            with pytest.raises(UserError, match=r"the offsets of the .* side do not fit"):
                check(copy)


def test_opening_reads_sizes_and_no_content(folder: Path) -> None:
    path = folder / "train" / "tokens.bin"
    content = path.read_bytes()
    path.write_bytes(content[::-1])
    assert open_shards(folder).train.tokens.tobytes() == content[::-1]
    path.write_bytes(content[:-2])
    with pytest.raises(UserError, match=r"tokens\.bin has .* bytes instead of"):
        open_shards(folder)


def test_one_side_is_verified_without_the_other(folder: Path) -> None:
    path = folder / "train" / "tokens.bin"
    path.write_bytes(path.read_bytes()[::-1])
    verify(open_shards(folder), "heldout")
    with pytest.raises(UserError, match=r"the checksum of tokens\.bin is wrong"):
        verify(open_shards(folder), "train")


@pytest.mark.parametrize("content", [None, "", "no json", "[]", "{}"])
def test_a_folder_without_a_valid_manifest_is_refused(folder: Path, content: str | None) -> None:
    (folder / "manifest.json").unlink()
    if content is not None:
        (folder / "manifest.json").write_text(content)
    with pytest.raises(UserError, match="holds no token shards" if content is None else "damaged or foreign"):
        open_shards(folder)


def test_what_others_keep_beside_the_shards_does_no_harm(folder: Path) -> None:
    (folder / "rows").mkdir()
    open_shards(folder)
