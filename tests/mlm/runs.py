"""Pretraining runs of tiny encoders, as commands and as functions."""

import json
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from configs import command, read
from mlm.config import PretrainConfig
from mlm.experiment import PretrainRun
from tests.processes import call

TINY = (
    "text.source.kind=files",
    "text.source.paths=corpus.txt",
    "text.heldout_share=0.1",
    "vocabulary.size=300",
    "data.row_length=64",
    "evaluation.window_bytes=40",
    "evaluation.words=20",
    "model.encoder.width=32",
    "model.encoder.heads=2",
    "model.encoder.feedforward_width=64",
    "model.encoder.layers=2",
    "train.batch_rows=8",
    "train.intervals.log_steps=10",
    "train.intervals.evaluate_steps=10",
    "train.intervals.checkpoint_steps=10",
)
SETTINGS = (*TINY, "train.budget.steps=20", "train.precision=float32")


def write_corpus(path: Path) -> None:
    """Write sentences in which what follows depends on more than the word before."""
    chance = random.Random(7)
    sounds = {"cat": "meows", "dog": "barks", "bird": "sings", "horse": "neighs"}
    lines = []
    for _ in range(1500):
        animal, place, count = chance.choice(list(sounds)), chance.choice(["barn", "house"]), chance.randrange(100)
        lines.append(f"In {place} number {count} the {animal} sleeps, and when it wakes the {animal} {sounds[animal]}.")
    path.write_text("\n".join(lines), encoding="utf-8")


def run(
    folder: Path, *arguments: str | Path, module: str = "mlm.pretrain", text: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run one of the project's commands in `folder`, in this process."""
    return call(folder, module, *arguments, text=text)


def pretrain(folder: Path, *arguments: str, call: Callable[..., subprocess.CompletedProcess[str]] = call) -> Path:
    """Pretrain a tiny encoder and return the run's directory."""
    before = set((folder / "runs").glob("*-*"))
    done = call(folder, "mlm.pretrain", *TINY, *arguments)
    assert done.returncode == 0, done.stderr
    (path,) = set((folder / "runs").glob("*-*")) - before
    return path


def mistake(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one line that a mistake got."""
    assert done.returncode == command.EXIT_MISTAKE, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


def results(path: Path) -> dict[str, Any]:
    """Read a run's results."""
    values: dict[str, Any] = json.loads((path / "results.json").read_text())
    return values


def records(path: Path) -> list[dict[str, Any]]:
    """Read a run's metrics."""
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def heldout_curve(path: Path) -> list[tuple[int, float]]:
    """Return step and loss of every held-out evaluation."""
    return [(record["step"], record["loss"]) for record in records(path) if record["side"] == "heldout"]


def config_in(home: Path, *overrides: str) -> PretrainConfig:
    """Return the settings of a tiny run of twenty steps on the corpus in a folder."""
    paths = (f"text.source.paths={home / 'corpus.txt'}", f"runs={home / 'runs'}")
    return read(PretrainConfig, None, [*SETTINGS, *paths, *overrides])


def hashed(run: PretrainRun) -> str:
    """Return the hash of a finished run's weights."""
    assert run.results is not None
    sha256: str = run.results["weights_sha256"]
    return sha256
