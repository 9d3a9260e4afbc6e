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
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _Descriptor(io.FileIO):
    """The descriptor of a standard stream; a write that fails turns it to the null device."""

    failure: OSError | None = None
    """The error of the write that failed; a BrokenPipeError or another ConnectionError if the reader has left."""

    def write(self, data: "ReadableBuffer", /) -> int:
        """Write some of `data`, and return the number of bytes; all of them are lost if that fails."""
        try:
            while (written := super().write(data)) is None:  # another program made it non-blocking, and it is full
                select.select((), (self,), ())
        except OSError as error:
            hung_up = error.errno == errno.EIO and stat.S_ISCHR(os.fstat(self.fileno()).st_mode)
            self.failure = BrokenPipeError(*error.args) if hung_up else error
            with suppress(OSError):  # of the system's limits: the next write fails as well
                self._silence()
            return memoryview(data).nbytes
        return written

    def _silence(self) -> None:
        """Turn the descriptor to the null device, for C++ libraries and later child processes as well."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())
        os.close(null)


def guard() -> None:
    """Make sure that no message can fail: replace this process's standard output and error, and open closed ones.

    Letters that the terminal lacks are printed as escapes. A stream that the caller has replaced stays as it is.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # the next file to be opened would get this number, and the messages of C++ libraries with it
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = _guarded(sys.stdout, sys.__stdout__)
    sys.stderr = _guarded(sys.stderr, sys.__stderr__)


def failure(stream: TextIO) -> OSError | None:
    """Return the error by which a guarded stream lost its messages, if any."""
    return getattr(getattr(getattr(stream, "buffer", None), "raw", None), "failure", None)


def _guarded(stream: TextIO | None, own: TextIO | None) -> TextIO:
    """Return the guarded stream in place of `stream`, if that is the interpreter's `own`, or is absent."""
    if stream is None:
        null = io.FileIO(os.open(os.devnull, os.O_WRONLY), "w", closefd=False)
        stream = io.TextIOWrapper(io.BufferedWriter(null), encoding="utf-8")
    elif stream is not own or not isinstance(stream, io.TextIOWrapper):
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(_Descriptor(stream.fileno(), "w", closefd=False)),
        encoding=stream.encoding,
        errors="backslashreplace",
        newline="\n",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
