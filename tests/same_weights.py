"""Train the same runs by two checkouts of this project, in turns, and compare the weights hash for hash.

    python -m tests.same_weights ../other-checkout

A change of structure must leave every bit of the weights as it was. Each run trains for 200 steps: the quick start, the
same with Schedule-Free AdamW, with Muon and with dropout, and a classifier fine-tuned on the quick start's encoder.
Both sides compute in float32 on this machine, so nothing is compared across processors. The other checkout needs no
install; its code is found by PYTHONPATH.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from configs import streams

ROOT = Path(__file__).parents[1]
BUDGET = ("train.budget.kind=steps", "train.budget.steps=200", "train.precision=float32", "evaluation.words=0")
PRETRAINING = {
    "quickstart": (),
    "schedule-free": ("optim.kind=schedule_free", "schedule.kind=constant"),
    "muon": ("optim.kind=muon",),
    "dropout": ("model.encoder.dropout=0.1",),
}
"""Overrides of each pretraining run, by its name."""
FINE_TUNING = (
    *("name=finetuned", "train.seeds=[0]", "train.epochs=0.5", "train.evaluations_per_epoch=2"),
    "train.precision=float32",
)
"""Half an epoch of bigram shift: about 200 steps."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.same_weights", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("other", type=Path, help="the checkout to compare with")
    other = parser.parse_args().other.resolve()
    different = 0
    with tempfile.TemporaryDirectory() as folder:
        homes = {root: Path(folder) / str(number) for number, root in enumerate((ROOT, other))}
        for home in homes.values():
            home.mkdir()
        for name, overrides in PRETRAINING.items():
            words = ("mlm.pretrain", f"name={name}", *BUDGET, *overrides)
            different += compare(name, [_pretrained(root, home, name, words) for root, home in homes.items()])
        different += compare("fine-tuning", [_finetuned(root, home) for root, home in homes.items()])
    sys.exit(1 if different else 0)


def compare(name: str, hashes: list[str]) -> bool:
    """Print both sides' hashes, and tell whether they differ."""
    here, there = hashes
    print(f"{name:16}{here[:16]} {there[:16]} {'equal' if here == there else 'DIFFERENT'}", flush=True)
    return here != there


def _pretrained(root: Path, home: Path, name: str, words: tuple[str, ...]) -> str:
    _run(root, home, *words)
    (run,) = home.glob(f"runs/*-{name}")
    sha256: str = json.loads((run / "results.json").read_text())["weights_sha256"]
    return sha256


def _finetuned(root: Path, home: Path) -> str:
    (encoder,) = home.glob("runs/*-quickstart")
    _run(root, home, "finetune.cnn_head", f"encoder.run={encoder}", *FINE_TUNING)
    (run,) = home.glob("runs/*-finetuned")
    manifest = json.loads((run / "model" / "manifest.json").read_text())
    sha256: str = manifest["files"]["weights.safetensors"]["sha256"]
    return sha256


def _run(root: Path, home: Path, *words: str) -> None:
    command = [sys.executable, "-m", *words]
    done = subprocess.run(
        command, cwd=home, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} of {root} exits with {done.returncode}:\n{done.stderr}")


if __name__ == "__main__":
    streams.guard()  # the exit code counts, whoever reads the lines
    main()
