"""Standard output and error whose failing write loses the message and nothing else.

The reader of a pipe leaves, a terminal hangs up, a disk is full, or a stream was closed from the start: the work of a
command does not depend on it.
"""

import errno
import io
import os
import select
import stat
import sys
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _Descriptor(io.FileIO):
    """The descriptor of a standard stream, whose `write` never fails."""

    failure: OSError | None = None
    """The error of the last write that failed; a ConnectionError, such as BrokenPipeError, if the reader has left."""

    def write(self, data: "ReadableBuffer", /) -> int:
        """Write some of `data`, and return the number of bytes; all of them are lost if that fails."""
        try:
            while (written := super().write(data)) is None:  # another program made it non-blocking, and it is full
                select.select((), (self,), ())
        except OSError as error:
            hung_up = error.errno == errno.EIO and stat.S_ISCHR(os.fstat(self.fileno()).st_mode)
            self.failure = BrokenPipeError(*error.args) if hung_up else error
            if isinstance(self.failure, ConnectionError):
                with suppress(OSError):  # of too many open files: the next write comes here again
                    os.dup2(_null().fileno(), self.fileno())  # so that C++ libraries and child processes do not fail
            return memoryview(data).nbytes
        return written


def guard() -> None:
    """Guard this process's standard output and error, and open those that are closed.

    Letters that the terminal lacks are printed as escapes. A stream that the caller has replaced stays as it is.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # the next file to be opened would get this number, and the messages of C++ libraries with it
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = _guarded(sys.stdout, sys.__stdout__)
    sys.stderr = messages()


def messages() -> TextIO:
    """Return standard error, guarded, also where it is absent or closed: nothing that is printed there can fail."""
    return _guarded(sys.stderr, sys.__stderr__)


def failure(stream: TextIO) -> OSError | None:
    """Return the last error by which a guarded stream has lost something, if any."""
    return getattr(getattr(getattr(stream, "buffer", None), "raw", None), "failure", None)


def _guarded(stream: TextIO | None, own: TextIO | None) -> TextIO:
    """Return the guarded stream in place of `stream`, if that is the interpreter's `own`, absent or closed."""
    if stream is None or stream.closed:
        return _null()
    if stream is not own or not isinstance(stream, io.TextIOWrapper):
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(_Descriptor(stream.fileno(), "w", closefd=False)),
        encoding=stream.encoding,
        errors="backslashreplace",
        newline="\n",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


@cache
def _null() -> TextIO:
    """Return the null device."""
    descriptor = io.FileIO(os.open(os.devnull, os.O_WRONLY), "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(descriptor), encoding="utf-8")
