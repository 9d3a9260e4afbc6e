"""A pretraining run at work: all that its recipe stands for, followed to the end of its plan."""

import math
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from configs import UserError, command
from mlm.build import PretrainComponents
from mlm.checkpoint import checkpoint, warm_start
from mlm.checkpoint.manifest import verify
from mlm.checkpoint.writer import CheckpointWriter
from mlm.distributed.device import measure_peak
from mlm.distributed.rendezvous import leave
from mlm.evaluation import fill_blanks, results
from mlm.tracking import plots, run_directory
from mlm.tracking.metrics_logger import CollectiveObserver, MetricsLogger, Rates
from mlm.tracking.progress_bar import ProgressBar
from mlm.training import flops, interrupt
from mlm.training.budget import TrainingProgress
from mlm.training.loop import LoopSettings, train

SENTENCES_SHOWN = 5


def follow(pretraining: PretrainComponents, path: Path, begin: TrainingProgress) -> None:
    """Train from `begin` to the end of the plan, or to Ctrl-C, and write down the results."""
    recipe, corpus, model, world = pretraining.recipe, pretraining.corpus, pretraining.model, pretraining.world

    def panel(model: nn.Module) -> str:
        # Not compiled once more for these few sentences.
        eagerly = torch.compiler.set_stance("force_eager") if pretraining.task.compiled else nullcontext()
        with eagerly:
            return "\n\n".join(
                fill_blanks.show_filled(model, pretraining.task.heldout[0], corpus.tokenizer, world, SENTENCES_SHOWN)
            )

    progress_bar = ProgressBar(pretraining.plan, begin, silent=not world.is_main)
    saver = CheckpointWriter(path, recipe, corpus.tokenizer_path, world, progress_bar.say, begin)
    recorder: MetricsLogger | None = None
    if world.is_main:
        recorder = MetricsLogger(
            path, recipe, saver, _rates(pretraining), progress_bar, panel, pretraining.task.documents, begin
        )
        threads = f", {pretraining.threads} threads" if pretraining.threads > 1 else ""
        print(f"run {path}: {corpus.shards.manifest.train.tokens:,} training tokens, {world}{threads}", file=sys.stderr)
    with interrupt.noted("finishing the step and saving") as received:
        end = train(
            model,
            pretraining.task,
            LoopSettings(
                pretraining.optimizer,
                recipe.schedule,
                pretraining.plan,
                intervals=recipe.train.intervals,
                clip_norm=recipe.train.clip_norm,
                seed=recipe.train.seed,
                threads=pretraining.threads,
            ),
            world,
            recorder or CollectiveObserver(saver, panel),
            start=begin,
            stop=lambda: bool(received) or (recorder is not None and recorder.hopeless),
        )
        saver.finish()
    number = world.max(max(received, default=0))
    leave()  # what follows is the first process's work, and nobody waits for it
    if recorder is None:
        sys.exit(command.EXIT_SIGNAL + number if number and not pretraining.plan.finished(end) else 0)
    if not pretraining.plan.finished(end):
        recorder.close(None)
        again = f"step {end.step} is saved; go on: python -m mlm.pretrain --resume {path}"
        if not number:
            raise UserError(
                f"stopped: {recorder.skipped_in_a_row} updates in a row were skipped, because loss or gradient was not"
                f" finite: start again with a lower optim.lr ({again})"
            )
        print(f"stopped: {again}")
        sys.exit(command.EXIT_SIGNAL + number)
    _conclude(pretraining, path, end, recorder, panel)


def _conclude(
    pretraining: PretrainComponents,
    path: Path,
    end: TrainingProgress,
    recorder: MetricsLogger,
    panel: Callable[[nn.Module], str],
) -> None:
    """Measure what was saved last, and write down the results."""
    recipe, corpus, world = pretraining.recipe, pretraining.corpus, pretraining.world.single()
    folder = checkpoint.folder_of(path, end.step)
    saved = verify(folder, checkpoint.MODEL)
    model, _, _ = checkpoint.load_model(folder, world.device)
    scores = results.measure(recipe, corpus, replace(pretraining.task, world=world, compiled=False), model)
    filled = panel(model)
    records = list(run_directory.read_metrics(path / run_directory.METRICS))
    scores |= warm_start.scores_at_start(recipe, records)
    scores |= results.costs(end) | {"weights_sha256": saved.files[checkpoint.WEIGHTS].sha256}
    recorder.close(scores)
    if not math.isfinite(scores["heldout"]["loss"]):
        print("warning: training diverged, the held-out loss is not finite: lower optim.lr", file=sys.stderr)
    plots.draw(records, path / "curves.png", scores["baselines"])
    print(results.summary(path, scores, filled))


def _rates(pretraining: PretrainComponents) -> Rates:
    recipe, task = pretraining.recipe, pretraining.task
    per_token = flops.flops_per_token(
        recipe.model,
        pretraining.corpus.shards.manifest.vocabulary_size,
        flops.mean_context(pretraining.corpus.train.rows),
        recipe.masking.rate,
    )
    encoder, rows = recipe.model.encoder, min(task.micro_batch_rows, task.batch_rows)
    shape = rows * recipe.data.row_length, encoder.width, encoder.feedforward_width
    peak = measure_peak(pretraining.world.device, pretraining.world.dtype, *shape)
    return Rates(recipe.optim.lr, per_token, peak)
