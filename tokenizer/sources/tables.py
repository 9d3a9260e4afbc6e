"""Read the rows of a table out of a file, by its format: .jsonl, .json, .csv, .tsv, .parquet or .xlsx.

A missing or repeated column, a row of another length, a line that is no JSON: each is a UserError that names the file,
the line or row, and the column.
"""

import csv
import functools
import io
import itertools
import json
import logging
import re
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal
from typing import Any, BinaryIO, NamedTuple
from zipfile import BadZipFile

from configs import UserError, listed
from configs.extras import require
from configs.files import temporary
from tokenizer.sources import files
from tokenizer.sources.files import COMPRESSIONS, AnyPath, suffixes

logger = logging.getLogger(__name__)

MEND_COLUMNS = "name the text's in columns"
SURROGATE = re.compile("[\ud800-\udfff]")
_PARQUET_ROWS = 1024
_LONGEST_FIRST_LINE = 1_000_000
"""Characters of the first line of a table, quoted fields aside."""
_QUOTED_FIELD = re.compile(r'"([^"]*(?:""[^"]*)*)"')
_SEPARATORS = ",;\t|"
_QUOTED_IN_CSV = re.compile(rf'(?:^|(?<=[{_SEPARATORS}]))"[^"]*(?:""[^"]*)*(?P<end>"?)')
_LINE_FOR_EXCEL = re.compile(r'"?sep=(.)"?[\r\n]*', re.IGNORECASE)
"""First line of a .csv file that tells its separator."""
_NOTHING_QUOTED = re.compile("(?!)(?P<end>)")
_SHOWN_COLUMNS, _SHOWN_CHARACTERS = 20, 40
_LONGEST_NUMBER = 400
"""Digits of the longest number that is written out; the largest float has 309."""
_EXACT = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN)


class Row(NamedTuple):
    """One row of a table."""

    place: str
    """The file and the line or row, for messages."""
    values: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Options:
    """The settings of both uses of the reader; the defaults are those of pretraining text."""

    columns: Sequence[str]
    """The columns that must be there."""
    optional: Sequence[str] = ()
    """Columns that are read where they are there."""
    all_columns: bool = False
    """True to read the other columns too."""
    header: Sequence[str] = ()
    encoding: str = "utf-8"
    replace_invalid: bool = False
    mend_columns: str = MEND_COLUMNS
    mend_bytes: str = "convert the file, or set text.source.invalid_utf8=replace to read bad bytes as U+FFFD"

    @property
    def wanted(self) -> Sequence[str]:
        """The columns of which there must be one only."""
        return (*self.columns, *self.optional)

    def lines(self, path: AnyPath, file: io.BufferedReader, longest: int = -1) -> Iterator[str]:
        """Yield the lines of a file, as `files.lines` does."""
        replace = self.replace_invalid
        return files.lines(path, file, self.encoding, self.mend_bytes, replace=replace, longest=longest)


def check_columns(wanted: Sequence[str], there: Collection[str], where: str, mend: str) -> None:
    """Raise a UserError, which lists the columns that are there, if a wanted one is not."""
    for column in wanted:
        if column not in there:
            names = (name if len(name) <= _SHOWN_CHARACTERS else f"{name[:_SHOWN_CHARACTERS]}..." for name in there)
            known = listed(names, _SHOWN_COLUMNS) or "none"
            raise UserError(f"{where}: no column {column!r}; there are: {known}: {mend}")


def unique_names(names: Sequence[str]) -> list[str]:
    """Return the names with a number behind those that are there before, as pandas does."""
    unique: dict[str, None] = {}
    numbers: defaultdict[str, Iterator[int]] = defaultdict(lambda: itertools.count(1))
    for name in names:
        new = name
        while new in unique:
            new = f"{name}.{next(numbers[name])}"
        unique[new] = None
    return list(unique)


def number_text(value: Decimal) -> str:
    """Return a number as text: equal numbers give equal texts, and whole ones have no point."""
    value = value.normalize(_EXACT) if value.is_finite() else value
    if not value.is_finite() or abs(value.adjusted()) > _LONGEST_NUMBER:
        return str(value)
    return format(value, "f") if value else "0"


@functools.cache
def log_once(message: str) -> None:
    """Log a message, once a process: the text is read more than once."""
    logger.info("%s", message)


def rows(path: AnyPath, options: Options) -> Iterator[Row]:
    """Yield the rows of a table, by the format that its name tells; a UserError says where it cannot be read."""
    kind = suffixes(path)[0]
    if kind not in FORMATS:
        raise UserError(
            f"cannot tell the format of {path} by its name: it must end in one of {', '.join(KINDS)}, "
            f"alone or followed by one of {', '.join(COMPRESSIONS)}; .txt is for text without columns"
        )
    with files.opened(path) as file:
        if file.peek(1):
            yield from FORMATS[kind](path, file, options)


def _jsonl(path: AnyPath, file: io.BufferedReader, options: Options) -> Iterator[Row]:
    for number, line in enumerate(options.lines(path, file), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            record = json.loads(line, parse_float=Decimal)  # no digit is lost
            repeated = [name for name in options.wanted if line.count(f'"{name}"') > 1]
            pairs = json.loads(line, object_pairs_hook=list) if repeated else ()
        except (ValueError, RecursionError, ArithmeticError) as error:
            raise UserError(f"{place}: not valid JSON ({error}): mend it, or write each object on one line") from error
        if isinstance(record, dict):
            _check_once(repeated, [name for name, _ in pairs], place)
        yield _record(record, place, options, has_escapes="\\u" in line)


def _json(path: AnyPath, file: io.BufferedReader, options: Options) -> Iterator[Row]:
    """Yield the objects of a list, which is the whole file or the only list of its one object."""
    text = "".join(options.lines(path, file))

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _check_once(options.wanted, [name for name, _ in pairs], f"{path}, an object of it")
        return dict(pairs)

    try:
        found = json.loads(text, parse_float=Decimal, object_pairs_hook=once)
    except UserError:
        raise
    except (ValueError, RecursionError, ArithmeticError) as error:
        raise UserError(f"{path}: not valid JSON ({error}): mend it, or name it .jsonl if each line is one") from error
    lists = [value for value in found.values() if isinstance(value, list)] if isinstance(found, dict) else [found]
    if len(lists) != 1 or not isinstance(lists[0], list):
        raise UserError(f"{path}: no list of objects, nor an object with one such list: write one a line, as .jsonl")
    has_escapes = "\\u" in text
    for number, record in enumerate(lists[0], start=1):
        yield _record(record, f"{path}, object {number}", options, has_escapes=has_escapes)


def _record(record: object, place: str, options: Options, *, has_escapes: bool) -> Row:
    if not isinstance(record, dict):
        kind = type(record).__name__
        raise UserError(f"{place}: a JSON {kind}, not an object with named columns: write one on each line")
    if has_escapes:
        wanted = [name for name in options.wanted if name in record]
        record |= {name: _without_lone_surrogates(record[name], place, options) for name in wanted}
    return Row(place, record)


def _without_lone_surrogates(value: object, place: str, options: Options) -> object:
    """Replace or refuse the halves of characters that JSON can escape and no encoding can hold."""
    if not isinstance(value, str) or not SURROGATE.search(value):
        return value
    if not options.replace_invalid:
        raise UserError(f"{place}: half a character (a lone surrogate): {options.mend_bytes}")
    return SURROGATE.sub("\ufffd", value)


def _csv(path: AnyPath, file: io.BufferedReader, options: Options) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # a document in one field is often longer than the default 131,072 characters
    separator = _separator(_first_line(path, options, _QUOTED_IN_CSV), options)
    lines = options.lines(path, file)
    start = next(lines, "")
    if told := _LINE_FOR_EXCEL.fullmatch(start):
        separator, start = told[1], "\n"  # a blank line in its place, so that lines are numbered as in the file
    fields = csv.reader(itertools.chain([start], lines), delimiter=separator, strict=True)
    try:
        yield from _named(path, ((fields.line_num, row) for row in fields), options)
    except csv.Error as error:
        raise UserError(f"{path}, line {fields.line_num}: not valid CSV ({error}): mend the quotes there") from error


def _separator(first: str, options: Options) -> str:
    """Return the separator of which a first line has as many as the header's names need, or else the most frequent."""
    return max(_SEPARATORS, key=lambda one: (first.count(one) == len(options.header) - 1, first.count(one)))


def _tsv(path: AnyPath, file: io.BufferedReader, options: Options) -> Iterator[Row]:
    _first_line(path, options, _NOTHING_QUOTED)
    return _named(path, _tab_separated(line.rstrip("\r\n") for line in options.lines(path, file)), options)


def _first_line(path: AnyPath, options: Options, quoted: re.Pattern[str]) -> str:
    """Return the first line of a table without its quoted fields; a UserError if it is too long to name columns."""
    first = ""
    with files.opened(path) as file:
        for part in itertools.filterfalse(str.isspace, options.lines(path, file, _LONGEST_FIRST_LINE)):
            first = quoted.sub(lambda field: "" if field["end"] else '"', first + part)
            if len(first) >= _LONGEST_FIRST_LINE:
                raise UserError(
                    f"{path}: the first line has over {_LONGEST_FIRST_LINE:,} characters, so it names no columns: mend "
                    "the ends of its lines, or give text without columns a name that ends in .txt"
                )
            if first.endswith(("\r", "\n")):
                break
    return first


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


def _named(path: AnyPath, rows: Iterator[tuple[int, list[str]]], options: Options) -> Iterator[Row]:
    """Name the fields of each row by the first row, or by the header where that does not name all wanted columns."""
    rows = itertools.dropwhile(lambda row: not "".join(row[1]).strip(), rows)
    start, first = next(rows, (0, []))
    if not first:
        return
    is_header = not options.header or set(options.columns) <= set(first)
    given = first if is_header else options.header
    _check_names(given, f"{path}, line {start}", options)
    if not is_header:
        log_once(f"{path}, line {start} does not name the columns: data.header names them {', '.join(given)}")
    names = unique_names(given)
    kept = [place for place, name in enumerate(names) if options.all_columns or name in options.wanted]
    for number, fields in rows if is_header else itertools.chain([(start, first)], rows):
        if not fields and len(names) > 1:
            continue
        if len(fitting := _fitting(fields or [""], given)) != len(names):
            raise UserError(
                f"{path}, line {number}: {len(fields)} columns where {'the first line' if is_header else 'header'} has "
                f"{len(names)}: mend that, or quote the fields that hold separators or line breaks and save it as .csv"
            )
        yield Row(f"{path}, line {number}", {names[place]: fitting[place] for place in kept})


def _fitting(fields: list[str], names: Sequence[str]) -> list[str]:
    """Return the fields without empty ones behind the last column, and with empty ones for columns without names."""
    while len(fields) > len(names) and not fields[-1].strip():
        fields.pop()
    behind = names[len(fields) :]
    return fields if any(behind) else [*fields, *behind]


def _check_names(names: Sequence[str], place: str, options: Options) -> None:
    check_columns(options.columns, names, place, options.mend_columns)
    _check_once(options.wanted, names, place)


def _check_once(wanted: Sequence[str], names: Sequence[str], place: str) -> None:
    for name in wanted:
        if names.count(name) > 1:
            raise UserError(f"{place}: the column {name!r} is there twice: give each a name of its own")


def _parquet(path: AnyPath, file: io.BufferedReader, options: Options) -> Iterator[Row]:
    import pyarrow.parquet  # takes a tenth of a second, and few read this format

    with _unpacked(path, file) as source:
        try:
            table = pyarrow.parquet.ParquetFile(source)
            _check_names(table.schema_arrow.names, str(path), options)
            kept = [name for name in table.schema_arrow.names if name in options.wanted]
            numbers = itertools.count(1)
            for batch in table.iter_batches(_PARQUET_ROWS, columns=None if options.all_columns else kept):
                names = unique_names(batch.schema.names)
                columns = [
                    _values(column, name in options.wanted) for name, column in zip(names, batch.columns, strict=True)
                ]
                for row in zip(*columns, strict=True):
                    yield Row(f"{path}, row {next(numbers)}", dict(zip(names, row, strict=True)))
        except (pyarrow.ArrowException, UnicodeDecodeError, OverflowError) as error:
            raise UserError(f"{path} is no readable parquet file ({' '.join(str(error).split())})") from error


@contextmanager
def _unpacked(path: AnyPath, file: BinaryIO) -> Iterator[BinaryIO]:
    """Yield the file, which is not read from front to back, or its decompressed copy in the temporary folder.

    A file of a store that tells no size is copied too.
    """
    if not suffixes(path)[1] and file.seekable():
        yield file
        return
    with temporary(), tempfile.TemporaryFile() as unpacked:
        shutil.copyfileobj(file, unpacked)
        yield unpacked


def _xlsx(path: AnyPath, file: io.BufferedReader, options: Options) -> Iterator[Row]:
    require("openpyxl", extra="xlsx", purpose=".xlsx files")
    import openpyxl

    with _unpacked(path, file) as source:
        try:
            book = openpyxl.load_workbook(source, read_only=True, data_only=True)
            first, *others = book.worksheets
            if others:
                log_once(f"{path} has {1 + len(others)} sheets: the first one, {first.title}, is read")
            first.reset_dimensions()  # some writers note fewer rows than there are
            cells = enumerate(first.iter_rows(values_only=True), start=1)
            filled = ((number, list(map(_cell, row))) for number, row in cells if any(cell is not None for cell in row))
            yield from _named(path, _of_one_width(filled), options)
        except (BadZipFile, KeyError, SyntaxError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path} is no readable .xlsx file ({error})") from error


def _of_one_width(rows: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, list[str]]]:
    """Yield rows with empty cells behind those that end before the first row does."""
    width = 0
    for number, fields in rows:
        width = width or len(fields)
        yield number, fields + [""] * (width - len(fields))


def _cell(value: object) -> str:
    if isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool)):
        return number_text(Decimal(str(value)))
    return "" if value is None else str(value)


def _values(column: Any, wanted: bool) -> list[object]:
    """Return the values of an Arrow array; what Python cannot hold in a column that nobody wants becomes text."""
    import pyarrow

    try:
        if column.type in (pyarrow.float16(), pyarrow.float32()):  # 0.1 is written 0.1, as by those who read it
            return [None if cell is None else float(cell) for cell in column.cast(pyarrow.string()).to_pylist()]
        return list(column.to_pylist())
    except (pyarrow.ArrowException, ValueError, OverflowError):
        if wanted:
            raise
        cells = column.cast(pyarrow.string(), safe=False).cast(pyarrow.binary()).to_pylist()
        return [None if cell is None else cell.decode(errors="replace") for cell in cells]


FORMATS = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".tsv": _tsv, ".parquet": _parquet, ".xlsx": _xlsx}
WITHOUT_ENCODING = (".parquet", ".xlsx")
KINDS = (".txt", *FORMATS)
