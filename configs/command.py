"""Run an entry point so that a user's mistake is one line and exit code 2, never a traceback."""

import argparse
import io
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from configs import UserError, recipes, streams

EXIT_MISTAKE = 2
EXIT_SIGNAL = 128
"""Added to the number of the signal that stopped a run, which is saved."""
EXIT_UNREAD = EXIT_SIGNAL + signal.SIGPIPE
"""Of a command whose result is its standard output, and whose reader has left."""
TRACEBACK = "MLM_TRACEBACK"
"""Environment variable that, set to 1, shows the traceback behind every one-line error."""
LOGGED_PACKAGES = ("configs", "tokenizer", "mlm", "finetune")

logger = logging.getLogger(__name__)


_MODULE = re.compile(rf"python -m ((?:{'|'.join(LOGGED_PACKAGES)})\.\w+)")


class Parser(argparse.ArgumentParser):
    """A parser of command lines that raises UserError for mistakes and accepts no abbreviated option.

    `prog` is `python -m MODULE`. If the command was started by its script, the help names the scripts instead.
    """

    def __init__(self, *, prog: str, **settings: Any) -> None:
        script = _scripts_in(prog)
        self.is_script = Path(sys.argv[0]).name == script
        settings |= {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}
        super().__init__(prog=script if self.is_script else prog, **settings)

    def error(self, message: str) -> NoReturn:
        """Raise a UserError instead of printing the usage."""
        raise UserError(f"{message}: see {self.prog} --help")

    def format_help(self) -> str:
        """Return the help, which names commands as the user does."""
        return _scripts_in(super().format_help()) if self.is_script else super().format_help()

    def print_help(self, file: object = None) -> None:
        """Show the help, which is a result."""
        show(self.format_help().rstrip("\n"))


def _scripts_in(text: str) -> str:
    """Return `text` with the name of the console script, as setup.cfg has it, in place of each `python -m MODULE`."""
    return _MODULE.sub(lambda found: re.sub(r"[._]", "-", found[1]), text)


def show(result: str) -> None:
    """Print a line, or several, of a result that is nowhere but on standard output; any other `print` is a message.

    If it cannot be written, the command ends: with 141 if its reader has left, and by an OSError if its disk is full.
    """
    print(result, flush=True)
    failure = streams.failure(sys.stdout)
    if isinstance(failure, ConnectionError):
        sys.exit(EXIT_UNREAD)
    if failure is not None:
        raise OSError(failure.errno, failure.strerror, "standard output")


def split(words: Sequence[str], task: recipes.Task) -> tuple[Path | None, list[str]]:
    """Separate the recipe among a command's words, one at most or a UserError is raised, from the overrides.

    A recipe is a YAML file, or else the name of one that comes with this project. A word with `=` is a file if there is
    one of this name.
    """
    files = [word for word in words if "=" not in word or os.path.isfile(word)]  # noqa: PTH113 - a long word is no error
    if len(files) > 1:
        raise UserError(f"at most one recipe, not {', '.join(files)}")
    return recipes.find(files[0], task) if files else None, [word for word in words if word not in files]


def lines() -> Iterator[str]:
    """Yield the lines of standard input that are not blank, without their ends and byte-order marks.

    Raise a UserError if it is closed, or is not text.
    """
    if sys.stdin is None or sys.stdin.closed:
        raise UserError("no text is given, and standard input is closed: give a text as an argument")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(newline=None)  # else a carriage return alone ends no line
    try:
        for line in sys.stdin:
            text = line.rstrip("\r\n").removeprefix("\ufeff")
            if text.strip():
                yield text
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not {error.encoding}: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise UserError(f"standard input cannot be read ({error.strerror}): give a text as an argument") from error


def answer_lines(answer: Callable[[str], None]) -> None:
    """Call `answer` with each line of standard input that is not blank; raise a UserError at the end if any was wrong.

    A line for which `answer` raises a UserError is reported, and the lines after it are still answered.
    """
    wrong = 0
    for line in lines():
        try:
            answer(line)
        except UserError as error:
            logger.warning("%s", error)
            wrong += 1
    if wrong:
        raise UserError(f"no answer to {wrong:,} of the lines of standard input, as said above: mend them")


class _LogLines(logging.Handler):
    """Writes each record as a line of standard error, without tearing a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


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
    """Call `main` with the command line's arguments and exit: 0 done, 2 a mistake or a failing disk, 128 + n signal n.

    An error is one line of standard error; with MLM_TRACEBACK=1 its traceback, causes included, comes before it.
    Messages that nobody reads are lost, and change neither the work nor the exit code.
    """
    streams.guard()
    os.environ["MPLBACKEND"] = "agg"  # pictures are files; a notebook hands on a backend that may not be installed
    try:
        with _logging_to_standard_error():
            main(sys.argv[1:])
    except UserError as error:
        _fail(str(error))
    except BrokenPipeError:
        sys.exit(EXIT_UNREAD)  # a pipe that was named as an output: messages raise none
    except OSError as error:
        _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
    except (MemoryError, RuntimeError) as error:
        signs = "allocate memory", "out of memory", "not enough memory"  # of torch, which raises RuntimeError
        if not isinstance(error, MemoryError) and not any(sign in str(error) for sign in signs):
            raise
        _fail("not enough memory: lower the rows or examples of a micro-batch, the length of rows, or the model's size")
    except KeyboardInterrupt as error:  # Python's own has no number
        _end_interrupted(error)
    except Exception as error:  # a library may wrap the interruption in an error of its own
        if not isinstance(error.__cause__ or error.__context__, KeyboardInterrupt):
            raise
        _end_interrupted(KeyboardInterrupt())
    sys.exit(0)


def _end_interrupted(error: KeyboardInterrupt) -> NoReturn:
    print("\ninterrupted", file=sys.stderr)
    sys.exit(EXIT_SIGNAL + (error.args[0] if error.args else signal.SIGINT))


def _fail(message: str) -> NoReturn:
    """Print the error that is being handled as one line, and exit."""
    if os.environ.get(TRACEBACK) == "1":
        traceback.print_exc()
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(EXIT_MISTAKE)
