"""Find and read files of any store that fsspec opens, such as s3:// and https://, as streams.

A request that fails is tried again where it failed, as soon as its store has answered once. An address that cannot be
read is a UserError, and a connection that is lost for good is a ConnectionError; both name the address.
"""

import io
import logging
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from configs import UserError, extras

logger = logging.getLogger(__name__)

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::.+)?://")
_PATTERN = re.compile(r"[*?\[]")
_AT_ONCE = 16
_WAITS = (0.5, 1, 2, 4, 8, 16)
"""Seconds before each further try of a request."""
_SMALLEST_BLOCK, _FIRST_BLOCK, _LARGEST_BLOCK = 1 << 14, 1 << 16, 1 << 22
"""Bytes asked for at once. They grow from block to block, so that a glance at a file is cheap, and halve after each
failure, so that a connection that always breaks after some bytes brings the file nevertheless."""
_GROWTH, _GROWTH_AFTER_FAILURE = 2.0, 1.125
_RANGES: dict[str, Any] = {"cache_type": "none"}
_FROM_START: dict[str, Any] = {"block_size": 0}
"""Options of opening a file for reading anywhere, and from its beginning to its end."""
_CONTENT = {"etag", "md5hash", "content-md5", "digest", "crc", "crc32c", "sha", "blob_id"}
_TIMES = {"lastmodified", "last-modified", "last_modified", "mtime", "modified", "updated", "created", "date_time"}
"""The names that the stores have for a file's checksum, and its times."""
_MEND = "check the address, the network and the credentials"

Answer = TypeVar("Answer")
_answered: set[str] = set()
"""Stores that have answered once: a request of theirs that fails later is tried again."""


@dataclass(frozen=True)
class Remote:
    """A file of a store."""

    system: Any
    """The file system of fsspec."""
    path: str
    """The file's path there."""
    url: str = field(compare=False)
    information: dict[str, Any] = field(compare=False)
    """The store's record of the file."""

    def __str__(self) -> str:
        return self.url

    @property
    def suffixes(self) -> list[str]:
        """The suffixes of the file's name, as those of a local path."""
        return PurePosixPath(urlsplit(self.path).path if "://" in self.path else self.path).suffixes

    @property
    def version(self) -> tuple[str, ...]:
        """The size and the checksum of the file as its store tells them, or its time; the size alone if it has none."""
        known = [
            sorted(f"{key}={told}" for key, told in self.information.items() if told and key.lower() in names)
            for names in (_CONTENT, _TIMES)
        ]
        return (str(self.information.get("size")), *(known[0] or known[1]))

    @property
    def size(self) -> int | None:
        """The number of bytes, if the store tells it."""
        return self.information.get("size")

    def open(self, mode: Literal["rb"]) -> io.BufferedReader:
        """Open the file for reading."""
        return _Buffered(_Stream(self), _LARGEST_BLOCK)


def is_remote(name: str) -> bool:
    """Return True for the address of a file that fsspec opens, and False for a local path."""
    return bool(_URL.match(name))


def find_each(addresses: Sequence[str]) -> dict[str, list[Remote]]:
    """Return the files of each address as `find` does, several at once: a store may take a while for each."""
    pool = ThreadPoolExecutor(_AT_ONCE)
    try:
        return dict(zip(addresses, pool.map(find, addresses), strict=True))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def find(address: str) -> list[Remote]:
    """Return the file of that address, or those that match it as a pattern, by name; a UserError if there is none."""
    system, path = _file_system(address)

    def ask() -> dict[str, dict[str, Any]]:
        system.invalidate_cache()
        try:
            return {path: system.info(path)}
        except FileNotFoundError as error:
            if not _PATTERN.search(path) or not _is_missing(error):
                raise
            if not (found := system.glob(path, detail=True)):
                raise
            return dict(found)

    found = _persistent(ask, address, lambda: address)
    files = {name: found[name] for name in sorted(found) if found[name]["type"] == "file"}
    if not files:
        what = "a folder, not a file" if path in found else "no file matches it, only folders"
        raise UserError(f"{address}: {what}: name files, or a pattern such as 's3://bucket/texts/**/*.txt'")
    _, *chained = address.partition("::")
    urls = {name: address if name == path else "".join([system.unstrip_protocol(name), *chained]) for name in files}
    return [Remote(system, name, urls[name], files[name]) for name in files]


def _file_system(address: str) -> tuple[Any, str]:
    import fsspec  # takes a tenth of a second, and most text is local

    try:
        system, path = fsspec.url_to_fs(address)
    except ImportError as error:
        package = getattr(error.__cause__, "name", None) or str(error)
        if package == "s3fs":
            extras.require(package, extra="s3", purpose=address)
        raise UserError(f"not installed: {package}, for {address}: pip install {package}") from error
    except Exception as error:  # each driver has errors of its own
        raise UserError(f"cannot read {address} ({_reason(error)}): {_MEND}") from error
    return system, path


def _persistent(request: Callable[[], Answer], address: str, place: Callable[[], str]) -> Answer:
    """Return the answer to a request, tried again with growing waits if the store of `address` has answered before."""
    store, waits = "/".join(address.split("/")[:3]), iter(_WAITS)
    while True:
        try:
            answer = request()
        except UserError:
            raise
        except Exception as error:  # each driver lets through the errors of the libraries below it
            if _is_missing(error):
                raise UserError(f"no such file: {place()} ({_reason(error)})") from error
            if store not in _answered:
                raise UserError(f"cannot read {place()} ({_reason(error)}): {_MEND}") from error
            wait = next(waits, None)
            if wait is None or isinstance(error, PermissionError):
                raise ConnectionError(f"the connection is lost at {place()} ({_reason(error)}): {_MEND}") from error
            logger.warning("the connection broke at %s (%s): tried again in %g s", place(), _reason(error), wait)
            time.sleep(wait)
        else:
            _answered.add(store)
            return answer


def _is_missing(error: Exception) -> bool:
    """Return True if the store says that there is no such file; the driver of HTTP says so whatever the reason."""
    cause = error.__cause__
    known = cause is None or hasattr(cause, "response") or getattr(cause, "status", None) in (404, 410)
    return isinstance(error, FileNotFoundError) and known


def _reason(error: BaseException) -> str:
    error = error if error.__cause__ is None else error.__cause__
    return " ".join(str(error).split()) or type(error).__name__


class _Buffered(io.BufferedReader):
    """A buffer that decoders of text fill, too: by `read1` they would ask for 8 KiB at a time."""

    def read1(self, size: int = -1) -> bytes:
        """Return `size` bytes, or those that are left."""
        return self.read(size)


class _Stream(io.RawIOBase):
    """The bytes of a remote file, asked for in blocks."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._file: Any = None
        self._position = 0
        self._block, self._growth = _FIRST_BLOCK, _GROWTH
        self._size = remote.size
        self._options: dict[str, Any] = _RANGES

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True if the store tells the size."""
        return self._size is not None

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position; the next bytes are asked for there."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size or 0}[whence]
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read at most a block into the buffer, and return the number of bytes; 0 at the end."""

        def ask() -> bytes:
            try:
                return self._read(min(len(buffer), self._block))
            except Exception:
                self._block = max(self._block // 2, _SMALLEST_BLOCK)
                self._growth = _GROWTH_AFTER_FAILURE
                self._close_file()
                raise

        found = _persistent(ask, str(self._remote), lambda: f"{self._remote}, byte {self._position}")
        buffer[: len(found)] = found
        self._position += len(found)
        self._block = min(int(self._block * self._growth), _LARGEST_BLOCK)
        return len(found)

    def _read(self, count: int) -> bytes:
        if self._size is not None and self._position >= self._size:
            return b""
        if self._file is None:
            self._file = self._remote.system.open(self._remote.path, "rb", **self._options)
        try:
            self._file.seek(self._position)
            found: bytes = self._file.read(count)
        except ValueError:  # by a server of HTTP that gives no ranges: what comes before is read and thrown away
            if self._options is _FROM_START and self._file.tell() <= self._position:
                while (left := self._position - self._file.tell()) and self._file.read(min(left, _LARGEST_BLOCK)):
                    pass
                found = self._file.read(count)
            else:
                self._close_file()
                self._options = _FROM_START
                return self._read(count)
        if not found and self._size is not None:
            raise EOFError(f"the file has {self._size} bytes")
        return found

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def close(self) -> None:
        """Close the file."""
        self._close_file()
        super().close()
