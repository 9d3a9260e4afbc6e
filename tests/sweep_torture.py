"""Kill a sweep at random moments, start it again each time, and compare its table with that of an undisturbed one.

    python -m tests.sweep_torture --kills 20
    python -m tests.sweep_torture --kills 20 --launcher ray

Each kill is a SIGKILL of the sweep, of one of its trials or, by Ray, of one of Ray's own processes.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.mlm.sweeps.samples import csv_of
from tests.mlm.test_pretrain import TINY
from tests.tokenizer.samples import prose, write_lines

SEARCH = {"model.encoder.activation": ["relu", "swish", "gelu"], "optim.lr": ["1e-3", "3e-3"]}
MOST_SECONDS = 20.0
"""Longest time between the start of a sweep and its kill."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.sweep_torture", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--launcher", choices=["local", "ray"], default="local")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    choose = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        write_lines(home / "corpus.txt", prose(300))
        start(home, "undisturbed", "local").wait()
        killed = dict.fromkeys(("sweep", "trial", "ray"), 0)
        while sum(killed.values()) < options.kills:
            sweep = start(home, "killed", options.launcher)
            until = time.monotonic() + choose.uniform(1.0, MOST_SECONDS)
            while sweep.poll() is None and time.monotonic() < until:
                time.sleep(0.05)
            if sweep.poll() is not None:
                break
            victims = {"sweep": [sweep.pid], "trial": pids(f"mlm.pretrain.*{home}"), "ray": []}
            if options.launcher == "ray":
                victims["ray"] = [*pids("ray::"), *pids("gcs_server"), *pids("raylet")]
            kind = choose.choice([name for name, found in victims.items() if found])
            os.kill(choose.choice(victims[kind]), signal.SIGKILL)
            killed[kind] += 1
            print(f"kill {sum(killed.values())}: {kind}", flush=True)
            if kind != "sweep":
                time.sleep(choose.uniform(0.0, MOST_SECONDS))
                sweep.kill()
            sweep.wait()
        code = start(home, "killed", options.launcher).wait()
        same = csv_of(home / "sweeps" / "killed") == csv_of(home / "sweeps" / "undisturbed")
        print(f"killed {killed}: exit code {code}, the table is {'the same' if same else 'ANOTHER'}")
        sys.exit(0 if same and not code else 1)


def start(home: Path, name: str, launcher: str) -> "subprocess.Popen[bytes]":
    """Start a sweep of twelve trials, or start it again."""
    base = [*TINY, "train.budget.steps=40", "tracking=[]"]
    values = {"name": name, "runs": "sweeps", "base": base, "search": SEARCH, "seeds": [0, 1], "cores": 1}
    (home / f"{name}.yaml").write_text(json.dumps({**values, "trials_at_once": 2, "launcher": launcher}))
    words = [sys.executable, "-m", "mlm.sweep", f"{name}.yaml"]
    return subprocess.Popen(
        words, cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def pids(pattern: str) -> list[int]:
    """Return the processes whose command line matches."""
    found = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True, check=False).stdout.split()
    return [int(pid) for pid in found if int(pid) != os.getpid()]


if __name__ == "__main__":
    main()
