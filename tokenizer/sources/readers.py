"""Read texts out of local files, by lines or by columns, compressed or not, with errors that name the place."""

import codecs
import csv
import gzip
import io
import json
import lzma
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

from configs import Config, Texts, UserError

_BUFFER_BYTES = 1 << 20
_PARQUET_ROWS = 1024
_SURROGATE = re.compile("[\ud800-\udfff]")
_MEND_UTF8 = "convert the file, or set text.source.invalid_utf8=replace to read what is bad as U+FFFD"
_DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError)


class Reading(Config):
    """How a file is read; the settings shared by every source that reads files."""

    columns: Texts = ()
    """Names of the columns that hold the text, in a file that has columns; each column's text is a document of its
    own. None named: the column 'text'."""
    document: Literal["line", "paragraph"] = "line"
    """What one document of a .txt file is: a line, or a paragraph (blank lines separate them)."""
    invalid_utf8: Literal["error", "replace"] = "error"
    """What bytes that are no UTF-8 do: end the command with their place, or be replaced by U+FFFD."""


def texts(path: Path, reading: Reading) -> Iterator[str]:
    """Yield the texts of the file at `path` in order, blank ones left out.

    The format is told by the name: .txt, .jsonl, .csv, .tsv or .parquet, alone or followed by .gz, .xz or .zst.

    Raises:
        UserError: the file is missing, empty, damaged, binary, of an unknown format, or has no such column.

    """
    read = _reader(path)
    try:
        with _opened(path) as file:
            yield from (text for text in read(path, file, reading) if text and not text.isspace())
    except _DAMAGED as error:
        raise UserError(f"{path} is truncated or damaged ({error}): fetch or compress it again") from None


def choose_columns(wanted: Sequence[str], there: Sequence[str], where: str) -> tuple[str, ...]:
    """Return the columns to read: `wanted`, or 'text' where none are named.

    Raises:
        UserError: one of them is not there; the message lists those that are.

    """
    columns = tuple(wanted) or ("text",)
    for column in columns:
        if column not in there:
            raise UserError(f"{where}: no column {column!r}; there are: {', '.join(there)}: name the text's in columns")
    return columns


def as_text(value: object, column: str, where: str) -> str:
    """Return a column's value, the empty text for a missing one.

    Raises:
        UserError: the value is neither text nor missing.

    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{where}: column {column!r} holds a {type(value).__name__}, not text: name another in columns")
    return value


def format_of(path: Path) -> str:
    """Return the part of the file's name that tells its format, such as .csv.gz; empty if `texts` cannot read it."""
    kind, compression = _suffixes(path)
    return f"{kind}{compression}" if kind in _FORMATS else ""


def _suffixes(path: Path) -> tuple[str, str]:
    """Return the last suffix but for a compression's, and the compression's."""
    before, last = ["", "", *path.suffixes][-2:]
    kind, compression = (before, last) if last.lower() in _COMPRESSIONS else (last, "")
    return kind.lower(), compression.lower()


def _reader(path: Path) -> Callable[[Path, BinaryIO, Reading], Iterator[str]]:
    kind, _ = _suffixes(path)
    if kind not in _FORMATS:
        raise UserError(
            f"cannot tell the format of {path} by its name: it must end in one of {', '.join(_FORMATS)}, "
            f"alone or followed by one of {', '.join(_COMPRESSIONS)}"
        )
    return _FORMATS[kind]


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open the file for reading its decompressed bytes."""
    try:
        raw = path.open("rb")
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    _, compression = _suffixes(path)
    decompressed = _COMPRESSIONS[compression](raw) if compression else raw
    with raw, io.BufferedReader(decompressed, _BUFFER_BYTES) as file:
        if not file.peek(1):
            raise UserError(f"{path} is empty: name a file with text")
        yield file


def _zstd(file: BinaryIO) -> Any:
    import pyarrow  # takes a tenth of a second, and few read this format

    return pyarrow.CompressedInputStream(file, "zstd")


_COMPRESSIONS: dict[str, Callable[[BinaryIO], Any]] = {".gz": gzip.open, ".xz": lzma.open, ".zst": _zstd}


def _lines(path: Path, file: BinaryIO, reading: Reading) -> Iterator[str]:
    """Yield the decoded lines with their ends; a leading byte order mark is dropped."""
    errors = "strict" if reading.invalid_utf8 == "error" else "replace"
    number, offset = 1, 0
    while block := file.readlines(_BUFFER_BYTES):
        try:
            lines = [line.decode("utf-8", errors) for line in block]
        except UnicodeDecodeError:
            lines = []
        if not lines or b"\0" in b"".join(block):
            raise _bad_line(path, block, number, offset, errors)
        if number == 1:
            lines[0] = lines[0].removeprefix(codecs.BOM_UTF8.decode())
        yield from lines
        number += len(block)
        offset += sum(map(len, block))


def _bad_line(path: Path, block: Sequence[bytes], first: int, offset: int, errors: str) -> UserError:
    """Return the error of the first bad line of a block, given its first line's number and place."""
    for number, line in enumerate(block, first):
        if b"\0" in line:
            place = f"{path}, line {number}, byte {offset + line.index(0)}"
            return UserError(f"{place}: a NUL byte, so this is no text in UTF-8: convert it")
        try:
            line.decode("utf-8", errors)
        except UnicodeDecodeError as error:
            place = f"{path}, line {number}, byte {offset + error.start}"
            return UserError(f"{place}: invalid UTF-8: {_MEND_UTF8}")
        offset += len(line)
    raise AssertionError("no line is bad")


def _txt(path: Path, file: BinaryIO, reading: Reading) -> Iterator[str]:
    lines = _lines(path, file, reading)
    return lines if reading.document == "line" else _paragraphs(lines)


def _paragraphs(lines: Iterator[str]) -> Iterator[str]:
    paragraph: list[str] = []
    for line in lines:
        if line.isspace():
            yield "".join(paragraph)
            paragraph.clear()
        else:
            paragraph.append(line)
    yield "".join(paragraph)


def _jsonl(path: Path, file: BinaryIO, reading: Reading) -> Iterator[str]:
    for number, line in enumerate(_lines(path, file, reading), start=1):
        if line.isspace():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not valid JSON ({error}): mend or remove the line") from None
        if not isinstance(record, dict):
            raise UserError(f"{where}: a JSON {type(record).__name__}, not an object with named columns")
        for column in choose_columns(reading.columns, list(record), where):
            text = as_text(record[column], column, where)
            if "\\u" in line:
                text = _without_lone_surrogates(text, where, reading)
            yield text


def _without_lone_surrogates(text: str, where: str, reading: Reading) -> str:
    """JSON can escape halves of characters, which no UTF-8 can hold."""
    if reading.invalid_utf8 == "error" and _SURROGATE.search(text):
        raise UserError(f"{where}: half a character (a lone surrogate): {_MEND_UTF8}")
    return _SURROGATE.sub("\ufffd", text)


def _csv(path: Path, file: BinaryIO, reading: Reading) -> Iterator[str]:
    csv.field_size_limit(sys.maxsize)  # a document in one field is often longer than the default 131,072 characters
    rows = csv.reader(_lines(path, file, reading), strict=True)
    try:
        yield from _columns(path, ((rows.line_num, row) for row in rows if row), reading)
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num}: not valid CSV ({error}): mend the quotes there") from None


def _tsv(path: Path, file: BinaryIO, reading: Reading) -> Iterator[str]:
    """Read tab-separated values, where a quote is a plain character unless the whole field is quoted as in CSV."""
    lines = ((number, line.rstrip("\r\n")) for number, line in enumerate(_lines(path, file, reading), start=1))
    rows = ((number, [_unquoted(field) for field in line.split("\t")]) for number, line in lines if line)
    yield from _columns(path, rows, reading)


def _unquoted(field: str) -> str:
    inner = field[1:-1].replace('""', "")
    if len(field) < 2 or field[0] != '"' or field[-1] != '"' or '"' in inner:
        return field
    return field[1:-1].replace('""', '"')


def _columns(path: Path, rows: Iterator[tuple[int, list[str]]], reading: Reading) -> Iterator[str]:
    _, header = next(rows, (1, []))
    columns = choose_columns(reading.columns, header, f"{path}, line 1")
    indices = [header.index(column) for column in columns]
    for number, row in rows:
        if len(row) != len(header):
            raise UserError(
                f"{path}, line {number}: {len(row)} columns where the first line has {len(header)}: mend the line, "
                "or quote the fields that hold separators or line breaks and save the file as .csv"
            )
        for index in indices:
            yield row[index]


def _parquet(path: Path, file: BinaryIO, reading: Reading) -> Iterator[str]:
    import pyarrow.parquet  # see _zstd

    with tempfile.TemporaryFile() as unpacked:
        if _suffixes(path)[1]:  # the file is not read from front to back
            shutil.copyfileobj(file, unpacked)
            file = unpacked
        try:
            table = pyarrow.parquet.ParquetFile(file)
            columns = choose_columns(reading.columns, table.schema_arrow.names, str(path))
            for batch in table.iter_batches(_PARQUET_ROWS, columns=list(columns)):
                for row in batch.to_pylist():
                    yield from (as_text(row[column], column, str(path)) for column in columns)
        except (pyarrow.ArrowException, UnicodeDecodeError) as error:
            raise UserError(f"{path} is no readable parquet file ({' '.join(str(error).split())})") from None


_FORMATS = {".txt": _txt, ".jsonl": _jsonl, ".csv": _csv, ".tsv": _tsv, ".parquet": _parquet}
