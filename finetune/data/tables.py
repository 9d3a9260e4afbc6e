"""Read tables of labelled texts from files, as columns of text, with errors that name the place."""

import codecs
import csv
import gzip
import io
import json
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs import Config, Texts, UserError
from tokenizer.sources import readers

if TYPE_CHECKING:
    import pandas

_SEPARATORS = ",;\t"
_TOO_MANY = re.compile(r"Expected (\d+) fields in line (\d+), saw (\d+)")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError)


class Reading(Config):
    """How a file is read; the settings shared by all that read tables."""

    header: Texts = ()
    """Names of all the columns, for .csv and .tsv files whose first line does not name those that are needed."""
    encoding: str = "utf-8"
    """Encoding of the files, such as utf-8 or latin-1; .parquet files need none."""


def read(path: Path, columns: Sequence[str], reading: Reading) -> "pandas.DataFrame":
    """Return the table at `path`: every cell a text, the empty one where a value is missing.

    Args:
        path: a .csv, .tsv, .jsonl or .parquet file, alone or followed by .gz, .xz or .zst. A CSV file's separator is
            told by its first line: comma, semicolon or tab. Quotes in a TSV file are plain characters.
        columns: names of the columns that have to be there and hold single values; the others come along.
        reading: the settings.

    Raises:
        UserError: the file is missing, empty, damaged or of an unknown format, has no rows, not all of `columns`, a
            row of another length, a line that is no JSON, or bytes that are not text in its encoding.

    """
    kind, compression = [*Path(f"table{readers.format_of(path)}").suffixes, "", ""][:2]
    if kind not in _FORMATS:
        raise UserError(
            f"cannot tell the format of {path} by its name: it must end in one of {', '.join(_FORMATS)}, "
            f"alone or followed by one of {', '.join(_DECOMPRESSED)}"
        )
    frame = _FORMATS[kind](path, _content(path, compression), columns, reading)
    check_columns(columns, list(map(str, frame.columns)), str(path))
    return as_text(frame, columns, str(path))


def _content(path: Path, compression: str) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if compression:
        try:
            content = _DECOMPRESSED[compression](content)
        except _DAMAGED as error:
            raise UserError(f"{path} is truncated or damaged ({error}): fetch or compress it again") from None
    if not content.strip():
        raise UserError(f"{path} is empty: name a file with labelled texts")
    return content


def _zstd(content: bytes) -> bytes:
    import pyarrow  # takes a tenth of a second, and few read this format

    return bytes(pyarrow.CompressedInputStream(io.BytesIO(content), "zstd").read())


_DECOMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".xz": lzma.decompress,
    ".zst": _zstd,
}


def _decoded(path: Path, content: bytes, encoding: str) -> str:
    """Return the content as text, a leading byte order mark dropped."""
    try:
        return content.decode(encoding).removeprefix(codecs.BOM_UTF8.decode())
    except LookupError:
        raise UserError(f"encoding = {encoding!r} is no known encoding: name one such as utf-8 or latin-1") from None
    except UnicodeError as error:
        bad = getattr(error, "start", 0)
        line = content.count(b"\n", 0, bad) + 1
        raise UserError(
            f"{path}, line {line}, byte {bad}: not text in {encoding}: convert it, or set data.encoding"
        ) from None


def _csv(path: Path, content: bytes, columns: Sequence[str], reading: Reading) -> "pandas.DataFrame":
    text = _decoded(path, content, reading.encoding)
    try:
        separator = csv.Sniffer().sniff(text.lstrip().partition("\n")[0], _SEPARATORS).delimiter
    except csv.Error:  # a single column
        separator = ","
    return _separated(path, text, columns, reading.header, sep=separator)


def _tsv(path: Path, content: bytes, columns: Sequence[str], reading: Reading) -> "pandas.DataFrame":
    text = _decoded(path, content, reading.encoding)
    return _separated(path, text, columns, reading.header, sep="\t", quoting=csv.QUOTE_NONE)


def _separated(
    path: Path, text: str, columns: Sequence[str], header: Sequence[str], **dialect: Any
) -> "pandas.DataFrame":
    import pandas as pd

    csv.field_size_limit(sys.maxsize)  # a text is sometimes longer than the default 131,072 characters
    try:
        # The first line is read as a row too: else a row that is too long by one passes for one with a name. Of the
        # engines only this one tells a missing field from an empty one.
        frame = pd.read_csv(
            io.StringIO(text, newline=""),
            header=None,
            dtype=object,
            keep_default_na=False,
            skip_blank_lines=False,
            engine="python",
            **dialect,
        )
    except pd.errors.EmptyDataError:
        raise UserError(f"{path} is empty: name a file with labelled texts") from None
    except pd.errors.ParserError as error:
        too_many = _TOO_MANY.search(str(error))
        if too_many is None:
            raise UserError(f"{path} is not valid CSV ({' '.join(str(error).split())}): mend the quotes") from None
        expected, row, found = map(int, too_many.groups())
        raise UserError(_ragged(path, row if header else row - 1, found, expected)) from None
    first = list(frame.iloc[0])
    has_names = not header or set(columns) <= set(first)
    names = first if has_names else list(header)
    frame = frame.iloc[int(has_names) :].reset_index(drop=True)
    if len(names) != len(first):
        raise UserError(f"{path}: {len(first)} columns where header names {len(names)}: name all of them in header")
    frame = frame.set_axis(names, axis=1)
    if len(names) == 1:
        return frame.fillna("")  # a blank line is a row whose one field is empty
    lengths = frame.notna().sum(axis=1)
    for row, length in enumerate(lengths.tolist(), start=1):
        if length not in (0, len(names)):
            raise UserError(_ragged(path, row, length, len(names)))
    return frame[lengths > 0]


def _ragged(path: Path, row: int, found: int, expected: int) -> str:
    return (
        f"{path}, row {row}: {found} columns where the first line has {expected}: mend the row, or quote the fields "
        "that hold separators or line breaks"
    )


def _jsonl(path: Path, content: bytes, columns: Sequence[str], reading: Reading) -> "pandas.DataFrame":
    """Decode line by line, because pandas does not say which line is bad and makes 1.0 of a 1 beside a gap."""
    import pandas as pd

    records = []
    for number, line in enumerate(_decoded(path, content, reading.encoding).split("\n"), start=1):
        if not line or line.isspace():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: not valid JSON ({error}): mend or remove the line") from None
        if not isinstance(record, Mapping):
            raise UserError(f"{path}, line {number}: a JSON {type(record).__name__}, not an object with named columns")
        records.append(record)
    return pd.DataFrame(records, dtype=object)


def _parquet(path: Path, content: bytes, columns: Sequence[str], reading: Reading) -> "pandas.DataFrame":
    import pandas as pd
    import pyarrow

    try:
        return pd.read_parquet(io.BytesIO(content), dtype_backend="pyarrow")  # whole numbers stay so beside gaps
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} is no readable parquet file ({' '.join(str(error).split())})") from None


_FORMATS = {".csv": _csv, ".tsv": _tsv, ".jsonl": _jsonl, ".parquet": _parquet}


def check_columns(wanted: Iterable[str], there: Sequence[str], where: str) -> None:
    """Check that all columns have names of their own, and that those that are wanted are there.

    Raises:
        UserError: they are not.

    """
    for name in there:
        if there.count(name) > 1:
            raise UserError(f"{where}: the column {name!r} is twice there: give each a name of its own")
    for column in wanted:
        if column not in there:
            raise UserError(
                f"{where}: the column {column!r} is not there; there are: {', '.join(there)}: name the columns "
                "in data.text, data.pair and data.label, or those of a file without names in data.header"
            )


def as_text(frame: "pandas.DataFrame", columns: Iterable[str], where: str) -> "pandas.DataFrame":
    """Turn every value into text.

    Raises:
        UserError: there are no rows, or one of `columns` does not hold single values.

    """
    import pandas as pd

    if not len(frame):
        raise UserError(f"{where} has no rows: name a file with labelled texts")
    required, names = set(columns), list(map(str, frame.columns))
    texts: dict[int, list[str]] = {}
    for place, name in enumerate(names):
        texts[place] = []
        for row, value in enumerate(frame.iloc[:, place], start=1):
            single = pd.api.types.is_scalar(value)
            if name in required and (not single or isinstance(value, bytes)):
                raise UserError(f"{where}, row {row}: the column {name!r} holds a {type(value).__name__}, not text")
            text = "" if single and pd.isna(value) else str(value)
            if not text.isascii() and _LONE_SURROGATE.search(text):  # JSON can escape halves of characters
                raise UserError(f"{where}, row {row}: half a character (a lone surrogate) in {name!r}: mend the row")
            texts[place].append(text)
    return pd.DataFrame(texts, dtype=str).set_axis(names, axis=1)
