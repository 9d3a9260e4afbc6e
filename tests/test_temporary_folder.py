"""The folder for temporary files is one more disk that can be full."""

import gzip
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from configs import UserError
from tokenizer import train
from tokenizer.sources import Files


@contextmanager
def small_disk(largest_bytes: int) -> Iterator[None]:
    """Return a context in which no file grows beyond this size, as on a disk without room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "small"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def test_learning_a_vocabulary_names_the_folder_and_works_once_there_is_room(temporary: Path, tmp_path: Path) -> None:
    text, output = tmp_path / "many.txt", tmp_path / "t.json"
    text.write_text("".join(f"row {number}\n" for number in range(200_000)))  # SQLite keeps the hashes of 60,000
    words = [str(text), "--output", str(output), "--vocabulary", "262", "text.heldout_share=0.001"]
    with small_disk(500_000), pytest.raises(UserError, match=r"TMPDIR") as raised:
        train.main(words)
    assert str(temporary) in str(raised.value)
    assert not output.exists()
    text.write_text("row 1\nrow 2\n")
    train.main(words)
    assert output.exists()


def test_a_compressed_parquet_file_names_it_too(temporary: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet.gz"
    pyarrow.parquet.write_table(pyarrow.table({"text": [f"row {number}" for number in range(20_000)]}), tmp_path / "t")
    path.write_bytes(gzip.compress((tmp_path / "t").read_bytes()))
    source = Files(paths=(str(path),))
    with small_disk(20_000), pytest.raises(UserError, match=r"TMPDIR") as raised:
        list(source.documents())
    assert str(temporary) in str(raised.value)
    assert len(list(source.documents())) == 20_000


def test_without_any_folder_the_variable_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.parquet.gz"
    path.write_bytes(gzip.compress(b"a"))  # a plain one is read where it lies
    monkeypatch.setenv("TMPDIR", str(tmp_path / "absent"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "absent")])
    with pytest.raises(UserError, match=r"absent.*TMPDIR"):
        list(Files(paths=(str(path),)).documents())
