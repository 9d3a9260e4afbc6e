"""Small pretraining jobs of several processes, as users run them, and what they leave behind."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.launch import finish, torchrun

STEPS = 40
RECIPE = f"""
name: job
text:
  source:
    kind: files
    paths: text.txt
  heldout_share: 0.1
vocabulary:
  size: 300
data:
  row_length: 32
model:
  encoder:
    width: 16
    heads: 2
    feedforward_width: 32
    layers: 2
train:
  batch_rows: 6
  budget:
    steps: {STEPS}
  intervals:
    log_steps: 1
    evaluate_steps: 20
    checkpoint_steps: 10
  precision: float32
evaluation:
  words: 0
"""


def start(home: Path, processes: int, name: str, *words: str, **options: str) -> "subprocess.Popen[str]":
    return torchrun(processes, "mlm.pretrain", "recipe.yaml", f"name={name}", *words, folder=home, **options)


def run_of(home: Path, name: str) -> Path:
    (path,) = home.glob(f"runs/*-{name}")
    return path


def records(run: Path, side: str = "train") -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["side"] == side]


def weights(run: Path) -> str:
    sha256: str = json.loads((run / "results.json").read_text())["weights_sha256"]
    return sha256


def assert_equal(run: Path, other: Path) -> None:
    """Assert that a run made every step once, with the losses of another run that rounds differently."""
    assert [record["step"] for record in records(run)] == list(range(1, STEPS + 1))
    for side in ("train", "heldout"):
        expected = [record["loss"] for record in records(other, side)]
        assert [record["loss"] for record in records(run, side)] == pytest.approx(expected, rel=1e-4)


def wait_for_step(home: Path, name: str, step: int, process: "subprocess.Popen[str]") -> None:
    while process.poll() is None:
        found = list(home.glob(f"runs/*-{name}/metrics.jsonl"))
        if found and f'"step": {step},' in found[0].read_text():
            return
        time.sleep(0.02)
    raise AssertionError(finish(process))


def ranks(process: "subprocess.Popen[str]") -> Iterator[int]:
    """Yield the process ids of a job's ranks, in order."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True)
    by_rank = {}
    for pid in map(int, found.stdout.split()):
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        by_rank.update({int(line[5:]): pid for line in environment if line.startswith(b"RANK=")})
    yield from (by_rank[rank] for rank in sorted(by_rank))
