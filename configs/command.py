"""Run an entry point so that a user's mistake is one line and exit code 2, never a traceback."""

import argparse
import io
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from configs import UserError

EXIT_MISTAKE = 2
EXIT_SIGNAL = 128
"""Added to the number of the signal that stopped a run, which is saved."""
EXIT_INTERRUPTED = EXIT_SIGNAL + signal.SIGINT
TRACEBACK = "MLM_TRACEBACK"
"""Environment variable that, set to 1, shows the traceback behind every one-line error."""
LOGGED_PACKAGES = ("configs", "tokenizer", "mlm", "finetune")


class Parser(argparse.ArgumentParser):
    """A parser of command lines that raises UserError for mistakes and accepts no abbreviated option."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def error(self, message: str) -> NoReturn:
        """Raise a UserError instead of printing the usage."""
        raise UserError(f"{message}: see {self.prog} --help")


def split(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Separate the YAML file among a command's words, one at most or a UserError is raised, from the overrides.

    A word with `=` is a file if there is one of this name.
    """
    files = [word for word in words if "=" not in word or os.path.isfile(word)]  # noqa: PTH113 - a long word is no error
    if len(files) > 1:
        raise UserError(f"at most one YAML file, not {', '.join(files)}")
    return Path(files[0]) if files else None, [word for word in words if word not in files]


def lines() -> Iterator[str]:
    """Yield the lines of standard input, without their ends; raise a UserError if it is closed, or is not text."""
    if sys.stdin is None:
        raise UserError("no text is given, and standard input is closed: give a text as an argument")
    try:
        for line in sys.stdin:
            yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not {error.encoding}: {error.reason} at byte {error.start}") from None


class _LogLines(logging.Handler):
    """Writes each record as a line of standard error, without tearing a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        if sys.stderr is not None:
            tqdm.write(self.format(record), file=sys.stderr)
            sys.stderr.flush()


@contextmanager
def _logging_to_standard_error() -> Iterator[None]:
    """Return a context in which the project's log records of INFO and above are lines of standard error."""
    handler, loggers = _LogLines(), [logging.getLogger(package) for package in LOGGED_PACKAGES]
    for logger in loggers:
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def run(main: Callable[[Sequence[str]], None]) -> NoReturn:
    """Call `main` with the command line's arguments and exit: 0 done, 2 a mistake or a failing disk, 130 Ctrl-C.

    An error is one line of standard error; with MLM_TRACEBACK=1 its traceback, causes included, comes before it.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # letters that the terminal lacks are printed as escapes
    try:
        with _logging_to_standard_error():
            main(sys.argv[1:])
        if sys.stdout is not None:  # it is None if the command was started with a closed output
            sys.stdout.flush()
    except UserError as error:
        _fail(str(error))
    except BrokenPipeError:  # the reader closed the pipe; Python's own flush at exit must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
    except (MemoryError, RuntimeError) as error:
        if not any(sign in str(error) for sign in ("allocate memory", "out of memory", "not enough memory")):
            raise
        _fail("not enough memory: lower the rows or examples of a micro-batch, the length of rows, or the model's size")
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(0)


def _fail(message: str) -> NoReturn:
    """Print the error that is being handled as one line, and exit."""
    if os.environ.get(TRACEBACK) == "1":
        traceback.print_exc()
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(EXIT_MISTAKE)
