"""Read texts and tables out of local files: the one reader of pretraining text and of labelled data.

The name of a file tells its format: .txt, .jsonl, .csv, .tsv or .parquet, alone or followed by .gz, .xz or .zst.
Errors name the file, the line or row, and the column.
"""

import codecs
import csv
import gzip
import io
import itertools
import json
import lzma
import math
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from configs import Config, Texts, UserError

_BUFFER_BYTES = 1 << 20
_PARQUET_ROWS = 1024
_SURROGATE = re.compile("[\ud800-\udfff]")
_QUOTED = re.compile('"[^"]*"')
_SEPARATORS = ",;\t"
_DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError)
_RULES = {".tsv": "2"}
"""Version of the rules by which a format is read, from the second on: raised when the same file gives other texts."""


class TextFileConfig(Config):
    """Settings of the text files of a source."""

    columns: Texts = ()
    """Names of the columns that hold the text, in a file that has columns; each column's text is a document of its
    own. None named: the column 'text'."""
    document: Literal["line", "paragraph"] = "line"
    """The documents of a .txt file: its lines, or its paragraphs (blank lines separate them)."""
    invalid_utf8: Literal["error", "replace"] = "error"
    """Treatment of bytes that are no UTF-8: an error that names their place, or U+FFFD in their stead."""


class TableConfig(Config):
    """Settings of a table of labelled texts."""

    header: Texts = ()
    """Names of all the columns, for .csv and .tsv files whose first line does not name those that are needed."""
    encoding: str = "utf-8"
    """Encoding of the files, such as utf-8 or latin-1; .parquet files need none."""


class Row(NamedTuple):
    """One row of a table."""

    place: str
    """The file and the line or row, for messages."""
    values: Mapping[str, object]
    """The value of each column."""


@dataclass(frozen=True, slots=True)
class _Options:
    """The settings of both uses of the reader, and the words in which each use says how to mend a file."""

    columns: tuple[str, ...]
    """The columns that must be there."""
    all_columns: bool
    """True to read the other columns too."""
    header: tuple[str, ...]
    encoding: str
    replace_invalid: bool
    mend_columns: str
    mend_bytes: str


def texts(path: Path, config: TextFileConfig) -> Iterator[str]:
    """Yield the texts of the file at `path` in order, without blank ones.

    Raises:
        UserError: the file is missing, empty, damaged, binary, of an unknown format, or lacks a column; a value is no
            text.

    """
    columns = config.columns or ("text",)
    options = _Options(
        columns,
        all_columns=False,
        header=(),
        encoding="utf-8",
        replace_invalid=config.invalid_utf8 == "replace",
        mend_columns="name the text's in columns",
        mend_bytes="convert the file, or set text.source.invalid_utf8=replace to read bad bytes as U+FFFD",
    )
    if _suffixes(path)[0] == ".txt":
        found = _plain_texts(path, options, config.document)
    else:
        found = (strict_text(row, column) for row in _rows(path, options) for column in columns)
    return (text for text in found if text and not text.isspace())


def read_table(path: Path, columns: Sequence[str], config: TableConfig) -> list[dict[str, str]]:
    """Return the rows of the table at `path`: each value as text, a missing one as the empty text.

    Args:
        path: a .csv, .tsv, .jsonl or .parquet file, alone or followed by .gz, .xz or .zst. The first line of a .csv
            file tells its separator: comma, semicolon or tab.
        columns: names of the columns that must be there and hold single values; the others are returned too.
        config: names of the columns, and the encoding.

    Raises:
        UserError: the file is missing, empty, damaged, binary or of an unknown format, has no rows, lacks a column,
            names one twice, has a row of another length, a line that is no JSON, or bytes that are not text in its
            encoding.

    """
    try:
        "".encode(config.encoding)
    except LookupError as error:
        raise UserError(
            f"encoding = {config.encoding!r} is no known encoding: name one such as utf-8 or latin-1"
        ) from error
    if _suffixes(path)[0] == ".txt":
        raise _unknown_format(path)
    options = _Options(
        tuple(columns),
        all_columns=True,
        header=config.header,
        encoding=config.encoding,
        replace_invalid=False,
        mend_columns="name the columns in data.text, data.pair and data.label, or those of a file without names in "
        "data.header",
        mend_bytes="convert it, or set data.encoding",
    )
    return text_rows(_rows(path, options), columns, str(path), options.mend_columns)


def text_rows(rows: Iterable[Row], columns: Sequence[str], where: str, mend: str) -> list[dict[str, str]]:
    """Return rows with each value as text and a missing one as the empty text; all of them have the same columns.

    Args:
        rows: of a table; a row may lack columns that others have.
        columns: names of the columns that some row must have, and that hold single values.
        where: the table, for messages.
        mend: the words for a missing column: where to name the right one.

    Raises:
        UserError: there are no rows, a column is missing, or one of `columns` holds a list, a mapping or bytes.

    """
    found = list(rows)
    if not found:
        raise UserError(f"{where} has no rows: name a file with labelled texts")
    names = list(dict.fromkeys(itertools.chain.from_iterable(row.values for row in found)))
    check_columns(columns, names, where, mend)
    required = set(columns)
    return [{name: _any_text(row, name, required=name in required) for name in names} for row in found]


def check_columns(wanted: Sequence[str], there: Sequence[str], where: str, mend: str) -> None:
    """Check that the wanted columns are there.

    Raises:
        UserError: one is not; the message lists those that are.

    """
    for column in wanted:
        if column not in there:
            raise UserError(f"{where}: no column {column!r}; there are: {', '.join(there) or 'none'}: {mend}")


def strict_text(row: Row, column: str) -> str:
    """Return a column's text, the empty one for a missing value.

    Raises:
        UserError: the value is neither text nor missing.

    """
    value = row.values[column]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{row.place}: column {column!r} holds a {type(value).__name__}, not text: name another")
    return value


def format_of(path: Path) -> str:
    """Return the part of the file's name that tells its format, such as .csv.gz; empty where no reader knows it."""
    kind, compression = _suffixes(path)
    return f"{kind}{compression}" if kind in _FORMATS else ""


def fingerprint_of_format(path: Path) -> str:
    """Return the format of a file and the version of the rules by which it is read, for fingerprints."""
    return format_of(path) + _RULES.get(_suffixes(path)[0], "")


def _any_text(row: Row, column: str, *, required: bool) -> str:
    value = row.values.get(column)
    if isinstance(value, str):
        return value
    if required and isinstance(value, list | dict | bytes):
        strict_text(row, column)
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)


def _suffixes(path: Path) -> tuple[str, str]:
    """Return the last suffix but for a compression's, and the compression's."""
    before, last = ["", "", *path.suffixes][-2:]
    kind, compression = (before, last) if last.lower() in _COMPRESSIONS else (last, "")
    return kind.lower(), compression.lower()


def _unknown_format(path: Path) -> UserError:
    return UserError(
        f"cannot tell the format of {path} by its name: it must end in one of {', '.join(_FORMATS)}, "
        f"alone or followed by one of {', '.join(_COMPRESSIONS)}; .txt is for text without columns"
    )


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open the file for reading its decompressed bytes; damage found while reading is a UserError."""
    kind, compression = _suffixes(path)
    if kind not in _FORMATS:
        raise _unknown_format(path)
    try:
        raw = path.open("rb")
    except FileNotFoundError as error:
        raise UserError(f"no such file: {path}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    try:
        decompressed = _COMPRESSIONS[compression](raw) if compression else raw
        with raw, io.BufferedReader(decompressed, _BUFFER_BYTES) as file:
            if not file.peek(1):
                raise UserError(f"{path} is empty: name a file with text")
            yield file
    except _DAMAGED as error:
        raise UserError(f"{path} is truncated or damaged ({error}): fetch or compress it again") from error


def _zstd(file: BinaryIO) -> Any:
    import pyarrow  # takes a tenth of a second, and few read this format

    return pyarrow.CompressedInputStream(file, "zstd")


_COMPRESSIONS: dict[str, Callable[[BinaryIO], Any]] = {".gz": gzip.open, ".xz": lzma.open, ".zst": _zstd}


def _rows(path: Path, options: _Options) -> Iterator[Row]:
    with _opened(path) as file:
        yield from _FORMATS[_suffixes(path)[0]](path, file, options)


def _lines(path: Path, file: BinaryIO, options: _Options) -> Iterator[str]:
    """Yield the decoded lines with their ends, without a leading byte order mark."""
    errors = "replace" if options.replace_invalid else "strict"
    by_lines = "\n".encode(options.encoding) == b"\n"  # else, as in UTF-16, a line cannot be told before decoding
    number, offset = 1, 0
    while block := b"".join(file.readlines(_BUFFER_BYTES)) if by_lines else file.read():
        fault, bad = "", block.find(0) if by_lines else -1
        try:
            text = block.decode(options.encoding, errors)
        except UnicodeError as error:
            bad, fault = getattr(error, "start", 0), f"invalid {options.encoding.upper()}: {options.mend_bytes}"
        if bad >= 0:
            line = number + block.count(b"\n", 0, bad)
            raise UserError(
                f"{path}, line {line}, byte {offset + bad}: {fault or 'a NUL byte, so this is no text: convert it'}"
            )
        yield from io.StringIO(text.removeprefix(codecs.BOM_UTF8.decode()) if number == 1 else text)
        number += block.count(b"\n")
        offset += len(block)


def _plain_texts(path: Path, options: _Options, document: str) -> Iterator[str]:
    with _opened(path) as file:
        lines = _lines(path, file, options)
        yield from lines if document == "line" else _paragraphs(lines)


def _paragraphs(lines: Iterator[str]) -> Iterator[str]:
    for is_blank, paragraph in itertools.groupby(lines, str.isspace):
        if not is_blank:
            yield "".join(paragraph)


def _jsonl(path: Path, file: BinaryIO, options: _Options) -> Iterator[Row]:
    for number, line in enumerate(_lines(path, file, options), start=1):
        if line.isspace():
            continue
        place = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place}: not valid JSON ({error}): mend or remove the line") from error
        if not isinstance(record, dict):
            raise UserError(f"{place}: a JSON {type(record).__name__}, not an object with named columns")
        if not options.all_columns:
            check_columns(options.columns, list(record), place, options.mend_columns)
        if "\\u" in line:
            names = record if options.all_columns else options.columns
            record |= {name: _without_lone_surrogates(record[name], place, options) for name in names}
        yield Row(place, record)


def _without_lone_surrogates(value: object, place: str, options: _Options) -> object:
    """Replace or refuse the halves of characters that JSON can escape and no encoding can hold."""
    if not isinstance(value, str) or not _SURROGATE.search(value):
        return value
    if not options.replace_invalid:
        raise UserError(f"{place}: half a character (a lone surrogate): {options.mend_bytes}")
    return _SURROGATE.sub("\ufffd", value)


def _csv(path: Path, file: BinaryIO, options: _Options) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # a document in one field is often longer than the default 131,072 characters
    lines = _lines(path, file, options)
    head: list[str] = []
    for line in lines:
        head.append(line)
        if not line.isspace():
            break
    first = _QUOTED.sub("", head[-1])
    separator = max(_SEPARATORS, key=first.count)
    fields = csv.reader(itertools.chain(head, lines), delimiter=separator, strict=True)
    try:
        yield from _named(path, ((fields.line_num, row) for row in fields), options)
    except csv.Error as error:
        raise UserError(f"{path}, line {fields.line_num}: not valid CSV ({error}): mend the quotes there") from error


def _tsv(path: Path, file: BinaryIO, options: _Options) -> Iterator[Row]:
    """Read tab-separated values, in which quotes are characters, unless the file or the field shows that it is quoted.

    A file is quoted if each field of its first line is; a field, if it is quoted as a whole and its inner quotes are
    doubled. Anything else is as published: '"Yes," he said' and '"Yes."' keep their quotes.
    """
    lines = (line.rstrip("\r\n") for line in _lines(path, file, options))
    split = (line.split("\t") if line else [] for line in lines)
    is_quoted = False

    def fields() -> Iterator[tuple[int, list[str]]]:
        nonlocal is_quoted
        for number, row in enumerate(split, start=1):
            if number == 1:
                is_quoted = all(_inner(field) is not None for field in row)
            yield number, [_unquoted(field, is_quoted=is_quoted) if '"' in field else field for field in row]

    return _named(path, fields(), options)


def _inner(field: str) -> str | None:
    """Return the text of a field that is quoted as a whole, with its inner quotes doubled; None for any other."""
    if len(field) < 2 or field[0] != '"' or field[-1] != '"' or '"' in field[1:-1].replace('""', ""):
        return None
    return field[1:-1].replace('""', '"')


def _unquoted(field: str, *, is_quoted: bool) -> str:
    inner = _inner(field)
    return field if inner is None or not (is_quoted or '"' in inner or not inner) else inner


def _named(path: Path, rows: Iterator[tuple[int, list[str]]], options: _Options) -> Iterator[Row]:
    """Name the fields of each row by the first row, or by the header where that does not name all wanted columns."""
    names: list[str] = []
    for number, fields in rows:
        if not names:
            if not "".join(fields).strip():
                continue
            is_header = not options.header or set(options.columns) <= set(fields)
            names = fields if is_header else list(options.header)
            if len(names) != len(fields):
                raise UserError(
                    f"{path}: {len(fields)} columns where header names {len(names)}: name all of them in header"
                )
            check_columns(options.columns, names, f"{path}, line {number}", options.mend_columns)
            _check_unique(path, names, options)
            if is_header:
                continue
        if not fields and len(names) > 1:
            continue
        if len(fields or [""]) != len(names):
            raise UserError(
                f"{path}, line {number}: {len(fields)} columns where the first line has {len(names)}: mend the line, "
                "or quote the fields that hold separators or line breaks and save the file as .csv"
            )
        yield Row(f"{path}, line {number}", dict(zip(names, fields or [""], strict=True)))
    if not names:
        raise UserError(f"{path} is empty: name a file with text")


def _check_unique(path: Path, names: Sequence[str], options: _Options) -> None:
    for name in names if options.all_columns else options.columns:
        if names.count(name) > 1:
            raise UserError(f"{path}: the column {name!r} is there twice: give each a name of its own")


def _parquet(path: Path, file: BinaryIO, options: _Options) -> Iterator[Row]:
    import pyarrow.parquet  # see _zstd

    with tempfile.TemporaryFile() as unpacked:
        if _suffixes(path)[1]:  # the file is not read from front to back
            shutil.copyfileobj(file, unpacked)
            file = unpacked
        try:
            table = pyarrow.parquet.ParquetFile(file)
            names = table.schema_arrow.names
            check_columns(options.columns, names, str(path), options.mend_columns)
            _check_unique(path, names, options)
            wanted = None if options.all_columns else list(options.columns)
            batches = table.iter_batches(_PARQUET_ROWS, columns=wanted)
            rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
            for number, row in enumerate(rows, start=1):
                yield Row(f"{path}, row {number}", row)
        except (pyarrow.ArrowException, UnicodeDecodeError) as error:
            raise UserError(f"{path} is no readable parquet file ({' '.join(str(error).split())})") from error


_FORMATS: dict[str, Callable[[Path, BinaryIO, _Options], Iterator[Row]]] = {
    ".txt": lambda path, file, options: (Row("", {"text": line}) for line in _lines(path, file, options)),
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
}
