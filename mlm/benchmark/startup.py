"""The cases of long runs: start-up, resuming, and saving."""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from configs import UserError, read
from mlm.benchmark.frame import NEVER
from mlm.benchmark.measure import Case, alternate
from mlm.benchmark.speed import Bench
from mlm.build import build
from mlm.checkpoint import checkpoint
from mlm.checkpoint.manifest import read_manifest
from mlm.checkpoint.writer import CheckpointWriter
from mlm.config import PretrainConfig
from mlm.tracking.run_directory import METRICS, newest_records, truncate_records
from mlm.training.budget import TrainingProgress

POLL_SECONDS = 0.01
YOUNG_STEP = 10
EVALUATE_STEPS = 250


def start_up(bench: Bench, name: str) -> list[Case]:
    """Run `mlm.pretrain` to the end of its first step, beside `import torch` alone."""

    def ours() -> float:
        with tempfile.TemporaryDirectory(dir=bench.output) as folder:
            settings = (*bench.overrides, f"runs={_with_cache(bench, folder)}", "train.intervals.log_steps=1")
            return seconds_until(lambda: _has_trained(Path(folder)), "-m", "mlm.pretrain", *settings)

    def theirs() -> float:
        return seconds_until(lambda: False, "-c", "import torch")

    counted = "from the command to the log of the first step, with cached shards; theirs: to the end of the import"
    return [Case.of(name, "s", counted, *alternate(ours, theirs, bench.scale.repeats))]


def seconds_until(done: Callable[[], bool], *arguments: str) -> float:
    """Run Python until `done` or its own end, and return the seconds; a failure of it is a UserError."""
    with tempfile.TemporaryFile("w+") as errors:
        began = time.perf_counter()
        process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=errors)
        try:
            while not done() and process.poll() is None:
                time.sleep(POLL_SECONDS)
            seconds = time.perf_counter() - began
        finally:
            process.kill()
            failed = process.wait() > 0
        errors.seek(0)
        if failed:
            raise UserError(f"python {' '.join(arguments)} failed: {errors.read().strip()}")
    return seconds


def _with_cache(bench: Bench, runs: str) -> Path:
    """Give a folder of runs the benchmark's shards."""
    (Path(runs) / "cache").symlink_to(bench.corpus.folders[0].parent.resolve())
    return Path(runs)


def _has_trained(runs: Path) -> bool:
    return any('"side": "train"' in path.read_text() for path in runs.glob(f"*/{METRICS}"))


def resume(bench: Bench, name: str) -> list[Case]:
    """Resume a run at its tenth step and at a very late one, from the command to the end of the next step."""
    with tempfile.TemporaryDirectory(dir=bench.output) as folder:
        early = _stopped(bench, _with_cache(bench, folder))
        late = _after_many_steps(bench, early)
        seconds = alternate(lambda: _resumed(late), lambda: _resumed(early), bench.scale.repeats)
    counted = (
        f"from the command to the log of the next step: ours resumes at step {bench.scale.old_step:,};"
        f" theirs is ours as well, at about step {YOUNG_STEP}"
    )
    return [Case.of(name, "s", counted, *seconds)]


def _resumed(run: Path) -> float:
    step = read_manifest(checkpoint.newest(run)).step
    truncate_records(run / METRICS, step)  # Drop the records of the turn before.
    resumed = "-m", "mlm.pretrain", "--resume", str(run)
    return seconds_until(lambda: newest_records(run / METRICS)["train"]["step"] > step, *resumed)


def _stopped(bench: Bench, runs: Path) -> Path:
    """Return a run that was saved at about step ten, and killed at a later step."""
    intervals = f"train.intervals={{log_steps: 1, checkpoint_steps: {YOUNG_STEP}, evaluate_steps: {NEVER}}}"
    saved = f"*/checkpoints/{checkpoint.NAMES}/manifest.json"
    settings = (*bench.overrides, f"runs={runs}", intervals)
    seconds_until(lambda: any(runs.glob(saved)), "-m", "mlm.pretrain", *settings)
    return next(runs.glob(saved)).parents[2]


def _after_many_steps(bench: Bench, run: Path) -> Path:
    """Return a copy of a run with the checkpoint and the records that it would have after very many steps."""
    old, made = Path(shutil.copytree(run, run.with_name(run.name + "-old"))), build(bench.recipe, bench.world)
    young = checkpoint.load_training(checkpoint.newest(run), made.model, made.optimizer)
    times = bench.scale.old_step // young.step
    progress = TrainingProgress(bench.scale.old_step, young.tokens * times, young.seconds * times)
    recipe = read(PretrainConfig, old / checkpoint.CONFIG)
    writer = CheckpointWriter(old, recipe, bench.corpus.tokenizer_path, bench.world, young)
    writer.checkpoint(progress, made.model, made.optimizer)
    writer.ended(progress)
    newest = newest_records(run / METRICS)
    with (old / METRICS).open("w", encoding="utf-8") as file:
        for step in range(1, bench.scale.old_step + 1):
            if step % EVALUATE_STEPS == 0:
                file.write(json.dumps(newest["heldout"] | {"step": step}) + "\n")
            file.write(json.dumps(newest["train"] | {"step": step}) + "\n")
    return old


def saving(bench: Bench, name: str) -> list[Case]:
    """Save checkpoints: the time that training waits, beside the time until the checkpoint is on the disk."""
    made, progress = build(bench.recipe, bench.world), TrainingProgress()
    for parameter in made.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    made.optimizer.update(1.0, torch.tensor(True, device=bench.world.device))  # gives the optimizer a state

    def save(*, wait: bool) -> float:
        nonlocal progress
        progress = TrainingProgress(progress.step + 1)
        began = time.perf_counter()
        writer.checkpoint(progress, made.model, made.optimizer)
        if wait:
            writer.wait()
        seconds = time.perf_counter() - began
        writer.ended(progress)
        return seconds

    with tempfile.TemporaryDirectory(dir=bench.output) as folder:
        writer = CheckpointWriter(Path(folder), bench.recipe, bench.corpus.tokenizer_path, bench.world, progress)
        save(wait=True)  # The first save creates folders and loads libraries.
        waits, writes = alternate(lambda: save(wait=False), lambda: save(wait=True), bench.scale.repeats)
    parameters = sum(parameter.numel() for parameter in made.model.parameters())
    counted = f"training waits for a checkpoint of {parameters:,} parameters; theirs: until it is on the disk"
    return [Case.of(name, "s", counted, waits, writes)]
