"""The cases of the benchmark about long jobs: what saving costs, and resuming."""

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from configs import read
from mlm.benchmark.measure import Case, alternate
from mlm.benchmark.processes import seconds_until
from mlm.benchmark.speed import NEVER, Bench

if TYPE_CHECKING:
    from mlm.checkpoint.writer import CheckpointWriter

YOUNG_STEP = 10
EVALUATE_STEPS = 250


def saving(bench: Bench, name: str) -> list[Case]:
    """Save checkpoints: how long training waits, against how long it takes until one is on the disk."""
    import torch

    from mlm.build import build
    from mlm.training.budget import TrainingProgress

    made = build(bench.recipe, bench.world)
    for parameter in made.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    made.optimizer.update(1.0, torch.tensor(True, device=bench.world.device))  # so that it has a state to be saved
    parameters = sum(parameter.numel() for parameter in made.model.parameters())
    step = 0

    def save(*, wait: bool) -> float:
        nonlocal step
        step += 1
        began = time.perf_counter()
        saver.save(TrainingProgress(step=step), made.model, made.optimizer, None)
        if wait:
            saver.wait()
        seconds = time.perf_counter() - began
        saver.finish()
        return seconds

    with tempfile.TemporaryDirectory(dir=bench.output) as folder:
        saver = _saver(bench, Path(folder))
        save(wait=True)  # the first one makes folders and finds the libraries
        waits, writes = alternate(lambda: save(wait=False), lambda: save(wait=True), bench.scale.repeats)
    counted = f"training waits for a checkpoint of {parameters:,} parameters; theirs: until it is on the disk"
    return [Case.of(name, "s", counted, waits, writes)]


def _saver(bench: Bench, run: Path) -> "CheckpointWriter":
    from mlm.checkpoint.writer import CheckpointWriter
    from mlm.training.budget import TrainingProgress

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    return CheckpointWriter(run, bench.recipe, bench.corpus.tokenizer_path, bench.world, say, TrainingProgress())


def resume(bench: Bench, name: str) -> list[Case]:
    """Go on with a run at its tenth step and at a very late one, from the command to the end of the next step."""
    with tempfile.TemporaryDirectory(dir=bench.output) as folder:
        runs = Path(folder)
        (runs / "cache").symlink_to(bench.corpus.shards.path.parent.resolve())
        early = _stopped(bench, runs)
        late = _after_many_steps(bench, early)
        seconds = alternate(lambda: _resumed(late), lambda: _resumed(early), bench.scale.repeats)
    counted = (
        f"from the command to the record of the next step: ours from step {bench.scale.old_step:,}; theirs is ours as"
        " well, after some ten steps"
    )
    return [Case.of(name, "s", counted, *seconds)]


def _resumed(run: Path) -> float:
    from mlm.checkpoint import checkpoint
    from mlm.checkpoint.manifest import manifest_of
    from mlm.tracking.run_directory import METRICS, keep_records, newest_records

    step = manifest_of(checkpoint.newest(run)).step
    keep_records(run / METRICS, step)  # of the turn before
    return seconds_until(
        lambda: newest_records(run / METRICS)["train"]["step"] > step, "-m", "mlm.pretrain", "--resume", str(run)
    )


def _stopped(bench: Bench, runs: Path) -> Path:
    """Return a run that was saved after ten steps or a little more, and killed in a later one."""
    from mlm.checkpoint import checkpoint

    intervals = f"train.intervals={{log_steps: 1, checkpoint_steps: {YOUNG_STEP}, evaluate_steps: {NEVER}}}"
    saved = f"*/checkpoints/{checkpoint.NAMES}/manifest.json"
    settings = (*bench.overrides, f"runs={runs}", intervals)
    seconds_until(lambda: any(runs.glob(saved)), "-m", "mlm.pretrain", *settings)
    return next(runs.glob(saved)).parents[2]


def _after_many_steps(bench: Bench, run: Path) -> Path:
    """Return a copy of a run as it would be after very many steps, with the records of all of them."""
    from mlm.build import build
    from mlm.checkpoint import checkpoint
    from mlm.checkpoint.writer import CheckpointWriter
    from mlm.config import PretrainConfig
    from mlm.tracking.run_directory import METRICS, newest_records
    from mlm.training.budget import TrainingProgress

    old = Path(shutil.copytree(run, run.with_name(run.name + "-old")))
    made = build(bench.recipe, bench.world)
    young = checkpoint.load_training(checkpoint.newest(run), made.model, made.optimizer)
    times = bench.scale.old_step // young.step
    progress = TrainingProgress(bench.scale.old_step, young.tokens * times, young.seconds * times)
    recipe = read(PretrainConfig, old / checkpoint.RECIPE)
    saver = CheckpointWriter(old, recipe, bench.corpus.tokenizer_path, bench.world, print, young)
    saver.save(progress, made.model, made.optimizer, None)
    saver.finish()
    newest = newest_records(run / METRICS)
    with (old / METRICS).open("w", encoding="utf-8") as file:
        for step in range(1, bench.scale.old_step + 1):
            if step % EVALUATE_STEPS == 0:
                file.write(json.dumps(newest["heldout"] | {"step": step}) + "\n")
            file.write(json.dumps(newest["train"] | {"step": step}) + "\n")
    return old
