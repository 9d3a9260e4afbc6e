"""Pretrain an encoder by masked language modelling: from raw text to filled-in blanks."""

import argparse
import math
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from configs import UserError, command, dump, help_text, read
from mlm import adaptation, blanks, checkpoint, cost, curves, interrupt, results, run
from mlm.budget import Plan, Position
from mlm.data import Corpus, open_corpus
from mlm.distributed import World, find_world
from mlm.loop import train
from mlm.model.heads import MaskedLanguageModel
from mlm.model.initialise import initialise
from mlm.objective import MaskedLanguageModelling, heldout_batches
from mlm.optim import Optimiser
from mlm.preview import preview
from mlm.progress import Progress
from mlm.recipe import Recipe

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
        pretraining = build(recipe)
        print(preview(recipe, pretraining.corpus, pretraining.task, pretraining.model, pretraining.plan))
    else:
        start(recipe)


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


def build(recipe: Recipe, tokenizer: Path | None = None) -> Pretraining:
    """Make data, model and optimiser ready; `tokenizer` stands in for the recipe's, whose file may be gone.

    Raises:
        UserError: the corpus is too small for one batch, or a setting does not fit the machine.

    """
    settings = recipe.train
    world = find_world(settings.precision)
    tokenizer = tokenizer or (Path(recipe.data.tokenizer) if recipe.data.tokenizer else None)
    corpus = open_corpus(recipe.text, recipe.vocabulary, recipe.data.row_length, Path(recipe.runs) / "cache", tokenizer)
    rows = len(corpus.train)
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
    optimiser = recipe.optim.build(model)
    tokens_per_step = settings.batch_rows * corpus.train.tokens / rows
    plan = settings.budget.plan(tokens_per_step, rows / settings.batch_rows)
    return Pretraining(recipe, world, corpus, task, model, optimiser, plan)


def start(recipe: Recipe) -> None:
    """Start a new run."""
    pretraining = build(recipe)
    started_from = adaptation.load_start(recipe, pretraining.model)
    path = run.create(Path(recipe.runs), recipe.name)
    with run.lock(path):
        (path / checkpoint.RECIPE).write_text(dump(recipe), encoding="utf-8")
        environment = run.environment(pretraining.world.device) | started_from | _data(pretraining.corpus)
        run.write_json(path / "environment.json", environment)
        follow(pretraining, path, Position())


def resume(path: Path) -> None:
    """Go on with a run from its newest checkpoint; a finished run stays as it is."""
    if not (path / checkpoint.RECIPE).is_file():
        raise UserError(f"{path} is no run: it has no {checkpoint.RECIPE}")
    with run.lock(path):
        if (path / "results.json").exists():
            print(f"{path} is finished: its results are in {path / 'results.json'}")
            return
        folder = checkpoint.newest(path)
        checkpoint.verify(folder, (checkpoint.RECIPE, checkpoint.TOKENIZER))
        recipe = read(Recipe, folder / checkpoint.RECIPE)
        if recipe != read(Recipe, path / checkpoint.RECIPE):
            raise UserError(
                f"{path / checkpoint.RECIPE} was changed since the run began: undo that, or start a new run"
            )
        pretraining = build(recipe, folder / checkpoint.TOKENIZER)
        if _data(pretraining.corpus)["data"] != run.read_json(path / "environment.json").get("data"):
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

    rates = _rates(pretraining)
    progress = Progress(pretraining.plan, begin)
    recorder = run.Recorder(path, recipe, corpus.tokenizer_path, rates, progress, panel, begin)
    print(
        f"run {path}: {corpus.shards.manifest.train.tokens:,} training tokens, device {world.device}", file=sys.stderr
    )
    with interrupt.noted("finishing the step and saving") as stopped:
        end = train(
            model,
            pretraining.task,
            pretraining.optimiser,
            recipe.schedule,
            pretraining.plan,
            world,
            recorder,
            seed=recipe.train.seed,
            clip_norm=recipe.train.clip_norm,
            intervals=recipe.train.intervals,
            start=begin,
            stop=lambda: bool(stopped),
        )
    if not pretraining.plan.finished(end):
        recorder.close(None)
        print(f"stopped after step {end.step}, which is saved; go on: python -m mlm.pretrain --resume {path}")
        sys.exit(command.EXIT_INTERRUPTED)
    model.eval()
    with pretraining.optimiser.averaged():
        scores = results.measure(recipe, corpus, pretraining.task, model)
        filled = panel(model)
    saved = checkpoint.verify(checkpoint.newest(path), checkpoint.MODEL)
    records = list(run.read_metrics(path / "metrics.jsonl"))
    scores |= adaptation.scores_at_start(recipe, records)
    scores |= results.costs(end) | {"weights_sha256": saved.files[checkpoint.WEIGHTS].sha256}
    recorder.close(scores)
    if not math.isfinite(scores["heldout"]["loss"]):
        print("warning: training diverged, the held-out loss is not finite: lower optim.lr", file=sys.stderr)
    curves.draw(records, path / "curves.png", scores["baselines"])
    print(results.summary(path, scores, filled))


def _compile(model: MaskedLanguageModel, world: World) -> None:
    """Compile each encoder layer in place, or say why not."""
    if world.device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", ""), "c++", "g++", "clang++"))):
        print("warning: train.compile needs a C++ compiler and finds none: going on without", file=sys.stderr)
        return
    for block in model.encoder.blocks:
        block.compile(dynamic=False)


def _rates(pretraining: Pretraining) -> run.Rates:
    recipe, task = pretraining.recipe, pretraining.task
    flops = cost.flops_per_token(
        recipe.model,
        pretraining.corpus.shards.manifest.vocabulary_size,
        cost.mean_context(pretraining.corpus.train.rows),
        recipe.masking.rate,
    )
    encoder, rows = recipe.model.encoder, min(task.micro_batch_rows, task.batch_rows)
    peak = cost.measure_peak(pretraining.world, rows * recipe.data.row_length, encoder.width, encoder.feedforward_width)
    return run.Rates(recipe.optim.lr, flops, peak)


def _data(corpus: Corpus) -> dict[str, Any]:
    manifest = corpus.shards.manifest
    return {
        "data": {"text_fingerprint": manifest.text_fingerprint, "tokenizer_sha256": manifest.tokenizer_sha256},
        "packages": [package.model_dump() for package in manifest.packages],
    }


if __name__ == "__main__":
    command.run(main)
