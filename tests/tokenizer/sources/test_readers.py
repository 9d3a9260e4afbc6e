import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from configs import UserError
from tests.tokenizer.samples import COMPRESSIONS, FORMATS, MIXED
from tokenizer.sources.readers import Reading, texts

PLAIN = tuple(text for text in MIXED if "\t" not in text)  # a tab ends a field of a .tsv file


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path: Path, **settings: object) -> list[str]:
    return [text.rstrip("\r\n") for text in texts(path, Reading(**settings))]  # type: ignore[arg-type]


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_reads_back_what_was_written(tmp_path: Path, suffix: str, compression: str) -> None:
    path = write(tmp_path, f"a.v1{suffix}{compression}", COMPRESSIONS[compression](FORMATS[suffix](PLAIN)))
    assert read(path) == list(PLAIN)


def test_formats_are_told_by_the_name_in_any_case(tmp_path: Path) -> None:
    assert read(write(tmp_path, "A.TXT.GZ", gzip.compress(b"one\n", mtime=0))) == ["one"]


def test_compressed_files_may_be_laid_end_to_end(tmp_path: Path) -> None:
    for suffix, compress in COMPRESSIONS.items():
        path = write(tmp_path, f"a.txt{suffix}", compress(b"one\n") + compress(b"two\n"))
        assert read(path) == ["one", "two"]


def test_blank_lines_and_line_ends_are_no_text(tmp_path: Path) -> None:
    assert read(write(tmp_path, "a.txt", "one\r\n\r\n  \n\ntwo")) == ["one", "two"]


def test_paragraphs_are_separated_by_blank_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "\n\none\ntwo\n\n \n\nthree\n")
    assert read(path, document="paragraph") == ["one\ntwo", "three"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    assert read(write(tmp_path, "a.csv", b"\xef\xbb\xbftext,id\none,1\n")) == ["one"]


def test_fields_of_csv_may_hold_separators_quotes_line_breaks_and_very_much_text(tmp_path: Path) -> None:
    long = "a" * 200_000
    path = write(tmp_path, "a.csv", f'id,text\n1,"one, ""two""\nthree"\n\n2,{long}\n')
    assert read(path) == ['one, "two"\nthree', long]


def test_quotes_in_tsv_are_characters_unless_the_whole_field_is_quoted(tmp_path: Path) -> None:
    path = write(tmp_path, "a.tsv", 'text\n"one ""two"" three"\n"one," he said\n"one" and "two"\n"\n')
    assert read(path) == ['one "two" three', '"one," he said', '"one" and "two"', '"']


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_each_named_column_gives_a_document_and_empty_ones_none(tmp_path: Path, suffix: str) -> None:
    rows = [{"ko": "하나", "en": "one"}, {"ko": "", "en": "two"}, {"ko": "셋", "en": " "}]
    if suffix == ".parquet":
        path = tmp_path / "a.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif suffix == ".jsonl":
        path = write(tmp_path, "a.jsonl", "\n".join(json.dumps(row) for row in rows))
    else:
        separator = {".csv": ",", ".tsv": "\t"}[suffix]
        lines = [separator.join(row.values()) for row in rows]
        path = write(tmp_path, f"a{suffix}", "\n".join([separator.join(rows[0]), *lines]))
    assert read(path, columns=("ko", "en")) == ["하나", "one", "two", "셋"]
    assert read(path, columns="en") == ["one", "two"]


def test_a_missing_value_is_no_text(tmp_path: Path) -> None:
    assert read(write(tmp_path, "a.jsonl", '{"text": null}\n{"text": "one"}\n')) == ["one"]


def test_bad_bytes_are_replaced_if_asked_for(tmp_path: Path) -> None:
    assert read(write(tmp_path, "a.txt", b"caf\xe9 one\n"), invalid_utf8="replace") == ["caf\ufffd one"]
    with pytest.raises(UserError, match=r"a\.txt, line 3, byte 9: a NUL byte"):
        read(write(tmp_path, "a.txt", b"caf\xe9\nok\nx\0y\n"), invalid_utf8="replace")
    assert read(write(tmp_path, "a.jsonl", b'{"text": "\\ud83d one"}'), invalid_utf8="replace") == ["\ufffd one"]
    assert read(write(tmp_path, "b.jsonl", b'{"text": "\\ud83d\\ude42 one"}')) == ["🙂 one"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "a.txt is empty"),
        ("a.txt.gz", gzip.compress(b"", mtime=0), "a.txt.gz is empty"),
        ("a.doc", b"one", "cannot tell the format of .*a.doc .*: it must end in one of .txt, .jsonl, .csv, .tsv"),
        ("a.gz", b"one", "cannot tell the format"),
        ("a.txt", b"one\ntw\xff\n", "a.txt, line 2, byte 6: invalid UTF-8: .*invalid_utf8=replace"),
        ("a.csv", b"text\none\n\xe9\n", "a.csv, line 3, byte 9: invalid UTF-8"),
        ("a.txt", b"\xef\xbb\xbfone\n\xff", "line 2, byte 7: invalid UTF-8"),
        ("a.txt", b"one\ntw\0o\n", "a.txt, line 2, byte 6: a NUL byte"),
        ("a.txt", "one".encode("utf-16"), "line 1, byte 0: invalid UTF-8|NUL"),
        ("a.txt.gz", gzip.compress(b"one two three\n" * 100, mtime=0)[:-9], "a.txt.gz is truncated or damaged"),
        ("a.txt.gz", b"one two", "a.txt.gz is truncated or damaged"),
        ("a.txt.xz", COMPRESSIONS[".xz"](b"one" * 99)[:-9], "a.txt.xz is truncated or damaged"),
        ("a.txt.xz", b"one two", "a.txt.xz is truncated or damaged"),
        ("a.txt.zst", COMPRESSIONS[".zst"](b"one" * 99)[:-1], "a.txt.zst is truncated or damaged"),
        ("a.txt.zst", b"one two", "a.txt.zst is truncated or damaged"),
        ("a.jsonl", b'{"text": "one"}\n{"text": \n', "a.jsonl, line 2: not valid JSON"),
        ("a.jsonl", b'{"text": "one"}\n["two"]\n', "a.jsonl, line 2: a JSON list, not an object"),
        ("a.jsonl", b'{"text": "one"}\n{"id": 2}\n', "a.jsonl, line 2: no column 'text'; there are: id"),
        ("a.jsonl", b'{"text": 3}\n', "a.jsonl, line 1: column 'text' holds a int, not text"),
        ("a.jsonl", b'{"text": "\\ud83d one"}\n', "a.jsonl, line 1: half a character"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl, line 1: not valid JSON"),
        ("a.csv", b"id,body\n1,one\n", "a.csv, line 1: no column 'text'; there are: id, body"),
        ("a.csv", b'id,text\n1,"one\n2,two\n', "a.csv, line 3: not valid CSV .*unexpected end of data"),
        ("a.csv", b'id,text\n1,"one" two\n', "a.csv, line 2: not valid CSV"),
        ("a.csv", b"id,text\n1,one,two\n", "a.csv, line 2: 3 columns where the first line has 2"),
        ("a.tsv", b"id\ttext\n1\tone\n2\n", "a.tsv, line 3: 1 columns where the first line has 2"),
        ("a.parquet", b"PAR1 no parquet PAR1", "a.parquet is no readable parquet file"),
        ("a.parquet", FORMATS[".parquet"](["one"])[:-9], "a.parquet is no readable parquet file"),
    ],
)
def test_a_bad_file_is_named_with_the_place_and_the_fault(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(UserError, match=message) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_the_place_of_a_bad_byte_is_the_one_in_the_decompressed_text(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt.gz", gzip.compress(b"one\n" * 1000 + b"\xff\n", mtime=0))
    with pytest.raises(UserError, match="line 1001, byte 4000:"):
        read(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file: .*none.txt"):
        read(tmp_path / "none.txt")


def test_a_parquet_column_without_text_is_named(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": [[1, 2]]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="column 'text' holds a list, not text"):
        read(tmp_path / "a.parquet")
