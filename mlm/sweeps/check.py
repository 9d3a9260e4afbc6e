"""Ask a command whether it takes lists of arguments, in a process of its own: mlm never imports finetune."""

import contextlib
import importlib
import io
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, get_args

from configs import UserError, dumped
from mlm.sweeps.config import CommandName


def check(command: CommandName, calls: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Return, for each list of arguments, all settings as `config`, or what is wrong as `error`."""
    done = subprocess.run(
        [sys.executable, "-c", f"from {__name__} import answer; answer()", command],
        input="".join(f"{json.dumps(call)}\n" for call in calls),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise UserError(f"{command} cannot be started: {(done.stderr.splitlines() or ['no reason given'])[-1]}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def answer() -> None:
    """Answer each list of arguments, a line of standard input, by what the command's `--print-config` says of it."""
    assert sys.argv[1] in get_args(CommandName)
    command = importlib.import_module(sys.argv[1]).main
    for line in sys.stdin:
        found: dict[str, Any]
        try:
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                command([*json.loads(line), "--print-config"])
            found = {"config": dumped(printed.getvalue())}
        except UserError as error:
            found = {"error": str(error)}
        print(json.dumps(found), flush=True)
