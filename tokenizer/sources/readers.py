"""Read texts and tables out of files: the one reader of pretraining text and of labelled data.

The name of a file tells its format: .txt, .jsonl, .csv, .tsv or .parquet, alone or followed by .gz, .xz or .zst.
An unknown format or encoding, a missing or repeated column, a row of another length, a line that is no JSON: each is a
UserError that names the file, the line or row, and the column.
"""

import codecs
import csv
import functools
import io
import itertools
import json
import logging
import math
import re
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from configs import Config, Texts, UserError, listed
from configs.files import temporary
from tokenizer.sources import files
from tokenizer.sources.files import COMPRESSIONS, AnyPath, Watch, suffixes

logger = logging.getLogger(__name__)

_LINE_END, _BLANK_LINE = re.compile(rb"\n"), re.compile(rb"\n\r?\n")
_SEPARATORS_OF = {(".txt", "line"): _LINE_END, (".jsonl", "line"): _LINE_END, (".txt", "paragraph"): _BLANK_LINE}
"""The formats that may be cut anywhere between two documents, without reading what comes before."""
_PARQUET_ROWS = 1024
_LONGEST_FIRST_LINE = 1_000_000
"""Characters of the first line of a table, quoted fields aside."""
LONGEST_DOCUMENT = 10_000_000
"""Characters; a longer text is read as several documents, so that memory stays flat."""
_SENTENCE_ENDS = (". ", "! ", "? ", "。", "！", "？", "\n")
_SURROGATE = re.compile("[\ud800-\udfff]")
_QUOTED_FIELD = re.compile(r'"([^"]*(?:""[^"]*)*)"')
_SEPARATORS = ",;\t|"
_QUOTED_IN_CSV = re.compile(rf'(?:^|(?<=[{_SEPARATORS}]))"[^"]*(?:""[^"]*)*(?P<end>"?)')
_LINE_FOR_EXCEL = re.compile(r'"?sep=(.)"?[\r\n]*', re.IGNORECASE)
"""First line of a .csv file that tells its separator."""
_NOTHING_QUOTED = re.compile("(?!)(?P<end>)")
_MEND_COLUMNS = "name the text's in columns"
_SHOWN_COLUMNS, _SHOWN_CHARACTERS = 20, 40
_LONGEST_NUMBER = 400
"""Digits of the longest number that is written out; the largest float has 309."""
_EXACT = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN)
_RULES = {".tsv": "2"}
"""Version of the rules by which a format is read, from the second on: raised when the same file gives other texts."""
_RETURNS = "r"
"""Added to it for local files of lines that end in carriage returns alone, which once ended none."""


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
    """Encoding, such as latin-1, of the files that are not valid UTF-8; .parquet files need none."""


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
    optional: Sequence[str] = ()
    """Columns that are read where they are there."""
    all_columns: bool = False
    """True to read the other columns too."""
    header: Sequence[str] = ()
    encoding: str = "utf-8"
    replace_invalid: bool = False
    mend_columns: str = _MEND_COLUMNS
    mend_bytes: str = "convert the file, or set text.source.invalid_utf8=replace to read bad bytes as U+FFFD"

    @property
    def wanted(self) -> Sequence[str]:
        """The columns of which there must be one only."""
        return (*self.columns, *self.optional)

    def lines(self, path: AnyPath, file: io.BufferedReader, longest: int = -1) -> Iterator[str]:
        """Yield the lines of a file, as `files.lines` does."""
        replace = self.replace_invalid
        return files.lines(path, file, self.encoding, self.mend_bytes, replace=replace, longest=longest)


def texts(path: AnyPath, config: TextFileConfig) -> Iterator[str]:
    """Yield the texts of the file at `path` in order, without blank ones; one that is too long comes in parts."""
    options = _Options(config.columns or ("text",), replace_invalid=config.invalid_utf8 == "replace")
    if suffixes(path)[0] != ".txt":
        found = texts_of_rows(_rows(path, options), options.columns)
        yield from itertools.chain.from_iterable(_parts(text, path) for text in found)
        return
    with files.opened(path) as file:
        lines = options.lines(path, file, LONGEST_DOCUMENT)
        found = _documents(lines, path, paragraphs=config.document == "paragraph")
        yield from (text for text in found if text and not text.isspace())


def texts_of_rows(rows: Iterable[Row], columns: Sequence[str]) -> Iterator[str]:
    """Yield the texts of the columns, row by row, without blank ones."""
    for row in rows:
        check_columns(columns, row.values, row.place, _MEND_COLUMNS)
        found = (_strict_text(row, column) for column in columns)
        yield from (text for text in found if text and not text.isspace())


def read_table(
    path: str | Path,
    columns: Sequence[str],
    config: TableConfig,
    *,
    optional: Sequence[str] = (),
    all_columns: bool = False,
    encoding: str | None = None,
) -> list[dict[str, str]]:
    """Return the rows of the table at `path`: each value as text, a missing one as the empty text.

    The path may be an address that fsspec opens. The named columns must be there and hold single values; the `optional`
    ones may be missing, and the others are left out unless `all_columns`. The first line of a .csv file tells its
    separator: comma, semicolon, tab or |. `encoding` is that of this file; without it the file is UTF-8 if it is valid
    UTF-8 beyond ASCII, else `config.encoding`.
    """
    mend = "name the columns in data.text, data.pair and data.label, or those of a file without names in data.header"
    found = files.located(path)
    with Watch(lambda: [files.located(path)]):
        options = _Options(
            columns,
            optional,
            all_columns,
            config.header,
            _encoding_of(found, config.encoding) if encoding is None else _known(encoding),
            mend_columns=mend,
            mend_bytes=f"convert it, or {'set data.encoding' if encoding is None else 'name its encoding: --encoding'}",
        )
        return text_rows(_rows(found, options), columns, str(path), mend, None if all_columns else options.wanted)


def text_rows(
    rows: Iterable[Row], columns: Sequence[str], where: str, mend: str, kept: Collection[str] | None = None
) -> list[dict[str, str]]:
    """Return rows with each value as text and a missing one as the empty text; all of them have the same columns.

    Some row must have each of `columns`, which hold single values; messages name the table, `where`. Only the columns
    in `kept` are returned; None: all.
    """
    found: list[Row] = []
    names: dict[str, None] = {}
    for place, values in rows:
        names |= dict.fromkeys(values)
        found.append(Row(place, {name: values[name] for name in values if kept is None or name in kept}))
    if not found:
        raise UserError(f"{where} has no rows: name a file with labelled texts")
    check_columns(columns, names, where, mend)
    shown = {name: _SURROGATE.sub("\ufffd", name) for name in names if kept is None or name in kept}
    return [{text: _any_text(row, name, required=name in columns) for name, text in shown.items()} for row in found]


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


def format_of(path: AnyPath) -> str:
    """Return the part of the file's name that tells its format, such as .csv.gz; empty where no reader knows it."""
    kind, compression = suffixes(path)
    return f"{kind}{compression}" if kind in _KINDS else ""


def separator(path: AnyPath, config: TextFileConfig) -> re.Pattern[bytes] | None:
    """Return the bytes behind which the file may be cut between two documents; None if it must be read whole."""
    return _SEPARATORS_OF.get((format_of(path), config.document if format_of(path) == ".txt" else "line"))


def fingerprint_of_format(path: AnyPath) -> str:
    """Return the format of a file and the version of the rules by which it is read, for fingerprints."""
    kind = suffixes(path)[0]
    has_returns = kind in (".txt", ".tsv") and isinstance(path, Path) and files.has_lone_returns(path)
    return format_of(path) + _RULES.get(kind, "") + (_RETURNS if has_returns else "")


@functools.cache
def log_once(message: str) -> None:
    """Log a message, once a process: the text is read more than once."""
    logger.info("%s", message)


def _encoding_of(path: AnyPath, named: str) -> str:
    """Return the encoding of a table that is in UTF-8 or the one that is named."""
    is_utf8 = codecs.lookup(_known(named)).name.startswith("utf-8")
    if is_utf8 or suffixes(path)[0] == ".parquet" or not files.is_utf8(path):
        return named
    log_once(f"{path} is valid UTF-8: it is read as such, not as {named}")
    return "utf-8"


def _known(encoding: str) -> str:
    try:
        "".encode(encoding)
    except (LookupError, ValueError) as error:
        raise UserError(f"encoding = {encoding!r} is unknown: name one such as utf-8 or latin-1") from error
    return encoding


def _documents(lines: Iterable[str], path: AnyPath, *, paragraphs: bool) -> Iterator[str]:
    """Yield the lines, or the paragraphs that blank lines separate; one that is too long comes in parts."""
    held = ""
    for line in lines:
        is_blank = line.isspace()
        held += "" if is_blank else line
        if len(held) > LONGEST_DOCUMENT:
            *whole, held = _parts(held, path)
            yield from whole
        if is_blank if paragraphs else line.endswith(("\r", "\n")):
            yield held
            held = ""
    yield held


def _parts(text: str, path: AnyPath) -> Iterator[str]:
    """Yield a text in parts of at most `LONGEST_DOCUMENT` characters, which end with a sentence or at least a word."""
    start = 0
    while len(text) - start > LONGEST_DOCUMENT:
        limit = start + LONGEST_DOCUMENT
        places = (max(text.rfind(end, start, limit) + len(end) for end in ends) for ends in (_SENTENCE_ENDS, (" ",)))
        end = next((place for place in places if place > start + 2), limit)
        long = f"{path} has texts of over {LONGEST_DOCUMENT:,} characters"
        log_once(f"{long}: each is read as several documents, which may be on both sides of the held-out split")
        yield text[start:end]
        start = end
    yield text[start:]


def _strict_text(row: Row, column: str) -> str:
    """Return a column's text, the empty one for a missing value."""
    value = row.values[column]
    if _is_missing(value):
        return ""
    if not isinstance(value, str):
        kind = "float" if isinstance(value, Decimal) else type(value).__name__
        raise UserError(f"{row.place}: column {column!r} holds a {kind}, not text: name another")
    return value


def _is_missing(value: object) -> bool:
    """Return True for null and for NaN, which writers put in its place."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _any_text(row: Row, name: str, *, required: bool) -> str:
    """Return any value as text: numbers as `number_text` does, a truth value as True or False."""
    value = row.values.get(name)
    if required and isinstance(value, list | dict | bytes):
        _strict_text(row, name)
    if _is_missing(value):
        return ""
    if isinstance(value, float | Decimal):
        return number_text(Decimal(str(value)))
    if isinstance(value, list | dict):
        value = json.dumps(
            value, ensure_ascii=False, default=lambda one: float(one) if isinstance(one, Decimal) else str(one)
        )
    return str(value) if required else _SURROGATE.sub("\ufffd", str(value))


def _rows(path: AnyPath, options: _Options) -> Iterator[Row]:
    kind = suffixes(path)[0]
    if kind not in _FORMATS:
        raise UserError(
            f"cannot tell the format of {path} by its name: it must end in one of {', '.join(_KINDS)}, "
            f"alone or followed by one of {', '.join(COMPRESSIONS)}; .txt is for text without columns"
        )
    with files.opened(path) as file:
        if file.peek(1):
            yield from _FORMATS[kind](path, file, options)


def _jsonl(path: AnyPath, file: io.BufferedReader, options: _Options) -> Iterator[Row]:
    for number, line in enumerate(options.lines(path, file), start=1):
        if line.isspace():
            continue
        place = f"{path}, line {number}"
        try:
            record = json.loads(line, parse_float=Decimal)  # no digit is lost
            repeated = [name for name in options.wanted if line.count(f'"{name}"') > 1]
            pairs = json.loads(line, object_pairs_hook=list) if repeated else ()
        except (ValueError, RecursionError, ArithmeticError) as error:
            raise UserError(f"{place}: not valid JSON ({error}): mend it, or write each object on one line") from error
        if not isinstance(record, dict):
            kind = type(record).__name__
            raise UserError(f"{place}: a JSON {kind}, not an object with named columns: write one on each line")
        _check_once(repeated, [name for name, _ in pairs], place)
        if "\\u" in line:
            wanted = [name for name in options.wanted if name in record]
            record |= {name: _without_lone_surrogates(record[name], place, options) for name in wanted}
        yield Row(place, record)


def _without_lone_surrogates(value: object, place: str, options: _Options) -> object:
    """Replace or refuse the halves of characters that JSON can escape and no encoding can hold."""
    if not isinstance(value, str) or not _SURROGATE.search(value):
        return value
    if not options.replace_invalid:
        raise UserError(f"{place}: half a character (a lone surrogate): {options.mend_bytes}")
    return _SURROGATE.sub("\ufffd", value)


def _csv(path: AnyPath, file: io.BufferedReader, options: _Options) -> Iterator[Row]:
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


def _separator(first: str, options: _Options) -> str:
    """Return the separator of which a first line has as many as the header's names need, or else the most frequent."""
    return max(_SEPARATORS, key=lambda one: (first.count(one) == len(options.header) - 1, first.count(one)))


def _tsv(path: AnyPath, file: io.BufferedReader, options: _Options) -> Iterator[Row]:
    _first_line(path, options, _NOTHING_QUOTED)
    return _named(path, _tab_separated(line.rstrip("\r\n") for line in options.lines(path, file)), options)


def _first_line(path: AnyPath, options: _Options, quoted: re.Pattern[str]) -> str:
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


def _named(path: AnyPath, rows: Iterator[tuple[int, list[str]]], options: _Options) -> Iterator[Row]:
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


def _check_names(names: Sequence[str], place: str, options: _Options) -> None:
    check_columns(options.columns, names, place, options.mend_columns)
    _check_once(options.wanted, names, place)


def _check_once(wanted: Sequence[str], names: Sequence[str], place: str) -> None:
    for name in wanted:
        if names.count(name) > 1:
            raise UserError(f"{place}: the column {name!r} is there twice: give each a name of its own")


def _parquet(path: AnyPath, file: io.BufferedReader, options: _Options) -> Iterator[Row]:
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


_FORMATS = {".jsonl": _jsonl, ".csv": _csv, ".tsv": _tsv, ".parquet": _parquet}
_KINDS = (".txt", *_FORMATS)
