"""Pretrain an encoder by masked language modelling: from raw text to filled-in blanks."""

import argparse
import math
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from configs import UserError, command, dump, help_text, read
from mlm import adaptation, blanks, checkpoint, cost, curves, interrupt, results, run
from mlm.budget import Plan, Position
from mlm.data import Corpus, corpus_at, open_corpus
from mlm.distributed import World, find_world, restarted_job
from mlm.loop import train
from mlm.model.heads import MaskedLanguageModel
from mlm.model.initialise import initialise
from mlm.objective import MaskedLanguageModelling, heldout_batches
from mlm.optim import Optimiser
from mlm.preview import preview
from mlm.progress import Progress
from mlm.recipe import Recipe
from mlm.recorder import Follower, Rates, Recorder
from mlm.saver import Saver

SENTENCES_SHOWN = 5

USAGE = """
examples:
  python -m mlm.pretrain                                    the quick start: no data, network or GPU needed
  python -m mlm.pretrain configs/pretrain/modern.yaml       a recipe
  python -m mlm.pretrain text.source.kind=files "text.source.paths=[a.txt, more/*.jsonl.gz]" name=mine
  python -m mlm.pretrain --dry-run model.encoder.width=256  what it would cost
  python -m mlm.pretrain start_from=runs/x text.source...   adapt a run's encoder to other text
  python -m mlm.pretrain --resume                           go on with the newest run

Defaults, then the YAML file, then the overrides; every option can stand in either. Options:
"""


@dataclass(frozen=True)
class Pretraining:
    """All that a recipe's run is made of."""

    recipe: Recipe
    world: World
    corpus: Corpus
    task: MaskedLanguageModelling
    model: MaskedLanguageModel
    optimiser: Optimiser
    plan: Plan


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    options = parse(arguments)
    yaml, overrides = command.split(options.recipe)
    if options.resume is not None:
        if yaml or overrides or options.print_config or options.dry_run:
            raise UserError("--resume goes on with the run's own configuration: leave out everything but the run")
        resume(Path(options.resume) if options.resume else run.newest(Path(Recipe().runs)))
        return
    recipe = adaptation.resolve(read(Recipe, yaml, overrides))
    if options.print_config:
        print(dump(recipe), end="")
    elif options.dry_run:
        pretraining = build(recipe, join(recipe))
        print(preview(recipe, pretraining.corpus, pretraining.task, pretraining.model, pretraining.plan))
    else:
        again = earlier_run(Path(recipe.runs))
        start(recipe) if again is None else resume(again)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = command.Parser(
        prog="python -m mlm.pretrain",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=USAGE + help_text(Recipe),
    )
    parser.add_argument("recipe", nargs="*", metavar="RECIPE.yaml | section.key=value")
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration as YAML")
    parser.add_argument(
        "--dry-run", action="store_true", help="show costs and the first batch; build data, don't train"
    )
    parser.add_argument("--resume", nargs="?", const="", metavar="RUN", help="go on with RUN, or with the newest run")
    return parser.parse_args(arguments)


def join(recipe: Recipe) -> World:
    """Find the device and the other processes."""
    return find_world(recipe.train.precision, recipe.train.silence_minutes)


def earlier_run(runs: Path) -> Path | None:
    """Return the run with a checkpoint that this job began before torchrun or SLURM started it again, if any."""
    job, again = restarted_job()
    if not again:
        return None
    found = [path for path in run.with_checkpoint(runs) if run.read_json(path / run.ENVIRONMENT).get("job") == job]
    return max(found, key=lambda path: path.name, default=None)


def build(recipe: Recipe, world: World, tokenizer: Path | None = None) -> Pretraining:
    """Make data, model and optimiser ready; `tokenizer` stands in for the recipe's, whose file may be gone.

    Raises:
        UserError: the corpus is too small for one batch, or a setting does not fit the machine.

    """
    settings, row_length = recipe.train, recipe.data.row_length
    tokenizer = tokenizer or (Path(recipe.data.tokenizer) if recipe.data.tokenizer else None)

    def built() -> str:
        cache = Path(recipe.runs) / "cache"
        return str(open_corpus(recipe.text, recipe.vocabulary, row_length, cache, tokenizer).shards.path)

    corpus = corpus_at(Path(world.of_leader("building tokenizer and shards", built)), row_length)
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
    heldout = heldout_batches(
        corpus.heldout, recipe.masking, world, most_rows=recipe.evaluation.most_rows, micro_batch_rows=micro
    )
    if not any(batch.targets for batch in heldout):
        raise UserError("the held-out text is too small to hide a token of it: raise text.heldout_share, or add text")
    task = MaskedLanguageModelling(
        corpus.train, heldout, recipe.masking, world, settings.seed, settings.batch_rows, micro
    )
    model = MaskedLanguageModel(recipe.model, corpus.shards.manifest.vocabulary_size, recipe.data.row_length)
    initialise(model, recipe.model.encoder, settings.seed)
    model.to(world.device)
    recipe.parallel.shard(model, world)
    optimiser = recipe.optim.build(model)
    tokens_per_step = settings.batch_rows * corpus.train.tokens / rows
    plan = settings.budget.plan(tokens_per_step, rows / settings.batch_rows)
    return Pretraining(recipe, world, corpus, task, model, optimiser, plan)


def start(recipe: Recipe) -> None:
    """Start a new run."""
    world = join(recipe)
    pretraining = build(recipe, world)
    started_from = adaptation.load_start(recipe, pretraining.model)
    path = Path(world.of_leader("making the run's directory", lambda: str(run.create(Path(recipe.runs), recipe.name))))
    with run.lock(path) if world.leads else nullcontext():
        if world.leads:
            (path / checkpoint.RECIPE).write_text(dump(recipe), encoding="utf-8")
            job, _ = restarted_job()
            environment = run.environment(world.device) | {"processes": world.size, "job": job}
            run.write_json(path / run.ENVIRONMENT, environment | started_from | _data(pretraining.corpus))
        follow(pretraining, path, Position())


def resume(path: Path) -> None:
    """Go on with a run from its newest checkpoint; a finished run stays as it is."""
    if not (path / checkpoint.RECIPE).is_file():
        raise UserError(f"{path} is no run: it has no {checkpoint.RECIPE}")
    recipe = read(Recipe, path / checkpoint.RECIPE)
    world = join(recipe)
    with run.lock(path) if world.leads else nullcontext():
        if (path / run.RESULTS).exists():
            if world.leads:
                print(f"{path} is finished: its results are in {path / run.RESULTS}")
            return
        folder = Path(world.of_leader("checking the newest checkpoint", lambda: str(_newest_whole(path))))
        if recipe != read(Recipe, folder / checkpoint.RECIPE):
            raise UserError(
                f"{path / checkpoint.RECIPE} was changed since the run began: undo that, or start a new run"
            )
        pretraining = build(recipe, world, folder / checkpoint.TOKENIZER)
        if _data(pretraining.corpus)["data"] != run.read_json(path / run.ENVIRONMENT).get("data"):
            raise UserError(f"the text of {path} is not what the run began with: put it back, or start a new run")
        follow(pretraining, path, checkpoint.load_training(folder, pretraining.model, pretraining.optimiser))


def follow(pretraining: Pretraining, path: Path, begin: Position) -> None:
    """Train from `begin` to the end of the plan, or to Ctrl-C, and write down the results."""
    recipe, corpus, model, world = pretraining.recipe, pretraining.corpus, pretraining.model, pretraining.world
    if recipe.train.compile:
        _compile(model, world)

    def panel(model: nn.Module) -> str:
        return "\n\n".join(
            blanks.show_filled(model, pretraining.task.heldout[0], corpus.tokenizer, world, SENTENCES_SHOWN)
        )

    progress = Progress(pretraining.plan, begin, silent=not world.leads)
    saver = Saver(path, recipe, corpus.tokenizer_path, world, progress.say)
    recorder: Recorder | None = None
    if world.leads:
        recorder = Recorder(
            path, recipe, saver, _rates(pretraining), progress, panel, pretraining.task.documents, begin
        )
        print(f"run {path}: {corpus.shards.manifest.train.tokens:,} training tokens, {world}", file=sys.stderr)
    with interrupt.noted("finishing the step and saving") as received, world.watched():
        end = train(
            model,
            pretraining.task,
            pretraining.optimiser,
            recipe.schedule,
            pretraining.plan,
            world,
            recorder or Follower(saver, panel),
            seed=recipe.train.seed,
            clip_norm=recipe.train.clip_norm,
            intervals=recipe.train.intervals,
            start=begin,
            stop=lambda: bool(received) or (recorder is not None and recorder.hopeless),
        )
        saver.finish()
    number = world.most(max(received, default=0))
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
    pretraining: Pretraining, path: Path, end: Position, recorder: Recorder, panel: Callable[[nn.Module], str]
) -> None:
    """Measure what was saved last, and write down the results."""
    recipe, corpus, world = pretraining.recipe, pretraining.corpus, pretraining.world.alone()
    folder = checkpoint.newest(path)
    saved = checkpoint.verify(folder, checkpoint.MODEL)
    model, _, _ = checkpoint.load_model(folder, world.device)
    scores = results.measure(recipe, corpus, replace(pretraining.task, world=world), model)
    filled = panel(model)
    records = list(run.read_metrics(path / run.METRICS))
    scores |= adaptation.scores_at_start(recipe, records)
    scores |= results.costs(end) | {"weights_sha256": saved.files[checkpoint.WEIGHTS].sha256}
    recorder.close(scores)
    if not math.isfinite(scores["heldout"]["loss"]):
        print("warning: training diverged, the held-out loss is not finite: lower optim.lr", file=sys.stderr)
    curves.draw(records, path / "curves.png", scores["baselines"])
    print(results.summary(path, scores, filled))


def _newest_whole(path: Path) -> Path:
    return checkpoint.newest_whole(path, lambda line: print(line, file=sys.stderr))


def _compile(model: MaskedLanguageModel, world: World) -> None:
    """Compile each encoder layer in place, or say why not."""
    if world.device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", ""), "c++", "g++", "clang++"))):
        print("warning: train.compile needs a C++ compiler and finds none: going on without", file=sys.stderr)
        return
    for block in model.encoder.blocks:
        block.compile(dynamic=False)


def _rates(pretraining: Pretraining) -> Rates:
    recipe, task = pretraining.recipe, pretraining.task
    flops = cost.flops_per_token(
        recipe.model,
        pretraining.corpus.shards.manifest.vocabulary_size,
        cost.mean_context(pretraining.corpus.train.rows),
        recipe.masking.rate,
    )
    encoder, rows = recipe.model.encoder, min(task.micro_batch_rows, task.batch_rows)
    peak = cost.measure_peak(pretraining.world, rows * recipe.data.row_length, encoder.width, encoder.feedforward_width)
    return Rates(recipe.optim.lr, flops, peak)


def _data(corpus: Corpus) -> dict[str, Any]:
    manifest = corpus.shards.manifest
    return {
        "data": {"text_fingerprint": manifest.text_fingerprint, "tokenizer_sha256": manifest.tokenizer_sha256},
        "packages": [package.model_dump() for package in manifest.packages],
    }


if __name__ == "__main__":
    command.run(main)
