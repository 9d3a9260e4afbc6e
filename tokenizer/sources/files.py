"""Open files of text: regular ones only, decompressed, decoded and cut into lines, and watched for changes.

A file that is missing, a pipe, damaged or no text is a UserError that names it, and the line and byte where there are
such.
"""

import codecs
import gzip
import hashlib
import io
import lzma
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self

from configs import UserError
from tokenizer.sources import remote
from tokenizer.sources.remote import Remote

_BUFFER_BYTES = 1 << 20
_SEARCHED_BYTES = 1 << 16
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # it begins with the mark of UTF-16
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_WIDE = (codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
"""Marks of the encodings whose units are wider than a byte."""
_SEPARATOR_BYTES = 3
_NO_TEXT = {
    b"\x1f\x8b": "compressed: let its name end in .gz",
    b"\xfd7zXZ\0": "compressed: let its name end in .xz",
    b"\x28\xb5\x2f\xfd": "compressed: let its name end in .zst",
    b"PK\3\4": "a zip archive or a workbook, no text: unpack it, or let its name end in .xlsx",
}
"""The format of a file that begins so, whatever its name says."""
_NO_FILES = {
    stat.S_IFDIR: "a folder, not a file: name files, or a pattern such as 'texts/**/*.txt'",
    stat.S_IFIFO: "a pipe: it would have to be read twice: write it to a file first",
    stat.S_IFSOCK: "a socket, not a file: name a file",
    stat.S_IFCHR: "a device, not a file: name a file",
    stat.S_IFBLK: "a device, not a file: name a file",
}


@dataclass(frozen=True)
class Span:
    """The bytes of a file from `start` to before `end`, as a file of their own."""

    whole: Path | Remote
    start: int
    end: int

    def __str__(self) -> str:
        return f"{self.whole} from byte {self.start:,} on"

    @property
    def suffixes(self) -> list[str]:
        """The suffixes of the file's name."""
        return self.whole.suffixes

    def open(self, mode: Literal["rb"]) -> io.BufferedReader:
        """Open the bytes for reading."""
        return io.BufferedReader(_SpanStream(self.whole.open(mode), self.start, self.end), _BUFFER_BYTES)


class _SpanStream(io.RawIOBase):
    """Some of the bytes of an open file."""

    def __init__(self, file: io.BufferedReader, start: int, end: int) -> None:
        file.seek(start)
        self._file, self._left = file, end - start

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as the bytes are left, and return their number."""
        count = self._file.readinto(memoryview(buffer)[: max(self._left, 0)])
        self._left -= count
        return count

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


AnyPath = Path | Remote | Span


class UnreachableError(UserError):
    """Text cannot be read for now, by a fault of a network, a disk or its rights."""


class Watch:
    """Tells whether files change while they are read: as a context, it checks them at its end.

    Where they have changed, an error of the reader gives way to the one that says so.
    """

    def __init__(self, files: Callable[[], Iterable[AnyPath]]) -> None:
        """Note the sizes and times of the files that `files` lists, now and in each later check."""
        self.files = files
        self._before = self._states()

    def check(self) -> None:
        """Raise a UserError if a file has changed, come or gone since the watch began."""
        try:
            after = self._states()
        except UserError as error:
            raise UserError(f"the files changed while they were read: {error}") from error
        for path in self._before | after:
            if self._before.get(path) != after.get(path):
                raise UserError(
                    f"{path} changed while it was read, so nothing made of it is kept: wait until it is complete, "
                    "or read a copy of it"
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None or (isinstance(error, UserError | OSError) and not isinstance(error, ConnectionError)):
            self.check()

    def _states(self) -> dict[AnyPath, tuple[object, ...]]:
        states: dict[AnyPath, tuple[object, ...]] = {}
        for listed in self.files():
            path = listed.whole if isinstance(listed, Span) else listed
            if isinstance(path, Remote):
                states[path] = path.version
                continue
            with suppress(OSError):  # the reader names it
                found = path.stat()
                # Not the time of its status, which a backup that makes links changes.
                states[path] = (found.st_size, found.st_mtime_ns, found.st_ino)
        return states


def without_scheme(name: str) -> str:
    """Return the path that a file:// address stands for; any other name stays."""
    return name.removeprefix("file://")


def located(name: str | Path) -> AnyPath:
    """Return the local path, or the file of a store, of that name or address."""
    name = without_scheme(str(name))
    if not remote.is_remote(name):
        return Path(name)
    first, *others = remote.find(name)
    if others:
        raise UserError(f"{name} matches {len(others) + 1:,} files: name one")
    return first


def digest(path: AnyPath) -> str:
    """Return a hash of the file's content, or where its store tells its version, of that."""
    if isinstance(path, Remote) and (version := path.version)[1:]:
        return " ".join([str(path), *version])
    if isinstance(path, Span) and isinstance(path.whole, Remote) and path.whole.version[1:]:
        return f"{digest(path.whole)} {path.start} {path.end}"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size(path: Path | Remote) -> int | None:
    """Return the number of bytes of a file, compressed if it is; None if its store does not tell."""
    return path.size if isinstance(path, Remote) else status(path).st_size


def borders(path: Path | Remote, end: int, count: int, separator: re.Pattern[bytes]) -> list[int]:
    """Return places in a file from 0 to `end` that cut it into about `count` equal parts, each behind a separator."""
    found = [0]
    with path.open("rb") as file:
        if file.peek(4).startswith(_WIDE):  # a part of it would lack the mark that tells its encoding
            return [0, end]
        for target in (end * number // count for number in range(1, count)):
            if target <= found[-1]:
                continue
            file.seek(target)
            read = b""
            while (match := separator.search(read)) is None and (block := file.read(_SEARCHED_BYTES)):
                read = read[-_SEPARATOR_BYTES:] + block
            if match and (place := file.tell() - len(read) + match.end()) < end:
                found.append(place)
            else:
                break
    return [*found, end]


def status(path: Path) -> os.stat_result:
    """Return the status of a regular file; anything else is a UserError, before it is opened."""
    try:
        found = path.stat()
    except FileNotFoundError as error:
        link = " (a link to a file that is not there)" if path.is_symlink() else ""
        raise UserError(f"no such file: {path}{link}") from error
    except OSError as error:
        raise UnreachableError(f"cannot read {path}: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path}: {_NO_FILES.get(stat.S_IFMT(found.st_mode), 'no regular file: name one')}")
    return found


def suffixes(path: AnyPath) -> tuple[str, str]:
    """Return the last suffix but for a compression's, and the compression's, in small letters."""
    before, last = ["", "", *path.suffixes][-2:]
    kind, compression = (before, last) if last.lower() in COMPRESSIONS else (last, "")
    return kind.lower(), compression.lower()


@contextmanager
def opened(path: AnyPath) -> Iterator[io.BufferedReader]:
    """Open the file for reading its decompressed bytes; damage found while reading is a UserError."""
    if isinstance(whole := path.whole if isinstance(path, Span) else path, Path):
        status(whole)
    try:
        raw = path.open("rb")
    except OSError as error:
        raise UnreachableError(f"cannot read {path}: {error.strerror}") from error
    try:
        with raw:
            kind, compression = suffixes(path)
            compression = compression if raw.peek(1) else ""  # an empty file is no stream of any library
            found = (what for mark, what in _NO_TEXT.items() if raw.peek(len(mark)).startswith(mark))
            if not compression and kind != ".xlsx" and (what := next(found, "")):
                raise UserError(f"{path} is {what}")
            yield io.BufferedReader(COMPRESSIONS[compression](raw), _BUFFER_BYTES) if compression else raw
    except ConnectionError:
        raise
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk or the system: not the file's fault
            raise
        if "too much memory" in str(error):
            raise UserError(
                f"{path} is whole, but its window is longer than this reader takes: "
                f"decompress it first, by zstd -d --long=31 {path}"
            ) from error
        raise UserError(f"{path} is truncated or damaged ({error}): fetch or compress it again") from error


class _XzFile(io.RawIOBase):
    """The decompressed bytes of .xz streams laid end to end, with or without zero bytes between and behind them.

    `lzma.open` takes a second stream that is damaged, or behind zero bytes, for the end of the file.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._stream = lzma.LZMADecompressor()

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as the present stream does, and return the number of bytes; 0 at the end."""
        while True:
            if self._stream.eof:
                block = self._stream.unused_data.lstrip(b"\0")
                while not block and (more := self._file.read(_BUFFER_BYTES)):
                    block = more.lstrip(b"\0")
                if not block:
                    return 0
                self._stream = lzma.LZMADecompressor()
            else:
                block = self._file.read(_BUFFER_BYTES) if self._stream.needs_input else b""
                if self._stream.needs_input and not block:
                    raise EOFError("the last stream has no end")
            if found := self._stream.decompress(block, len(buffer)):
                buffer[: len(found)] = found
                return len(found)


def _zstd(file: BinaryIO) -> Any:
    import pyarrow  # takes a tenth of a second, and few read this format

    return pyarrow.CompressedInputStream(file, "zstd")


COMPRESSIONS: dict[str, Callable[[BinaryIO], Any]] = {".gz": gzip.open, ".xz": _XzFile, ".zst": _zstd}


def is_utf8(path: AnyPath) -> bool:
    """Return True if the file is valid UTF-8 and has more than ASCII, so that it can hardly be anything else."""
    beyond_ascii = False
    with opened(path) as file, io.TextIOWrapper(file, "utf-8", newline="") as reader:
        try:
            for text in iter(partial(reader.read, _BUFFER_BYTES), ""):
                if "\0" in text:
                    return False
                beyond_ascii |= not text.isascii()
        except UnicodeDecodeError:
            return False
    return beyond_ascii


def has_lone_returns(path: AnyPath) -> bool:
    """Return True if a carriage return without a line feed ends a line at the beginning of the file."""
    with opened(path) as file:
        beginning = file.read(_SEARCHED_BYTES)
    return b"\r" in beginning.removesuffix(b"\r").replace(b"\r\n", b"")


def lines(
    path: AnyPath, file: io.BufferedReader, encoding: str, mend: str, *, replace: bool = False, longest: int = -1
) -> Iterator[str]:
    r"""Yield the decoded lines with their ends: \n, \r\n or \r.

    A byte order mark at the beginning tells the encoding, whatever `encoding` is. Bytes that it cannot decode are read
    as U+FFFD if `replace`, else they are a UserError that ends in `mend`. A line of more than `longest` characters
    comes in parts of that length.
    """
    beginning = file.peek(4)
    marks = (name for mark, name in _BYTE_ORDER_MARKS.items() if beginning.startswith(mark))
    encoding, errors = next(marks, encoding), "replace" if replace else "strict"
    try:
        with io.TextIOWrapper(file, encoding, errors, newline="") as reader:
            for line in iter(partial(reader.readline, longest), ""):
                if "\0" in line:
                    fault = "a NUL byte, so this is no text, or UTF-16 without a byte order mark: convert it"
                    raise UserError(f"{path}, {_place_of_fault(path, encoding, errors)}: {fault}")
                yield line.removeprefix("\ufeff")  # that of a file laid behind another
    except UnicodeError as error:
        name = encoding.upper().removesuffix("-SIG")
        place = _place_of_fault(path, encoding, errors)
        raise UserError(f"{path}, {place}: invalid {name}: {mend}") from error


def _place_of_fault(path: AnyPath, encoding: str, errors: str) -> str:
    """Return the line and byte at which decoding fails or a NUL stands, having read the file again up to there."""
    decoder, newlines = codecs.getincrementaldecoder(encoding)(errors), io.IncrementalNewlineDecoder(None, True)
    line, offset, step = 1, 0, _SEARCHED_BYTES
    with opened(path) as file:
        source: BinaryIO = file
        while block := source.read(step):
            state = decoder.getstate()
            try:
                text = decoder.decode(block)
            except UnicodeError:
                text = "\0"
            if "\0" not in text:
                line += newlines.decode(text).count("\n")
                offset += len(block)
            elif step == 1:
                break
            else:  # byte by byte from here on
                decoder.setstate(state)
                source, step = io.BytesIO(block), 1
        else:
            state = decoder.getstate()  # the file ends inside a character
    line += newlines.decode("", True).count("\n")
    return f"line {line}, byte {offset - len(state[0])}"
