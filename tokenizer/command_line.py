"""Turn the FILES and overrides of a command of this package into its configuration."""

import argparse
import os
import re
from collections.abc import Sequence
from typing import TypeVar

from configs import Config, UserError, check_text, command, help_text, read
from tokenizer.cleaning import TextConfig
from tokenizer.sources import Files

_OVERRIDE = re.compile(r"[a-z_]+(\.[a-z0-9_]+)+=.*", re.DOTALL)


class TextOptions(Config):
    """The options of a command that reads text."""

    text: TextConfig = TextConfig()
    """The source of the text and its cleaning."""


AnyHasText = TypeVar("AnyHasText", bound=TextOptions)


def parser(name: str, description: str, examples: str, model: type[TextOptions]) -> argparse.ArgumentParser:
    """Return a parser of FILES and overrides, with help for every option of `model`."""
    parser = command.Parser(
        prog=f"python -m {name}",
        description=description,
        epilog=f"examples:\n{examples}\noptions, each set by option=value:\n{help_text(model)}",
    )
    parser.add_argument(
        "files",
        nargs="*",
        metavar="FILE | option=value",
        help="text files or quoted glob patterns, or addresses of either, such as 's3://bucket/*.txt': "
        ".txt .jsonl .json .csv .tsv .parquet .xlsx, plain or .gz .xz .zst; default: the documentation of "
        "the installed Python. And options, as listed below",
    )
    return parser


def configuration(model: type[AnyHasText], arguments: Sequence[str], overrides: Sequence[str]) -> AnyHasText:
    """Return the configuration given by the command line's FILES and overrides; a UserError names a wrong one."""
    given = [word for word in arguments if _OVERRIDE.fullmatch(word) and not os.path.exists(word)]  # noqa: PTH110 - as in command.split
    files = tuple(argument for argument in arguments if argument not in given)
    config = read(model, None, [*(["text.source.kind=files"] if files else []), *overrides, *given])
    if not files:
        return config
    source = config.text.source
    if not isinstance(source, Files) or source.paths:
        raise UserError(f"both files ({files[0]}) and text.source are given: leave out one of them")
    check_text(files, "FILE")
    text = config.text.model_copy(update={"source": source.model_copy(update={"paths": files})})
    return config.model_copy(update={"text": text})
