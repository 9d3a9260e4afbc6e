"""Read texts and tables out of local files: the one reader of pretraining text and of labelled data.

The name of a file tells its format: .txt, .jsonl, .csv, .tsv or .parquet, alone or followed by .gz, .xz or .zst.
A missing, empty, damaged or binary file, an unknown format or encoding, a missing or repeated column, a row of another
length, a line that is no JSON: each is a UserError that names the file, the line or row, and the column.
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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from configs import Config, Texts, UserError
from configs.files import temporary

_BUFFER_BYTES = 1 << 20
_PARQUET_ROWS = 1024
_SURROGATE = re.compile("[\ud800-\udfff]")
_QUOTED_FIELD = re.compile(r'"([^"]*(?:""[^"]*)*)"')
_MEND_COLUMNS = "name the text's in columns"
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


@dataclass(frozen=True, slots=True)
class _Options:
    """The settings of both uses of the reader; the defaults are those of pretraining text."""

    columns: Sequence[str]
    """The columns that must be there."""
    all_columns: bool = False
    """True to read the other columns too."""
    header: Sequence[str] = ()
    encoding: str = "utf-8"
    replace_invalid: bool = False
    mend_columns: str = _MEND_COLUMNS
    mend_bytes: str = "convert the file, or set text.source.invalid_utf8=replace to read bad bytes as U+FFFD"


def texts(path: Path, config: TextFileConfig) -> Iterator[str]:
    """Yield the texts of the file at `path` in order, without blank ones."""
    options = _Options(config.columns or ("text",), replace_invalid=config.invalid_utf8 == "replace")
    if _suffixes(path)[0] != ".txt":
        yield from texts_of_rows(_rows(path, options), options.columns)
        return
    with _opened(path) as file:
        found = _lines(path, file, options)
        if config.document == "paragraph":
            found = ("".join(lines) for is_blank, lines in itertools.groupby(found, str.isspace) if not is_blank)
        yield from (text for text in found if not text.isspace())


def texts_of_rows(rows: Iterable[Row], columns: Sequence[str]) -> Iterator[str]:
    """Yield the texts of the columns, row by row, without blank ones."""
    for row in rows:
        check_columns(columns, row.values, row.place, _MEND_COLUMNS)
        found = (_strict_text(row, column) for column in columns)
        yield from (text for text in found if text and not text.isspace())


def read_table(path: Path, columns: Sequence[str], config: TableConfig) -> list[dict[str, str]]:
    """Return the rows of the table at `path`: each value as text, a missing one as the empty text.

    The named columns must be there and hold single values; the others are returned too. The first line of a .csv file
    tells its separator: comma, semicolon or tab.
    """
    try:
        "".encode(config.encoding)
    except LookupError as error:
        raise UserError(f"encoding = {config.encoding!r} is unknown: name one such as utf-8 or latin-1") from error
    mend = "name the columns in data.text, data.pair and data.label, or those of a file without names in data.header"
    options = _Options(
        columns, True, config.header, config.encoding, mend_columns=mend, mend_bytes="convert it, or set data.encoding"
    )
    return text_rows(_rows(path, options), columns, str(path), mend)


def text_rows(rows: Iterable[Row], columns: Sequence[str], where: str, mend: str) -> list[dict[str, str]]:
    """Return rows with each value as text and a missing one as the empty text; all of them have the same columns.

    Some row must have each of `columns`, which hold single values; messages name the table, `where`.
    """
    found = list(rows)
    if not found:
        raise UserError(f"{where} has no rows: name a file with labelled texts")
    names = dict.fromkeys(itertools.chain.from_iterable(row.values for row in found))
    check_columns(columns, names, where, mend)
    return [{name: _any_text(row, name, required=name in columns) for name in names} for row in found]


def check_columns(wanted: Sequence[str], there: Collection[str], where: str, mend: str) -> None:
    """Raise a UserError, which lists the columns that are there, if a wanted one is not."""
    for column in wanted:
        if column not in there:
            raise UserError(f"{where}: no column {column!r}; there are: {', '.join(there) or 'none'}: {mend}")


def format_of(path: Path) -> str:
    """Return the part of the file's name that tells its format, such as .csv.gz; empty where no reader knows it."""
    kind, compression = _suffixes(path)
    return f"{kind}{compression}" if kind in _KINDS else ""


def fingerprint_of_format(path: Path) -> str:
    """Return the format of a file and the version of the rules by which it is read, for fingerprints."""
    return format_of(path) + _RULES.get(_suffixes(path)[0], "")


def _strict_text(row: Row, column: str) -> str:
    """Return a column's text, the empty one for a missing value."""
    value = row.values[column]
    if not isinstance(value, str | None):
        raise UserError(f"{row.place}: column {column!r} holds a {type(value).__name__}, not text: name another")
    return value or ""


def _any_text(row: Row, column: str, *, required: bool) -> str:
    value = row.values.get(column)
    if required and isinstance(value, list | dict | bytes):
        _strict_text(row, column)
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)


def _suffixes(path: Path) -> tuple[str, str]:
    """Return the last suffix but for a compression's, and the compression's."""
    before, last = ["", "", *path.suffixes][-2:]
    kind, compression = (before, last) if last.lower() in _COMPRESSIONS else (last, "")
    return kind.lower(), compression.lower()


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open the file for reading its decompressed bytes; damage found while reading is a UserError."""
    compression = _suffixes(path)[1]
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
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path} is truncated or damaged ({error}): fetch or compress it again") from error


def _zstd(file: BinaryIO) -> Any:
    import pyarrow  # takes a tenth of a second, and few read this format

    return pyarrow.CompressedInputStream(file, "zstd")


_COMPRESSIONS: dict[str, Callable[[BinaryIO], Any]] = {".gz": gzip.open, ".xz": lzma.open, ".zst": _zstd}


def _lines(path: Path, file: BinaryIO, options: _Options) -> Iterator[str]:
    """Yield the decoded lines with their ends, without a leading byte order mark."""
    errors = "replace" if options.replace_invalid else "strict"
    by_lines = "\n".encode(options.encoding) == b"\n"  # else, as in UTF-16, a line cannot be told before decoding
    number, offset = 1, 0
    while block := b"".join(file.readlines(_BUFFER_BYTES)) if by_lines else file.read():
        fault, bad = "a NUL byte, so this is no text: convert it", block.find(0) if by_lines else -1
        try:
            text = block.decode(options.encoding, errors)
        except UnicodeError as error:
            bad, fault = getattr(error, "start", 0), f"invalid {options.encoding.upper()}: {options.mend_bytes}"
        if bad >= 0:
            line = number + block.count(b"\n", 0, bad)
            raise UserError(f"{path}, line {line}, byte {offset + bad}: {fault}")
        yield from io.StringIO(text.removeprefix(codecs.BOM_UTF8.decode()) if number == 1 else text)
        number += block.count(b"\n")
        offset += len(block)


def _rows(path: Path, options: _Options) -> Iterator[Row]:
    kind = _suffixes(path)[0]
    if kind not in _FORMATS:
        raise UserError(
            f"cannot tell the format of {path} by its name: it must end in one of {', '.join(_KINDS)}, "
            f"alone or followed by one of {', '.join(_COMPRESSIONS)}; .txt is for text without columns"
        )
    with _opened(path) as file:
        yield from _FORMATS[kind](path, file, options)


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
        if "\\u" in line:
            wanted = record if options.all_columns else record.keys() & options.columns
            record |= {name: _without_lone_surrogates(record[name], place, options) for name in wanted}
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
    lines, ahead = itertools.tee(_lines(path, file, options))
    first = re.sub('"[^"]*"', "", next(itertools.filterfalse(str.isspace, ahead), ""))
    del ahead  # else all lines would be kept for it
    fields = csv.reader(lines, delimiter=max(",;\t", key=first.count), strict=True)
    try:
        yield from _named(path, ((fields.line_num, row) for row in fields), options)
    except csv.Error as error:
        raise UserError(f"{path}, line {fields.line_num}: not valid CSV ({error}): mend the quotes there") from error


def _tsv(path: Path, file: BinaryIO, options: _Options) -> Iterator[Row]:
    return _named(path, _tab_separated(line.rstrip("\r\n") for line in _lines(path, file, options)), options)


def _tab_separated(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield each line's number and fields; quotes are characters, unless the file or the field shows that it is quoted.

    A file is quoted if each field of its first line is; a field, if it is quoted as a whole and its inner quotes are
    doubled. Anything else is as published: '"Yes," he said' and '"Yes."' keep their quotes.
    """
    file_is_quoted = False
    for number, line in enumerate(lines, start=1):
        fields = line.split("\t") if line else []
        if number == 1:
            file_is_quoted = all(map(_QUOTED_FIELD.fullmatch, fields))
        yield number, [_unquoted(field, file_is_quoted=file_is_quoted) if '"' in field else field for field in fields]


def _unquoted(field: str, *, file_is_quoted: bool) -> str:
    quoted = _QUOTED_FIELD.fullmatch(field)
    if quoted and (file_is_quoted or not quoted[1] or '""' in quoted[1]):
        return quoted[1].replace('""', '"')
    return field


def _named(path: Path, rows: Iterator[tuple[int, list[str]]], options: _Options) -> Iterator[Row]:
    """Name the fields of each row by the first row, or by the header where that does not name all wanted columns."""
    rows = itertools.dropwhile(lambda row: not "".join(row[1]).strip(), rows)
    start, first = next(rows, (0, []))
    if not first:
        raise UserError(f"{path} is empty: name a file with text")
    is_header = not options.header or set(options.columns) <= set(first)
    names = first if is_header else options.header
    _check_names(names, f"{path}, line {start}", options)
    for number, fields in rows if is_header else itertools.chain([(start, first)], rows):
        if not fields and len(names) > 1:
            continue
        if len(fields or [""]) != len(names):
            raise UserError(
                f"{path}, line {number}: {len(fields)} columns where {'the first line' if is_header else 'header'} has "
                f"{len(names)}: mend that, or quote the fields that hold separators or line breaks and save it as .csv"
            )
        yield Row(f"{path}, line {number}", dict(zip(names, fields or [""], strict=True)))


def _check_names(names: Sequence[str], place: str, options: _Options) -> None:
    check_columns(options.columns, names, place, options.mend_columns)
    for name in names if options.all_columns else options.columns:
        if names.count(name) > 1:
            raise UserError(f"{place}: the column {name!r} is there twice: give each a name of its own")


def _parquet(path: Path, file: BinaryIO, options: _Options) -> Iterator[Row]:
    import pyarrow.parquet  # see _zstd

    with temporary(), tempfile.TemporaryFile() as unpacked:
        if _suffixes(path)[1]:  # the file is not read from front to back
            shutil.copyfileobj(file, unpacked)
            file = unpacked
        try:
            table = pyarrow.parquet.ParquetFile(file)
            _check_names(table.schema_arrow.names, str(path), options)
            batches = table.iter_batches(_PARQUET_ROWS, columns=None if options.all_columns else list(options.columns))
            rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
            for number, row in enumerate(rows, start=1):
                yield Row(f"{path}, row {number}", row)
        except (pyarrow.ArrowException, UnicodeDecodeError) as error:
            raise UserError(f"{path} is no readable parquet file ({' '.join(str(error).split())})") from error


_FORMATS = {".jsonl": _jsonl, ".csv": _csv, ".tsv": _tsv, ".parquet": _parquet}
_KINDS = (".txt", *_FORMATS)
