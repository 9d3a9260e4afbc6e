"""Read texts and tables out of files: the one reader of pretraining text and of labelled data.

The name of a file tells its format: .txt or one of those in `tables`, alone or followed by .gz, .xz or .zst. An unknown
format or encoding is a UserError that names the file.
"""

import codecs
import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Literal, cast

from pydantic import Field

from configs import Config, Texts, UserError
from tokenizer.sources import files, tables
from tokenizer.sources.files import AnyPath, Watch, suffixes
from tokenizer.sources.tables import (
    KINDS,
    MEND_COLUMNS,
    SURROGATE,
    WITHOUT_ENCODING,
    Options,
    Row,
    check_columns,
    log_once,
    number_text,
)

_LINE_END, _BLANK_LINE = re.compile(rb"\n"), re.compile(rb"\n\r?\n")
_SEPARATORS_OF = {(".txt", "line"): _LINE_END, (".jsonl", "line"): _LINE_END, (".txt", "paragraph"): _BLANK_LINE}
"""The formats that may be cut anywhere between two documents, without reading what comes before."""
LONGEST_DOCUMENT = 10_000_000
"""Characters; a longer text is read as several documents, so that memory stays flat."""
_SENTENCE_ENDS = (". ", "! ", "? ", "。", "！", "？", "\n")
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
    only: dict[str, Texts] = Field(default={})
    """Read only the rows that have one of these texts in each of these columns, as {language: [en, de]}. A point leads
    into an object: {meta.pile_set_name: [Wikipedia (en)]}."""
    heldout_by: str | None = None
    """Column whose text decides on which side of the held-out split its row is, so that a sentence is on the side of
    its translation, or a chapter on that of its book; null: each text decides for itself."""
    invalid_utf8: Literal["error", "replace"] = "error"
    """Treatment of bytes that are no UTF-8: an error that names their place, or U+FFFD in their stead."""


class TableConfig(Config):
    """Settings of a table of labelled texts."""

    header: Texts = ()
    """Names of all the columns, for .csv and .tsv files whose first line does not name those that are needed."""
    encoding: str = "utf-8"
    """Encoding, such as latin-1, of the files that are not valid UTF-8; .parquet files need none."""


def texts(path: AnyPath, config: TextFileConfig) -> Iterator[tuple[str, str | None]]:
    """Yield the texts of the file at `path` in order, without blank ones; one that is too long comes in parts.

    With each is the text that decides its side of the held-out split; None: its own.
    """
    named = [*config.only, *([config.heldout_by] if config.heldout_by else [])]
    choosing = [part for name in named for part in (name, name.split(".")[0])]
    options = Options(config.columns or ("text",), choosing, replace_invalid=config.invalid_utf8 == "replace")
    if suffixes(path)[0] != ".txt":
        rows = chosen(tables.rows(path, options), config.only)
        found = texts_of_rows(rows, options.columns, config.heldout_by)
        yield from ((part, group) for text, group in found for part in _parts(text, path))
        return
    for name in ("only", "heldout_by"):
        if getattr(config, name):
            raise UserError(f"{path} has no columns to choose rows by: remove text.source.{name}, or name a table")
    with files.opened(path) as file:
        lines = options.lines(path, file, LONGEST_DOCUMENT)
        documents = _documents(lines, path, paragraphs=config.document == "paragraph")
        yield from ((text, None) for text in documents if text and not text.isspace())


def chosen(rows: Iterable[Row], only: Mapping[str, Sequence[str]]) -> Iterable[Row]:
    """Return the rows that have, in each column that `only` names, one of its texts."""
    if not only:
        return rows
    return (row for row in rows if all(_value_at(row, name) in texts for name, texts in only.items()))


def _value_at(row: Row, name: str) -> str:
    """Return a column's value as text; where there is no column of the name, that inside of the objects it leads to."""
    if name in row.values:
        return _any_text(row, name, required=False)
    value: object = row.values
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            check_columns([name], row.values, row.place, "name one of them in only or heldout_by")
        value = cast(Mapping[str, object], value)[part]
    return _any_text(Row(row.place, {name: value}), name, required=False)


def texts_of_rows(
    rows: Iterable[Row], columns: Sequence[str], heldout_by: str | None
) -> Iterator[tuple[str, str | None]]:
    """Yield the texts of the columns, row by row, without blank ones, each with the row's text in `heldout_by`."""
    for row in rows:
        check_columns(columns, row.values, row.place, MEND_COLUMNS)
        group = None if heldout_by is None else _value_at(row, heldout_by)
        found = (_strict_text(row, column) for column in columns)
        yield from ((text, group) for text in found if text and not text.isspace())


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
        options = Options(
            columns,
            optional,
            all_columns,
            config.header,
            _encoding_of(found, config.encoding) if encoding is None else _known(encoding),
            mend_columns=mend,
            mend_bytes=f"convert it, or {'set data.encoding' if encoding is None else 'name its encoding: --encoding'}",
        )
        return text_rows(tables.rows(found, options), columns, str(path), mend, None if all_columns else options.wanted)


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
    shown = {name: SURROGATE.sub("\ufffd", name) for name in names if kept is None or name in kept}
    return [{text: _any_text(row, name, required=name in columns) for name, text in shown.items()} for row in found]


def format_of(path: AnyPath) -> str:
    """Return the part of the file's name that tells its format, such as .csv.gz; empty where no reader knows it."""
    kind, compression = suffixes(path)
    return f"{kind}{compression}" if kind in KINDS else ""


def separator(path: AnyPath, config: TextFileConfig) -> re.Pattern[bytes] | None:
    """Return the bytes behind which the file may be cut between two documents; None if it must be read whole."""
    return _SEPARATORS_OF.get((format_of(path), config.document if format_of(path) == ".txt" else "line"))


def fingerprint_of_format(path: AnyPath) -> str:
    """Return the format of a file and the version of the rules by which it is read, for fingerprints."""
    kind = suffixes(path)[0]
    has_returns = kind in (".txt", ".tsv") and isinstance(path, Path) and files.has_lone_returns(path)
    return format_of(path) + _RULES.get(kind, "") + (_RETURNS if has_returns else "")


def _encoding_of(path: AnyPath, named: str) -> str:
    """Return the encoding of a table that is in UTF-8 or the one that is named."""
    is_utf8 = codecs.lookup(_known(named)).name.startswith("utf-8")
    if is_utf8 or suffixes(path)[0] in WITHOUT_ENCODING or not files.is_utf8(path):
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
    return str(value) if required else SURROGATE.sub("\ufffd", str(value))
