"""Kill a sweep at random moments, start it again each time, and compare its table with that of an undisturbed one.

    python -m tests.sweep_torture --kills 20
    python -m tests.sweep_torture --kills 20 --launcher ray
    python -m tests.sweep_torture --kills 20 --strategy halving      or optuna

Each kill is a SIGKILL of the sweep, of one of its trials or, by Ray, of the head, the node or a worker of Ray. The
kinds take turns, so that all of them are killed. No finished trial may be lost, changed or repeated, and as many kills
as were asked for must have come before the end.
"""

import argparse
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.mlm.runs import TINY
from tests.mlm.sweeps.samples import csv_of
from tests.processes import descendants
from tests.tokenizer.samples import prose, write_lines

SEARCH = {"model.encoder.activation": ["relu", "swish", "gelu"], "optim.lr": ["1e-3", "3e-3"]}
STRATEGIES: dict[str, dict[str, object]] = {
    "grid": {"search": SEARCH, "seeds": [0, 1]},
    "halving": {"search": SEARCH, "seeds": [0, 1], "halving": {"steps": [20]}},
    "optuna": {
        "search": {**SEARCH, "optim.lr": {"low": 1e-4, "high": 1e-2, "log": True}},
        "sampler": {"kind": "optuna", "arms": 12, "at_once": 2},
    },
}
"""The settings of sweeps of twelve trials."""
KINDS = {
    "local": {"sweep": r"mlm\.sweep", "trial": r"mlm\.pretrain"},
    "ray": {
        "sweep": r"mlm\.sweep",
        "trial": r"mlm\.pretrain",
        "head": "gcs_server",
        "node": "raylet",
        "worker": "ray::",
    },
}
"""Patterns of the command lines of a sweep's processes."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.sweep_torture", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--launcher", choices=["local", "ray"], default="local")
    parser.add_argument("--strategy", choices=list(STRATEGIES), default="grid")
    parser.add_argument("--seconds", type=float, default=10, help="longest time between a start and its kill")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    choose = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        write_lines(home / "corpus.txt", prose(300))
        start(home, "undisturbed", "local", options.strategy).wait()
        kinds = KINDS[options.launcher]
        killed, finished = dict.fromkeys(kinds, 0), dict[Path, bytes]()
        for kind in itertools.cycle(kinds):
            sweep = start(home, "killed", options.launcher, options.strategy)
            while sweep.poll() is None and not (victims := those_of(sweep.pid, kinds[kind])):
                time.sleep(0.05)
            time.sleep(choose.uniform(0.0, options.seconds))
            victims = those_of(sweep.pid, kinds[kind])
            if sweep.poll() is not None:
                break
            if victims:
                os.kill(choose.choice(victims), signal.SIGKILL)
                killed[kind] += 1
                print(f"kill {sum(killed.values())}: {kind}", flush=True)
            if kind != "sweep":
                time.sleep(choose.uniform(0.0, options.seconds))
                sweep.kill()
            sweep.wait()
            finished |= results(home)
            if sum(killed.values()) == options.kills:
                break
        code = start(home, "killed", options.launcher, options.strategy).wait()
        found = results(home)
        kept = all(found.get(path) == content for path, content in finished.items())
        numbers = Counter(path.parent.name.rpartition("-")[2] for path in found)
        once = max(numbers.values(), default=0) == 1
        same = csv_of(home / "sweeps" / "killed") == csv_of(home / "sweeps" / "undisturbed")
        print(
            f"{options.strategy}, killed {killed}: exit code {code}, the table is {'the same' if same else 'ANOTHER'},"
            f" {len(finished)} trials had finished before the last start and were {'kept' if kept else 'LOST'}, and"
            f" {'none' if once else 'ONE'} ran twice"
        )
        sys.exit(0 if same and kept and once and not code and sum(killed.values()) == options.kills else 1)


def results(home: Path) -> dict[Path, bytes]:
    """Return the results of the trials that have ended."""
    return {path: path.read_bytes() for path in (home / "sweeps" / "killed").glob("*/results.json")}


def start(home: Path, name: str, launcher: str, strategy: str) -> "subprocess.Popen[bytes]":
    """Start a sweep of twelve trials, or start it again."""
    base = [*TINY, "train.budget.steps=40", "tracking=[]"]
    values = {"name": name, "runs": "sweeps", "base": base, "cores": 1, **STRATEGIES[strategy]}
    (home / f"{name}.yaml").write_text(json.dumps({**values, "trials_at_once": 2, "launcher": launcher}))
    words = [sys.executable, "-m", "mlm.sweep", f"{name}.yaml"]
    return subprocess.Popen(
        words, cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def those_of(pid: int, pattern: str) -> list[int]:
    """Return the sweep's process and those that it has started, as far as their command lines match."""
    family = {pid: "mlm.sweep"} | descendants(pid)
    return [one for one, command in family.items() if re.search(pattern, command)]


if __name__ == "__main__":
    main()
