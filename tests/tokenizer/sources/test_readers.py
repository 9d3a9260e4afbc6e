import gzip
import io
import json
import os
import sqlite3
import threading
import time
import tracemalloc
import zipfile
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path

import openpyxl
import pandas
import pyarrow
import pyarrow.parquet
import pytest

from configs import UserError
from tests.tokenizer.samples import COMPRESSIONS, FORMATS, MIXED, read, write
from tokenizer.cleaning import SeenHashes, TextConfig, clean_documents, fall_to_one_side
from tokenizer.sources.readers import TableConfig, read_table

PLAIN = tuple(text for text in MIXED if "\t" not in text)  # a tab ends a field of a .tsv file


def table(path: Path, columns: Sequence[str] = ("text", "label"), **settings: object) -> list[dict[str, str]]:
    """Return the rows of a table, with the columns that nobody asked for."""
    return read_table(path, columns, TableConfig(**settings), all_columns=True)  # type: ignore[arg-type]


def parquet(columns: Mapping[str, Sequence[object]]) -> bytes:
    content = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(dict(columns)), content)
    return content.getvalue()


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


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ('"one ""two"" three"', 'one "two" three'),
        ('"""one"""', '"one"'),
        ('"one," he said', '"one," he said'),
        ('"one" and "two"', '"one" and "two"'),
        ('"One."', '"One."'),  # a quotation, as it is published: nothing in it asks for quotes around it
        ('"one', '"one'),
        ('one"', 'one"'),
        ('""one""', '""one""'),
        ('"', '"'),
    ],
)
def test_a_tsv_field_is_unquoted_only_if_it_is_quoted_as_a_whole(tmp_path: Path, field: str, text: str) -> None:
    path = write(tmp_path, "a.tsv", f"label\ttext\n1\t{field}\n")
    assert read(path) == [text]
    assert table(path) == [{"label": "1", "text": text}]


def test_a_tsv_file_whose_first_line_is_quoted_is_quoted_throughout(tmp_path: Path) -> None:
    path = write(tmp_path, "a.tsv", '"label"\t"text"\n"1"\t"One."\n2\tTwo "or" three\n"3"\t""\n')
    assert read(path) == ["One.", 'Two "or" three']
    assert [row["text"] for row in table(path)] == ["One.", 'Two "or" three', ""]


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


@pytest.mark.parametrize("suffix", [".tsv", ".jsonl"])
def test_the_columns_of_a_row_are_held_out_together(tmp_path: Path, suffix: str) -> None:
    rows = [{"ko": f"문장 {n}", "en": f"sentence {n}", "book": str(n // 5)} for n in range(500)]
    if suffix == ".jsonl":
        lines = [json.dumps({"ko": row["ko"], "en": row["en"], "meta": {"book": row["book"]}}) for row in rows]
    else:
        lines = ["\t".join(rows[0]), *("\t".join(row.values()) for row in rows)]
    path = write(tmp_path, f"a{suffix}", "\n".join(lines))
    book = "meta.book" if suffix == ".jsonl" else "book"

    def heldout(column: str, heldout_by: str | None) -> list[int]:
        source = {"kind": "files", "paths": [str(path)], "columns": [column], "heldout_by": heldout_by}
        text = TextConfig.model_validate({"source": source, "heldout_share": 0.3}, strict=False)
        seen = SeenHashes(sqlite3.connect(":memory:"))
        documents = clean_documents(text, text.documents(), seen)
        return [int(found.sentences[0].split()[1]) for found in documents if found.side == "heldout"]

    assert heldout("ko", None) != heldout("en", None)
    assert heldout("ko", "en") == heldout("en", "en") == heldout("en", None)
    of_books = heldout("ko", book)
    assert of_books == [n for n in range(500) if n // 5 in {n // 5 for n in of_books}]
    assert 50 < len(of_books) < 300
    source = {"kind": "files", "paths": [str(path)], "columns": ["en"], "heldout_by": book}
    few = TextConfig.model_validate({"source": source, "heldout_share": 1e-6}, strict=False)
    with pytest.raises(UserError, match=r"on one side .*\.heldout_by: name a column with more of them"):
        fall_to_one_side(few, str)
    with pytest.raises(UserError, match=r"no column 'author'.*only or heldout_by"):
        heldout("ko", "author")
    with pytest.raises(UserError, match=r"remove text\.source\.heldout_by"):
        read(write(tmp_path, "a.txt", "one\n"), heldout_by="en")


def test_only_the_chosen_rows_are_read(tmp_path: Path) -> None:
    rows = [
        {"text": "one", "year": 2020, "meta": {"set": "Wikipedia (en)"}},
        {"text": "two", "year": 2021, "meta": {"set": "Books3"}},
        {"text": "three", "year": 2021, "meta": {"set": "Wikipedia (en)"}},
    ]
    path = write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows)))
    assert read(path, only={"meta.set": "Wikipedia (en)"}) == ["one", "three"]
    assert read(path, only={"meta.set": ("Wikipedia (en)", "Books3"), "year": "2021"}) == ["two", "three"]
    assert read(path, only={"year": "1999"}) == []
    with pytest.raises(UserError, match=r"line 1: no column 'meta\.kind'; there are: text, year, meta: name .* only"):
        read(path, only={"meta.kind": "Books3"})
    with pytest.raises(UserError, match=r"a\.txt has no columns to choose rows by"):
        read(write(tmp_path, "a.txt", "one\n"), only={"year": "2021"})
    path = write(tmp_path, "a.csv", "text,meta.set\none,x\ntwo,y\n")
    assert read(path, only={"meta.set": "y"}) == ["two"]


def test_the_first_sheet_of_a_workbook_is_read_with_its_numbers_as_they_are_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    book = openpyxl.Workbook()
    for row in [
        (None, None),
        ("text", "label"),
        ("one", 1),
        ("two", 0.1),
        (None, None),
        ("three", True),
        ("four", None),
    ]:
        book.active.append(row)
    book.create_sheet("notes").append(["text", "label"])
    book.save(tmp_path / "a.xlsx")
    with caplog.at_level("INFO"):
        rows = table(tmp_path / "a.xlsx")
    assert [(row["text"], row["label"]) for row in rows] == [
        ("one", "1"),
        ("two", "0.1"),
        ("three", "True"),
        ("four", ""),
    ]
    assert "has 2 sheets: the first one, Sheet, is read" in caplog.text


def test_all_rows_of_a_sheet_are_read_whatever_number_is_noted_in_it(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    for row in [("label", "text", "note"), *((number, f"text {number}", None) for number in range(9))]:
        book.active.append(row)
    book.save(tmp_path / "whole.xlsx")
    with zipfile.ZipFile(tmp_path / "whole.xlsx") as whole, zipfile.ZipFile(tmp_path / "a.xlsx", "w") as changed:
        for name in whole.namelist():
            noted = whole.read(name).replace(b'<dimension ref="A1:C10"', b'<dimension ref="A1:B4"')
            assert noted != whole.read(name) or "sheet1" not in name
            changed.writestr(name, noted)
    assert [row["text"] for row in table(tmp_path / "a.xlsx")] == [f"text {number}" for number in range(9)]


def test_an_empty_file_behind_a_byte_order_mark_adds_nothing(tmp_path: Path) -> None:
    assert read(write(tmp_path, "a.jsonl", b'{"text": "one"}\n\xef\xbb\xbf')) == ["one"]


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
        (
            "a.doc",
            b"one",
            "cannot tell the format of .*a.doc .*: it must end in one of .txt, .jsonl, .json, .csv, .tsv",
        ),
        ("a.gz", b"one", "cannot tell the format"),
        ("a.txt", b"one\ntw\xff\n", "a.txt, line 2, byte 6: invalid UTF-8: .*invalid_utf8=replace"),
        ("a.csv", b"text\none\n\xe9\n", "a.csv, line 3, byte 9: invalid UTF-8"),
        ("a.txt", b"\xef\xbb\xbfone\n\xff", "line 2, byte 7: invalid UTF-8"),
        ("a.txt", b"one\ntw\0o\n", "a.txt, line 2, byte 6: a NUL byte"),
        ("a.txt", "one".encode("utf-16-le"), "line 1, byte 1: a NUL byte"),
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
        ("a.json", b'[{"text": "one"}, "two"]', "a.json, object 2: a JSON str, not an object"),
        ("a.json", b'[{"text": "one"}, {"id": 2}]', "a.json, object 2: no column 'text'; there are: id"),
        ("a.json", b'{"a": [], "b": []}', "a.json: no list of objects, nor an object with one such list"),
        ("a.json", b'"text"', "a.json: no list of objects"),
        ("a.json", b'{"text": "one"}\n{"text": "two"}\n', "a.json: not valid JSON .* name it .jsonl"),
        ("a.xlsx", b"PK no workbook", "a.xlsx is no readable .xlsx file"),
        ("a.xlsx", FORMATS[".xlsx"](["one"])[:-99], "a.xlsx is no readable .xlsx file"),
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


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("suffix", [suffix for suffix in FORMATS if suffix != ".txt"])
def test_a_table_gives_the_same_texts_to_both_uses(tmp_path: Path, suffix: str, compression: str) -> None:
    path = write(tmp_path, f"a{suffix}{compression}", COMPRESSIONS[compression](FORMATS[suffix]((*PLAIN, "NA"))))
    assert [row["text"] for row in table(path, ["text", "id"])] == read(path) == [*PLAIN, "NA"]


@pytest.mark.skipif("MLM_TEST_DATA" not in os.environ, reason="MLM_TEST_DATA names no folder with real data")
@pytest.mark.parametrize(
    ("names", "columns", "header"),
    [
        ("cola/*.tsv", ("sentence", "label"), ("source", "label", "mark", "sentence")),
        ("pairs/rte*.tsv*", ("sentence1", "sentence2", "label"), ()),
        ("pairs/wnli*.tsv", ("sentence1", "sentence2", "label"), ()),
        ("pairs/korsts*.tsv*", ("sentence1", "sentence2", "score"), ()),
        ("ko_en/bible*.tsv.gz", ("ko", "en"), ()),
    ],
)
def test_real_tsv_files_read_as_published(names: str, columns: Sequence[str], header: Sequence[str]) -> None:
    paths = sorted(Path(os.environ["MLM_TEST_DATA"]).glob(names))
    assert paths
    for path in paths:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        lines = [line.rstrip("\r").split("\t") for line in content.decode().rstrip("\n").split("\n")]
        if not header:
            assert read(path, columns=columns[:1]) == [
                text for row in table(path, columns) if (text := row[columns[0]]) and not text.isspace()
            ]
        published = [dict(zip(header or lines[0], line, strict=True)) for line in lines[not header :]]
        assert table(path, columns, header=tuple(header)) == published


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_first_line_tells_the_separator_of_csv(tmp_path: Path, separator: str) -> None:
    path = write(tmp_path, "a.csv", separator.join(["id", "text", "label"]) + f'\n1{separator}"a,b;c\td"{separator}x\n')
    assert table(path) == [{"id": "1", "text": "a,b;c\td", "label": "x"}]
    assert read(path) == ["a,b;c\td"]
    assert table(write(tmp_path, "b.csv", "text\none\n"), ["text"]) == [{"text": "one"}]
    bare = write(tmp_path, "c.csv", f'"one, two; three\tfour"{separator}1\n')
    assert table(bare, header=("text", "label")) == [{"text": "one, two; three\tfour", "label": "1"}]
    broken = write(tmp_path, "d.csv", f'"one,\n""two"";\tthree\n,,;;"{separator}1\n')
    assert table(broken, header=("text", "label")) == [{"text": 'one,\n"two";\tthree\n,,;;', "label": "1"}]


def test_columns_that_nobody_asked_for_cost_little(tmp_path: Path) -> None:
    commas = "," * 16_382  # as many columns as a sheet has
    path = write(tmp_path, "a.csv", f"text,label{commas}\n" + f"one,1{commas}\n" * 50)
    start = time.process_time()
    rows = table(path)
    assert time.process_time() - start < 5  # it took 25 seconds when each name was compared with all before it
    assert (len(rows), len(rows[0]), [*rows[0]][-1]) == (50, 16_384, ".16381")
    other = write(tmp_path, "a.jsonl", json.dumps({"text": "one", "label": 1, "html": "<p>" * 2**18}) + "\n")
    other.write_bytes(other.read_bytes() * 50)
    for wide in (path, other):
        tracemalloc.start()
        assert read_table(wide, ["text", "label"], TableConfig()) == [{"text": "one", "label": "1"}] * 50
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8_000_000  # with the other columns of all rows 40 MB


@pytest.mark.parametrize("line", ["sep=;", '"sep=;"', "SEP=;"])
def test_a_line_for_spreadsheets_tells_the_separator_and_is_no_header(tmp_path: Path, line: str) -> None:
    path = write(tmp_path, "a.csv", f"{line}\r\ntext;label\r\none, two, three;1\r\n")
    assert table(path) == [{"text": "one, two, three", "label": "1"}]
    assert read(path) == ["one, two, three"]
    rare = write(tmp_path, "b.csv", "sep=^\ntext^label\none^1\ntwo\n")
    with pytest.raises(UserError, match=r"b\.csv, line 4: 1 columns"):
        table(rare)


def test_a_header_says_how_many_separators_a_line_of_text_has(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "I came; I saw; I won | twice | so, 1\nwell,0\n")
    assert table(path, header=("text", "label"))[0] == {"text": "I came; I saw; I won | twice | so", "label": " 1"}


def test_csv_may_have_a_byte_order_mark_windows_lines_and_line_breaks_in_quotes(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", b'\xef\xbb\xbf\r\ntext,label\r\n"one\r\ntwo",1\r\n\r\n"say ""hi""",0\r\n')
    assert [tuple(row.values()) for row in table(path)] == [("one\r\ntwo", "1"), ('say "hi"', "0")]


def test_files_with_byte_order_marks_may_be_laid_end_to_end(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    assert read(write(tmp_path, "a.txt", mark + b"one\n" + mark + b"\n" + mark + b"one\n")) == ["one", "one"]
    assert read(write(tmp_path, "b.txt", "one\n".encode("utf-16") + "two\n".encode("utf-16"))) == ["one", "two"]
    record = mark + b'{"text": "one", "label": 1}\n'
    assert table(write(tmp_path, "a.jsonl", record + record)) == [{"text": "one", "label": "1"}] * 2
    twice = write(tmp_path, "a.csv", mark + mark + b"text,label\none,1\n" + mark + b'"two, three",0\n')
    assert [row["text"] for row in table(twice)] == ["one", "two, three"]


def test_a_missing_text_may_be_written_as_nan(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", "".join(f'{{"text": {text}, "label": 1}}\n' for text in ("NaN", "null", '"b"')))
    assert read(path) == ["b"]
    assert [row["text"] for row in table(path)] == ["", "", "b"]
    floats = write(tmp_path, "a.parquet", parquet({"text": [float("nan")], "also": ["b"]}))
    assert read(floats, columns=("text", "also")) == ["b"]


@pytest.mark.parametrize("suffix", sorted(set(COMPRESSIONS) - {""}))
def test_a_file_that_is_no_text_whatever_its_name_says_is_not_read_as_text(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path, "a.csv", COMPRESSIONS[suffix](b"text,label\none,1\n"))
    line = write(tmp_path, "a.txt", path.read_bytes())
    book = write(tmp_path, "b.csv", b"PK\x03\x04\x14\x00\x06\x00")
    with pytest.raises(UserError, match=f"a.csv is compressed: let its name end in {suffix}"):
        table(path, encoding="latin-1")
    with pytest.raises(UserError, match=f"a.txt is compressed: let its name end in {suffix}"):
        read(line, invalid_utf8="replace")
    with pytest.raises(UserError, match=r"b\.csv is a zip archive or a workbook"):
        table(book, encoding="latin-1")


def test_a_blank_line_is_an_empty_text_where_there_is_one_column(tmp_path: Path) -> None:
    for suffix in (".csv", ".tsv"):
        path = write(tmp_path, f"a{suffix}", "text\none\n\ntwo\n")
        assert [row["text"] for row in table(path, ["text"])] == ["one", "", "two"]
        assert read(path) == ["one", "two"]


def test_a_header_names_the_columns_of_files_that_do_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    header = ("source", "label", "mark", "sentence")
    bare = write(tmp_path, "a.tsv", "gj04\t1\t\tOne.\nbc01\t0\t*\tTwo.\n")
    named = write(tmp_path, "b.csv", "sentence,label\nOne.,1\n")
    second = dict(zip(header, ["bc01", "0", "*", "Two."], strict=True))
    assert table(bare, ["sentence", "label"], header=header)[1] == second
    assert table(named, ["sentence", "label"], header=header) == [{"sentence": "One.", "label": "1"}]
    assert [line for line in caplog.messages if "data.header" in line] == [
        f"{bare}, line 1 does not name the columns: data.header names them source, label, mark, sentence"
    ]
    with pytest.raises(UserError, match=r"a\.tsv.* header"):
        table(bare, ["sentence"], header=header[1:])


def test_numbers_become_text_and_gaps_the_empty_text(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"text": "a", "label": 1}\n\n{"text": "b"}\n{"text": null, "label": true}\n')
    assert [tuple(row.values()) for row in table(path)] == [("a", "1"), ("b", ""), ("", "True")]
    odd = write(tmp_path, "b.jsonl", '{"text": "a", "label": NaN, "more": [1]}\n{"label": 1.0, "text": "b"}\n')
    assert [tuple(row.values()) for row in table(odd)] == [("a", "", "[1]"), ("b", "1", "")]
    whole = write(tmp_path, "a.parquet", parquet({"text": ["a", "b"], "label": [2, None]}))
    assert [row["label"] for row in table(whole)] == ["2", ""]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-16-le", "utf-8-sig"])
def test_another_encoding_is_read_if_it_is_named(tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path, "a.csv", "text,label\ncafé,1\n".encode(encoding))
    assert table(path, encoding=encoding)[0]["text"] == "café"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"\n \n", "a.csv has no rows"),
        ("a.csv", b"", "a.csv has no rows"),
        ("a.csv", b"text,label\n", "a.csv has no rows"),
        ("a.jsonl", b"\n\n", "a.jsonl has no rows"),
        ("a.txt", b"one", "cannot tell the format of .*a.txt"),
        ("a.csv", b"text,label\none,1\ntwo\n", "a.csv, line 3: 1 columns .* 2"),
        ("a.csv", b"text,label\none,1\ntwo,2,3\n", "a.csv, line 3: 3 columns .* 2"),
        ("a.csv", b"text,label\none,1,2\ntwo,2,3\n", "a.csv, line 2: 3 columns .* 2"),
        ("a.tsv", b"text\tlabel\none\n", "a.tsv, line 2: 1 columns .* 2"),
        ("a.csv", b'text,label\n"one,1\ntwo,2\n', "a.csv, line 3: not valid CSV .* quotes"),
        ("a.csv", b"text,label\none,1\n\xe9,2\n", "a.csv, line 3, byte 17: .* data.encoding"),
        ("a.csv", b"text,label\no\0e,1\n", "a.csv, line 2, byte 12: a NUL byte"),
        ("a.jsonl", b'{"text": "a", "label": 1}\n{"text"\n', "a.jsonl, line 2: not valid JSON"),
        ("a.jsonl", b'["a"]\n', "a.jsonl, line 1: a JSON list"),
        ("a.jsonl", b'{"text": ["a"], "label": 1}\n', "a.jsonl, line 1: column 'text' holds a list"),
        ("a.jsonl", b'{"text": "\\ud83d", "label": 1}\n', "a.jsonl, line 1: half a character"),
        ("a.jsonl", b'{"text": "a"}\n', "a.jsonl: no column 'label'; there are: text: .*data.label"),
        ("a.csv", b"text,target\none,1\n", "a.csv, line 1: no column 'label'; there are: text, target: .*data.label"),
        ("a.csv", b"text,label,label\none,1,1\n", "a.csv, line 1: the column 'label' is there twice"),
        ("a.csv.gz", b"text", "a.csv.gz is truncated or damaged"),
        ("a.parquet", b"PAR1 no", "a.parquet is no readable parquet file"),
        ("a.parquet", parquet({"text": [b"a"], "label": [1]}), "a.parquet, row 1: column 'text' holds a bytes"),
    ],
)
def test_a_bad_table_is_named_with_the_place_and_the_fault(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(UserError, match=message) as caught:
        table(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-9", "undefined", "rot13", ""])
def test_an_unknown_encoding_is_named(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(UserError, match=f"'{encoding}' is unknown"):
        table(write(tmp_path, "a.csv", "text,label\none,1\n"), encoding=encoding)


@pytest.mark.parametrize(
    ("encoding", "bad", "place"), [("cp1252", b"\x81", "line 3, byte 20"), ("shift_jis", b"\xff", "line 3, byte 20")]
)
def test_a_fault_of_any_encoding_has_its_place(tmp_path: Path, encoding: str, bad: bytes, place: str) -> None:
    path = write(tmp_path, "a.csv", b"text,label\r\nab,1\r\ncd" + bad + b",2\r\n")
    with pytest.raises(UserError, match=rf"a\.csv, {place}: invalid {encoding.upper()}: .*data\.encoding"):
        table(path, encoding=encoding)


def test_a_parquet_column_without_text_is_named(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": [[1, 2]]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="column 'text' holds a list, not text"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,label,,,\none,1,,,\ntwo,2,,,\n"),
        ("a.csv", "text,label\none,1,,,\ntwo,2, ,\n"),
        ("a.csv", "text,label,,\none,1\ntwo,2,\n"),
        ("a.csv", ",text,label,x,x,y,y\n0,one,1,a,b,,\n1,two,2,c,d,,\n"),
        ("a.tsv", "\ttext\tlabel\t\t\n0\tone\t1\t\t\n1\ttwo\t2\n"),
        ("a.csv", ";;text;label\n;;one;1\n;;two;2\n"),
        (
            "a.jsonl",
            '{"text": "one", "label": 1, "x": "\\ud83d", "x": [1.5]}\n'
            '{"\\ud83d": {"text": 1}, "text": "two", "label": 2}\n',
        ),
    ],
)
def test_columns_that_nobody_asked_for_harm_nobody(tmp_path: Path, name: str, content: str) -> None:
    path = write(tmp_path, name, content)
    assert read(path) == ["one", "two"]
    wanted = [{"text": "one", "label": "1"}, {"text": "two", "label": "2"}]
    assert read_table(path, ["text", "label"], TableConfig()) == wanted
    whole = table(path)
    assert [{key: row[key] for key in ("text", "label")} for row in whole] == wanted
    "".join(map(str, whole)).encode()  # as a table of predictions is written


def test_repeated_columns_are_numbered_and_none_is_lost(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "text,label,x,x,,x.1,\na,1,2,3,4,5,6\n")
    assert [list(row.values()) for row in table(path)] == [["a", "1", "2", "3", "4", "5", "6"]]
    assert list(table(path)[0])[:4] == ["text", "label", "x", "x.1"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"text,label,text\none,1,two\n"),
        ("a.tsv", b"text\ttext\tlabel\none\ttwo\t1\n"),
        ("a.jsonl", b'{"text": "one", "label": 1, "text": "two"}\n'),
        ("a.json", b'[{"text": "one", "label": 1, "text": "two"}]'),
    ],
)
def test_a_wanted_column_that_is_there_twice_is_refused_by_both_uses(tmp_path: Path, name: str, content: bytes) -> None:
    path = write(tmp_path, name, content)
    for use in (read, table):
        where = "an object of it" if name == "a.json" else "line 1"
        with pytest.raises(UserError, match=rf"{name}, {where}: the column 'text' is there twice"):
            use(path)
    with pytest.raises(UserError, match="the column 'text' is there twice"):
        read_table(path, ["label"], TableConfig(), optional=["text"])


def test_an_index_of_pandas_is_a_column_and_a_range_is_none(tmp_path: Path) -> None:
    frame = pandas.DataFrame({"text": ["one", "two"], "label": [1, 0], "n": [5, 6]})
    for index in (None, ["text"], ["text", "label"], ["n", "text", "label"]):
        path = tmp_path / "a.parquet"
        (frame if index is None else frame.set_index(index)).to_parquet(path)
        assert read(path) == ["one", "two"]
        assert [sorted(row.items()) for row in table(path)] == [
            [("label", "1"), ("n", "5"), ("text", "one")],
            [("label", "0"), ("n", "6"), ("text", "two")],
        ]


def test_other_columns_of_parquet_need_not_be_readable(tmp_path: Path) -> None:
    broken = pyarrow.Array.from_buffers(
        pyarrow.string(), 1, [None, pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"\xff\xfe")]
    )
    columns = {
        "text": pyarrow.array(["one"]),
        "label": pyarrow.array([1.0]),
        "broken": broken,
        "late": pyarrow.array([10**14], pyarrow.timestamp("s")),
        "nested": pyarrow.array([{"a": [b"x", None]}]),
    }
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    assert read(path) == ["one"]
    assert read_table(path, ["text", "label"], TableConfig()) == [{"text": "one", "label": "1"}]
    assert table(path)[0]["broken"] == "\ufffd\ufffd"
    with pytest.raises(UserError, match=r"a\.parquet is no readable parquet file"):
        read(path, columns=("broken",))


LARGE = 12345678901234567890123


@pytest.mark.parametrize(
    ("number", "spellings"),
    [
        ("1", ["1", "1.0", "1e0", "10E-1", "1.000", '"1"']),
        ("0", ["0", "-0.0", "0e5", "-0"]),
        ("-2.5", ["-2.5", "-2.50", "-25e-1"]),
        (str(LARGE), [str(LARGE), f"{LARGE}.0", f"{LARGE}e0"]),
        ("100000000000000000000", ["1e20", "100000000000000000000", "1E+20"]),
        ("0.0000001", ["1e-7", "0.0000001"]),
        ("True", ["true", '"True"']),
    ],
)
def test_equal_numbers_are_one_text(tmp_path: Path, number: str, spellings: list[str]) -> None:
    lines = [f'{{"text": "a", "label": {spelling}}}' for spelling in spellings]
    assert {row["label"] for row in table(write(tmp_path, "a.jsonl", "\n".join(lines)))} == {number}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pyarrow.array([1, None], pyarrow.int8()), ["1", ""]),
        (pyarrow.array([1.0, float("nan"), None, -0.0, 0.5]), ["1", "", "", "0", "0.5"]),
        (pyarrow.array([1.0, 0.1, None, float("nan")], pyarrow.float32()), ["1", "0.1", "", ""]),
        (pyarrow.array([Decimal("1.00"), Decimal("0.10")]), ["1", "0.1"]),
        (pyarrow.array([2**63 + 1], pyarrow.uint64()), [str(2**63 + 1)]),
        (pyarrow.array([LARGE], pyarrow.decimal256(40, 0)), [str(LARGE)]),
        (pyarrow.array([True, False, None]), ["True", "False", ""]),
        (pyarrow.array(["1", "1.0"]).dictionary_encode(), ["1", "1.0"]),
    ],
)
def test_numbers_of_parquet_are_the_same_texts(tmp_path: Path, values: pyarrow.Array, expected: list[str]) -> None:
    columns = pyarrow.table({"text": ["a"] * len(values), "label": values})
    pyarrow.parquet.write_table(columns, tmp_path / "a.parquet")
    assert [row["label"] for row in table(tmp_path / "a.parquet")] == expected


def test_the_encoding_is_that_of_each_file(tmp_path: Path) -> None:
    text = "text,label\ncaf\u00e9,1\n"
    for content in (text.encode(), text.encode("latin-1"), text.encode("utf-8-sig"), text.encode("utf-16")):
        path = write(tmp_path, "a.csv", content)
        assert table(path, encoding="latin-1")[0]["text"] == "caf\u00e9"
    given = read_table(write(tmp_path, "a.csv", text), ["text"], TableConfig(), encoding="latin-1")
    assert given == [{"text": "caf\u00c3\u00a9"}]
    for content in (text.encode("latin-1"), (text * 9).encode() + b"\xe9"):
        with pytest.raises(UserError, match=r"a\.csv, line \d+, byte \d+: invalid UTF-8: .*--encoding"):
            read_table(write(tmp_path, "a.csv", content), ["text"], TableConfig(encoding="latin-1"), encoding="utf-8")
    chinese = write(tmp_path, "a.csv", "text,label\n\u6a21\u578b\u5f88\u597d,1\n".encode("gbk"))
    assert table(chinese, encoding="gbk")[0]["text"] == "\u6a21\u578b\u5f88\u597d"


def test_a_table_that_grows_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "text,label\n" + "one of many,1\n" * 100_000)
    ended = threading.Event()

    def append() -> None:
        while not ended.is_set():
            with path.open("a") as file:
                file.write("later,1\n")
            time.sleep(0.01)

    thread = threading.Thread(target=append)
    thread.start()
    try:
        with pytest.raises(UserError, match=r"a\.csv changed while it was read"):
            table(path)
    finally:
        ended.set()
        thread.join()
    assert len(table(path)) > 100_000


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_table_without_line_ends_is_refused_at_once(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name, b"a,b;c\td " * 3_000_000)
    tracemalloc.start()
    try:
        for use in (read, table):
            with pytest.raises(UserError, match=rf"{name}: the first line has over 1,000,000 characters"):
                use(path)
        assert tracemalloc.get_traced_memory()[1] < 15_000_000
    finally:
        tracemalloc.stop()


def test_a_wide_table_and_a_long_quoted_field_are_no_fault(tmp_path: Path) -> None:
    names = [f"column {number}" for number in range(20_000)]
    path = write(tmp_path, "a.csv", ";".join(["text", *names]) + "\n" + ";".join(["a, b", *["1"] * 20_000]) + "\n")
    assert read(path) == ["a, b"]
    long = "a, b;" * 500_000
    assert table(write(tmp_path, "b.csv", f'"{long}"\t1\n'), header=("text", "label"))[0]["text"] == long
