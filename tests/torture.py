"""Kill a real pretraining at random moments, damage its newest checkpoint now and then, and go on with it.

Every trial is a run of its own that is killed at least once, by SIGKILL, while it starts, trains or saves. In the end
its weights must be those of a run that nobody disturbed, to the last bit; and whatever checkpoint was there when it was
killed must be whole. `python -m tests.torture --kills 100` does a hundred of them.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from configs import UserError, streams
from mlm.checkpoint import checkpoint
from mlm.checkpoint.manifest import read_manifest, verify

ROOT = Path(__file__).parents[1]
SETTINGS = """
name: torture
text: {source: {kind: files, paths: text.txt}, heldout_share: 0.1}
vocabulary: {size: 300}
data: {row_length: 32}
model: {encoder: {width: 16, heads: 2, feedforward_width: 32, layers: 2, dropout: 0.1}}
train:
  batch_rows: 8
  budget: {steps: 120}
  intervals: {log_steps: 5, evaluate_steps: 10, checkpoint_steps: 2}
  keep: {newest: 4}
evaluation: {words: 0}
"""
OPTIMIZERS = ("adamw", "schedule_free", "muon")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--kills", type=int, default=10, help="number of trials, each with a kill or more")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and of the damage")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "text.txt").write_text("".join(_sentence(rng) for _ in range(2000)), encoding="utf-8")
        (home / "recipe.yaml").write_text(SETTINGS, encoding="utf-8")
        expected = dict[str, str]()
        equal = sum(_trial(home, number, expected, rng) for number in range(1, options.kills + 1))
    print(f"{equal} of {options.kills} killed runs ended with the weights of an undisturbed one")
    sys.exit(0 if equal == options.kills else 1)


def _sentence(rng: random.Random) -> str:
    words = ("the", "a", "cat", "dog", "sees", "hears", "old", "red", "house", "river", "and", "under")
    return " ".join(rng.choice(words) for _ in range(rng.randint(4, 12))).capitalize() + ".\n"


def _start(home: Path, *words: str) -> "subprocess.Popen[bytes]":
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mlm.pretrain", *words]
    return subprocess.Popen(command, cwd=home, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _run_of(home: Path, name: str) -> Path | None:
    found = sorted(home.glob(f"runs/*-{name}"))
    return found[-1] if found else None


def _fresh(name: str, optimizer: str) -> list[str]:
    return ["recipe.yaml", f"name={name}", f"optim.kind={optimizer}"]


def _undisturbed(home: Path, optimizer: str) -> Path:
    if _start(home, *_fresh(optimizer, optimizer)).wait() != 0:
        sys.exit("an undisturbed run failed")
    run = _run_of(home, optimizer)
    assert run is not None
    return run


def _weights(run: Path) -> str:
    sha256: str = json.loads((run / "results.json").read_text())["weights_sha256"]
    return sha256


def _trial(home: Path, number: int, expected: dict[str, str], rng: random.Random) -> bool:
    """Kill a run once to three times, go on with it to its end, and compare.

    `expected` holds the weights of undisturbed runs by their optimizer, as far as one was needed.
    """
    name, optimizer = f"trial{number}", rng.choice(OPTIMIZERS)
    if optimizer not in expected:
        expected[optimizer] = _weights(_undisturbed(home, optimizer))
    kills, damages = rng.randint(1, 3), list[Damage]()
    for _ in range(kills):
        # Killed while it starts, a run has not removed yet what was damaged before.
        spoilt = {damage.folder for damage in damages}
        seen = [folder for folder in _killed(home, name, optimizer, rng) if folder not in spoilt]
        run = _run_of(home, name)
        if run is None:
            continue
        spoilt = {damage.folder for damage in damages if damage.is_still_there()}
        whole = [folder for folder in checkpoint.completed(run) if folder not in spoilt]
        for folder in whole:
            verify(folder, tuple(read_manifest(folder).files))
        if seen and (not whole or whole[-1] < seen[-1]):
            sys.exit(f"a checkpoint that had been saved is lost: {seen[-1]}")
        if len(whole) > 1 and rng.random() < 0.3:
            damages.append(_damage(whole[-1], rng))
    if _goes_on(home, name, optimizer).wait() != 0:
        print(f"trial {number}: does not go on")
        return False
    run = _run_of(home, name)
    assert run is not None
    recorded = [step for step in range(1, 121) if step % 2 == 0 or step % 5 == 0]
    equal = _weights(run) == expected[optimizer] and _steps(run) == recorded
    print(
        f"trial {number}: {optimizer}, {kills} kills{''.join(f', {damage}' for damage in damages)}:"
        f" {'equal' if equal else 'NOT EQUAL'}",
        flush=True,
    )
    shutil.rmtree(run)
    return equal


def _goes_on(home: Path, name: str, optimizer: str) -> "subprocess.Popen[bytes]":
    """Go on with a run that has a checkpoint; start it anew where it was killed before it had one."""
    run = _run_of(home, name)
    if run is not None and checkpoint.completed(run):
        return _start(home, "--resume", str(run))
    if run is not None:
        shutil.rmtree(run)
    return _start(home, *_fresh(name, optimizer))


def _killed(home: Path, name: str, optimizer: str, rng: random.Random) -> list[Path]:
    """Start or go on, and kill at a random moment: while it starts, or soon after its first new record.

    Return the checkpoints that were there just before.
    """
    process = _goes_on(home, name, optimizer)
    if rng.random() < 0.2:
        time.sleep(rng.uniform(0, 4))
    else:
        before = _records(home, name)
        while _records(home, name) <= before and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 1.5))
    run = _run_of(home, name)
    seen = checkpoint.completed(run) if run else []
    process.send_signal(signal.SIGKILL)
    process.wait()
    return seen


def _records(home: Path, name: str) -> int:
    run = _run_of(home, name)
    path = run / "metrics.jsonl" if run else None
    return len(path.read_bytes().splitlines()) if path and path.exists() else 0


def _steps(run: Path) -> list[int]:
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [record["step"] for record in records if record["side"] == "train"]


@dataclass(frozen=True)
class Damage:
    """A change of a file of a checkpoint."""

    folder: Path
    """The checkpoint."""
    path: Path
    """The file."""
    kind: str
    left: bytes | None
    """The content of the file since then; None where it is gone."""

    def is_still_there(self) -> bool:
        """Tell whether the checkpoint is the damaged one, neither removed nor written anew."""
        return self.folder.is_dir() and (self.path.read_bytes() if self.path.exists() else None) == self.left

    def __str__(self) -> str:
        return f"{self.path.name} {self.kind}"


def _damage(folder: Path, rng: random.Random) -> Damage:
    """Truncate, change or remove a file of a checkpoint."""
    path = rng.choice(sorted(file for file in folder.rglob("*") if file.is_file()))
    content = bytearray(path.read_bytes())
    kind = rng.choice(("truncated", "bit flipped", "deleted"))
    if kind == "deleted":
        path.unlink()
    else:
        if kind == "truncated":
            del content[rng.randrange(len(content)) :]
        else:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
    damage = Damage(folder, path, kind, None if kind == "deleted" else bytes(content))
    try:
        verify(folder, tuple(read_manifest(folder).files))
    except UserError:
        return damage
    sys.exit(f"damage went unnoticed: {damage}")


if __name__ == "__main__":
    streams.guard()  # the exit code counts, whoever reads the lines
    main()
