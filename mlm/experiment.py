"""A pretraining run at work: all that its recipe stands for, followed to the end of its plan."""

import math
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from configs import UserError, command
from mlm.checkpoint import checkpoint, warm_start
from mlm.checkpoint.manifest import verify
from mlm.checkpoint.writer import CheckpointWriter
from mlm.config import PretrainConfig
from mlm.data.corpus import Corpus, corpus_at, open_corpus
from mlm.distributed.device import measure_peak
from mlm.distributed.parallel import ReplicatedData
from mlm.distributed.rendezvous import leave
from mlm.distributed.threads import threads_for
from mlm.distributed.world import World
from mlm.evaluation import fill_blanks, results
from mlm.model.heads import MaskedLanguageModel
from mlm.model.initialise import initialise
from mlm.objectives.masked import MaskedLMTask, heldout_batches
from mlm.tracking import plots, run_directory
from mlm.tracking.metrics_logger import CollectiveObserver, MetricsLogger, Rates
from mlm.tracking.progress_bar import ProgressBar
from mlm.training import flops, interrupt
from mlm.training.budget import TrainingLength, TrainingProgress
from mlm.training.loop import LoopSettings, train
from mlm.training.optim import Optimizer

SENTENCES_SHOWN = 5


@dataclass(frozen=True)
class Pretraining:
    """All that a recipe's run is made of."""

    recipe: PretrainConfig
    world: World
    corpus: Corpus
    task: MaskedLMTask
    model: MaskedLanguageModel
    optimizer: Optimizer
    plan: TrainingLength
    threads: int
    """Micro-batches that are computed at the same time; one where dropout would draw from one source for all."""


def build(recipe: PretrainConfig, world: World, tokenizer: Path | None = None) -> Pretraining:
    """Make data, model and optimizer ready; `tokenizer` stands in for the recipe's, whose file may be gone.

    Raises:
        UserError: the corpus is too small for one batch, or a setting does not fit the machine.

    """
    settings, row_length = recipe.train, recipe.data.row_length

    def built() -> str:
        return str(open_corpus(recipe, tokenizer).shards.path)

    corpus = corpus_at(Path(world.from_main("building tokenizer and shards", built)), row_length, checked=True)
    rows = len(corpus.train)
    if settings.batch_rows < world.size:
        raise UserError(
            f"train.batch_rows = {settings.batch_rows} rows cannot be divided among {world.size} processes: raise it,"
            " or start fewer"
        )
    if rows < settings.batch_rows:
        raise UserError(
            f"a corpus too small for one batch: {rows} rows of {recipe.data.row_length} tokens,"
            f" but train.batch_rows is {settings.batch_rows}: add text, or set train.batch_rows={rows} or less"
        )
    micro = settings.micro_batch_rows or settings.batch_rows
    wanted = world.device.type == "cuda" if settings.compile is None else settings.compile
    compiled = wanted and _can_compile(world)
    alone = compiled or recipe.model.encoder.dropout > 0 or not isinstance(recipe.parallel, ReplicatedData)
    threads = 1 if alone else threads_for(world, micro * row_length)
    heldout = heldout_batches(
        corpus.heldout, recipe.masking, world, most_rows=recipe.evaluation.most_rows, micro_batch_rows=micro
    )
    if not any(batch.targets for batch in heldout):
        raise UserError("the held-out text is too small to hide a token of it: raise text.heldout_share, or add text")
    task = MaskedLMTask(
        corpus.train,
        heldout,
        recipe.masking,
        world,
        settings.seed,
        settings.batch_rows,
        -(-micro // threads),
        compiled,
    )
    model = MaskedLanguageModel(recipe.model, corpus.shards.manifest.vocabulary_size, recipe.data.row_length)
    initialise(model, recipe.model.encoder, settings.seed)
    recipe.parallel.place(model, world)
    optimizer = recipe.optim.build(model)
    if compiled:
        _compile(model)
    tokens_per_step = settings.batch_rows * corpus.train.tokens / rows
    plan = settings.budget.plan(tokens_per_step, rows / settings.batch_rows)
    return Pretraining(recipe, world, corpus, task, model, optimizer, plan, threads)


def follow(pretraining: Pretraining, path: Path, begin: TrainingProgress) -> None:
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
    pretraining: Pretraining,
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


def _can_compile(world: World) -> bool:
    """Tell whether there is what torch.compile needs on the device, and warn where there is not."""
    variable, compilers = ("CC", ["cc", "gcc", "clang"])
    if world.device.type == "cpu":
        variable, compilers = ("CXX", ["c++", "g++", "clang++"])
    if any(map(shutil.which, [os.environ.get(variable, ""), *compilers])):
        return True
    print(f"warning: torch.compile finds no compiler ({', '.join(compilers)}): going on without", file=sys.stderr)
    return False


def _compile(model: MaskedLanguageModel) -> None:
    """Compile each encoder layer in place."""
    # The first, the middle and the last blocks differ, in training and evaluation, and so do short last batches.
    torch._dynamo.config.recompile_limit = 64
    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")  # float32 is what the recipe says
    for block in model.encoder.blocks:
        block.compile(dynamic=False)


def _rates(pretraining: Pretraining) -> Rates:
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
