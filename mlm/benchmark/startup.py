"""The cases of long runs: start-up, resuming, and saving."""

import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
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
from mlm.experiment import pretrain
from mlm.tracking.run_directory import METRICS, newest_records, truncate_records
from mlm.training.budget import TrainingProgress

POLL_SECONDS = 0.01
YOUNG_STEP = 10
EVALUATE_STEPS = 250
INTERVALS = f"train.intervals={{log_steps: 1, checkpoint_steps: {NEVER}, evaluate_steps: {NEVER}}}"


def start_up(bench: Bench, name: str) -> list[Case]:
    """Run `mlm.pretrain` to the end of its first step, beside `import torch` alone."""

    def ours() -> float:
        with tempfile.TemporaryDirectory(dir=bench.output) as folder:
            settings = (*bench.overrides, f"runs={_with_cache(bench, folder)}", "train.intervals.log_steps=1")
            return seconds_until(lambda: any(map(_steps, Path(folder).glob("*"))), "-m", "mlm.pretrain", *settings)

    def theirs() -> float:
        return seconds_until(lambda: False, "-c", "import torch")

    counted = "from the command to the log of the first step, with cached shards; theirs: to the end of the import"
    return [Case.of(name, "s", counted, *alternate(ours, theirs, bench.scale.repeats))]


def seconds_until(done: Callable[[], bool], *arguments: str) -> float:
    """Run Python until `done` or its own end, and return the seconds; a failure of it is a UserError."""
    with tempfile.TemporaryFile("w+") as errors:
        began = time.perf_counter()
        with subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=errors) as process:
            try:
                while not done() and process.poll() is None:
                    time.sleep(POLL_SECONDS)
                seconds = time.perf_counter() - began
            finally:
                process.kill()
        errors.seek(0)
        if process.returncode > 0:
            raise UserError(f"python {' '.join(arguments)} failed: {errors.read().strip()}")
    return seconds


def _with_cache(bench: Bench, runs: str) -> Path:
    """Give a folder of runs the benchmark's shards."""
    (Path(runs) / "cache").symlink_to(bench.corpus.shards[0].path.parent.resolve())
    return Path(runs)


def _steps(run: Path) -> int:
    """Return the number of steps that a run has logged."""
    steps: int = newest_records(run / METRICS).get("train", {"step": 0})["step"]
    return steps


def resume(bench: Bench, name: str) -> list[Case]:
    """Resume a run at its tenth step and at a very late one, from the command to the end of the next step."""
    with tempfile.TemporaryDirectory(dir=bench.output) as folder:
        recipe = read(PretrainConfig, None, (*bench.overrides, f"runs={_with_cache(bench, folder)}", INTERVALS))
        steps = itertools.count(1)
        early = pretrain(recipe, stop=lambda: int(next(steps) >= YOUNG_STEP)).path
        late = _after_many_steps(bench, early)
        seconds = alternate(lambda: _resumed(late), lambda: _resumed(early), bench.scale.repeats)
    resumed = f"ours resumes at step {bench.scale.old_step:,}; theirs is ours as well, at step {YOUNG_STEP}"
    counted = f"from the command to the log of the next step: {resumed}"
    return [Case.of(name, "s", counted, *seconds)]


def _resumed(run: Path) -> float:
    step = read_manifest(checkpoint.newest(run)).step
    truncate_records(run / METRICS, step)  # Drop the records of the turn before.
    return seconds_until(lambda: _steps(run) > step, "-m", "mlm.pretrain", "--resume", str(run))


def _after_many_steps(bench: Bench, run: Path) -> Path:
    """Return a copy of a run with the checkpoint and the records that it would have after very many steps."""
    old, made = Path(shutil.copytree(run, run.with_name(run.name + "-old"))), build(bench.recipe, bench.world)
    young = checkpoint.load_training(checkpoint.newest(run), made.model, made.optimizer)
    newest, times = newest_records(run / METRICS), bench.scale.old_step // young.step
    progress = TrainingProgress(bench.scale.old_step, young.tokens * times, young.seconds * times)
    recipe = read(PretrainConfig, old / checkpoint.CONFIG)
    writer = CheckpointWriter(old, recipe, bench.corpus.tokenizer_path, bench.world, young)
    writer.checkpoint(progress, made.model, made.optimizer)
    writer.ended(progress)
    with (old / METRICS).open("w", encoding="utf-8") as file:
        for step in range(1, bench.scale.old_step + 1):
            sides = ("train",) if step % EVALUATE_STEPS else ("heldout", "train")
            file.writelines(json.dumps(newest[side] | {"step": step}) + "\n" for side in sides)
    return old


def saving(bench: Bench, name: str) -> list[Case]:
    """Save checkpoints: the time that training waits, beside the time until the checkpoint is on the disk."""
    made, steps = build(bench.recipe, bench.world), itertools.count(1)
    for parameter in made.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    made.optimizer.update(1.0, torch.tensor(True, device=bench.world.device))  # gives the optimizer a state

    def save(*, wait: bool) -> float:
        progress, began = TrainingProgress(next(steps)), time.perf_counter()
        writer.checkpoint(progress, made.model, made.optimizer)
        if wait:
            writer.wait()
        seconds = time.perf_counter() - began
        writer.ended(progress)
        return seconds

    with tempfile.TemporaryDirectory(dir=bench.output) as folder:
        path, tokenizer_path = Path(folder), bench.corpus.tokenizer_path
        writer = CheckpointWriter(path, bench.recipe, tokenizer_path, bench.world, TrainingProgress())
        save(wait=True)  # The first save creates folders and loads libraries.
        seconds = alternate(partial(save, wait=False), partial(save, wait=True), bench.scale.repeats)
    parameters = sum(parameter.numel() for parameter in made.model.parameters())
    counted = f"training waits for a checkpoint of {parameters:,} parameters; theirs: until it is on the disk"
    return [Case.of(name, "s", counted, *seconds)]
