"""Ask a command for the configurations that lists of arguments give, by its own `--print-config`, all in one process.

    python -m mlm.sweeps.check mlm.pretrain

reads a JSON list of arguments a line from standard input, and answers each with {"error": ...}, or {} if there is none.
"""

import contextlib
import importlib
import io
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import get_args

from configs import UserError
from mlm.sweeps.config import CommandName


def check(command: CommandName, calls: Sequence[Sequence[str]]) -> list[str | None]:
    """Return the error of each list of arguments, or None, from a process of the command's own."""
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name, command],
        input="".join(f"{json.dumps(call)}\n" for call in calls),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise UserError(f"{command} cannot be started: {(done.stderr.splitlines() or ['no reason given'])[-1]}")
    return [json.loads(line).get("error") for line in done.stdout.splitlines()]


def _answer() -> None:
    assert sys.argv[1] in get_args(CommandName)
    main = importlib.import_module(sys.argv[1]).main
    for line in sys.stdin:
        answer = {}
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                main([*json.loads(line), "--print-config"])
        except UserError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _answer()
