"""Files on any disk: written whole or not at all, locked where the file system can, and temporary ones."""

import errno
import fcntl
import logging
import os
import secrets
import shutil
import signal
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from configs import UserError

PARTIAL = ".partial"
"""Ending of the name of a file or folder that is still being written."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
"""Errors of writing alone: a file that is only read raises none of them."""
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
"""Errors of a file system that lacks locks, such as NFS without its lock service, Lustre and FUSE."""
_WARNED = set[int]()
"""Numbers of the file systems without locks that a warning has named."""
_LETTERS_OF_NAME = 40

logger = logging.getLogger(__name__)


@contextmanager
def written(path: Path, *, new: bool = False) -> Iterator[Path]:
    """Return a context with the path of a file to write, which becomes `path` at its end, or is removed by an error.

    A pipe or a device is written to directly, and a link stays one. Unless it must be `new`, a former file is replaced.

    Raises:
        UserError: `path` must be new, and is there.
        OSError: the disk is full or not writable; the error names `path`.
    """
    if new:
        check_new(path)
    if path.exists() and not path.is_file():
        try:
            yield path
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        return
    path = Path(os.path.realpath(path))
    partial = path.with_name(f".{path.name[:_LETTERS_OF_NAME]}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        yield partial
        sync(partial)
        if new:
            _link(partial, path)
        else:
            partial.replace(path)
        sync(path.parent)
    except OSError as error:
        if error.filename is not None and Path(error.filename) != partial:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def written_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Return a context with an empty folder to fill, which becomes `path` at its end, or is removed by an error.

    With `replace`, a former folder stands until then.

    Raises:
        UserError: `path` is there and not to `replace`, or its own folder is not.
        OSError: the disk is full or not writable.
    """
    if not replace:
        check_new(path)
    partial = path.with_name(f".{path.name[:_LETTERS_OF_NAME]}.{secrets.token_hex(4)}{PARTIAL}")
    former = partial.with_name(partial.name + PARTIAL)
    with ending_by_signals():
        try:
            partial.mkdir()
            yield partial
            for inner in (*partial.rglob("*"), partial):
                sync(inner)
            if replace and path.is_dir():
                path.rename(former)
            check_new(path)  # a rename would replace an empty folder
            partial.rename(path)
            sync(path.parent)
        except OSError as error:
            if error.filename is not None and not Path(error.filename).is_relative_to(partial):
                raise
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            if former.is_dir() and not path.is_dir():
                former.rename(path)
            shutil.rmtree(former, ignore_errors=True)


@contextmanager
def ending_by_signals() -> Iterator[None]:
    """Return a context in which signals that would kill at once raise a KeyboardInterrupt with their number instead."""

    def interrupt(number: int, _: object) -> None:
        raise KeyboardInterrupt(number)

    with ExitStack() as former:
        if threading.current_thread() is threading.main_thread():  # Python lets no other install a handler
            for number in (signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) is signal.SIG_DFL:
                    former.callback(signal.signal, number, signal.signal(number, interrupt))
        yield


def write_text(path: Path, text: str, *, new: bool = False) -> None:
    """Write a text file in UTF-8 by `written`; bytes of a file's name that are no UTF-8 are written as escapes."""
    with written(path, new=new) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def check_new(path: Path) -> None:
    """Raise a UserError if the path is there, or its folder is not: before the work whose result it shall hold."""
    check_absent(path)
    if not path.parent.is_dir():
        raise UserError(f"{path} is in a folder that does not exist: make {path.parent} first")


def check_absent(path: Path) -> None:
    """Raise a UserError if there is a file or folder at the path."""
    if path.is_file() or path.is_dir():
        raise UserError(f"{path} exists already: remove it, or name another file or folder")


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:  # some network file systems cannot do it for a folder
            raise
    finally:
        os.close(descriptor)


def lock(descriptor: int, place: Path, *, shared: bool = False, wait: bool = False) -> bool:
    """Lock an open file or folder until it is closed; if another process has it, return False, or else `wait` for it.

    A file system without locks gives none: it is as if nobody else were there, and a warning says so.
    """
    operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        if wait:
            logger.info("another process is at work in %s: waiting for it", place)
            fcntl.flock(descriptor, operation & ~fcntl.LOCK_NB)
        return wait
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise OSError(error.errno, f"cannot lock ({error.strerror})", str(place)) from error
        if (file_system := os.fstat(descriptor).st_dev) not in _WARNED:
            _WARNED.add(file_system)
            without = "is on a file system without locks"
            logger.warning("%s %s (%s): let no second process write there", place, without, error.strerror)
    return True


@contextmanager
def temporary() -> Iterator[None]:
    """Return a context whose errors of a full temporary folder, and of SQLite there, are UserErrors that name it."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        absent = isinstance(error, OSError) and error.errno == errno.ENOENT and error.filename is None  # by tempfile
        if isinstance(error, OSError) and error.errno not in _FULL and not absent:
            raise
        # Not tempfile.gettempdir(), which passes by a folder that is full by now. SQLite has an order of its own.
        names, usual = ["TMPDIR"], "/tmp"
        if isinstance(error, sqlite3.Error):
            names, usual = ["SQLITE_TMPDIR", "TMPDIR"], "/var/tmp"
        folders = [*filter(None, map(os.environ.get, names)), usual]
        folder = next((folder for folder in folders if os.access(folder, os.W_OK | os.X_OK)), folders[0])
        where = f"cannot write into the temporary folder {folder} ({error})"
        raise UserError(f"{where}: make room there, or set TMPDIR to another folder") from error


def _link(partial: Path, path: Path) -> None:
    """Give a written file its name, or raise a UserError if another process has given it to a file meanwhile."""
    try:
        path.hardlink_to(partial)
    except FileExistsError:
        check_new(path)
    except OSError:  # a file system without links
        check_new(path)
        partial.replace(path)
