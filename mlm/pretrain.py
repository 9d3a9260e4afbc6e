"""Pretrain an encoder by masked language modelling: from raw text to filled-in blanks."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from configs import UserError, command, dump, help_text, read
from mlm.build import build, with_text_of_shards
from mlm.checkpoint import checkpoint, warm_start
from mlm.config import PretrainConfig
from mlm.data.corpus import Corpus
from mlm.distributed.world import World, init_world
from mlm.dry_run import preview
from mlm.experiment import follow
from mlm.tracking import run_directory
from mlm.training.budget import TrainingProgress

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


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    options = parse(arguments)
    yaml, overrides = command.split(options.recipe)
    if options.resume is not None:
        if yaml or overrides or options.print_config or options.dry_run:
            raise UserError("--resume goes on with the run's own configuration: leave out everything but the run")
        path = Path(options.resume) if options.resume else run_directory.newest(Path(PretrainConfig().runs))
        world = init_world(recipe_of(path).train.silence_minutes)
        with world.watched():
            resume(path, world)
        return
    recipe = with_text_of_shards(warm_start.resolve(read(PretrainConfig, yaml, overrides)))
    if options.print_config:
        print(dump(recipe), end="")
    elif options.dry_run:
        world = init_world(recipe.train.silence_minutes).with_precision(recipe.train.precision)
        print(preview(build(recipe, world)))
    else:
        world = init_world(recipe.train.silence_minutes)
        with world.watched():
            again = earlier_run(recipe, world)
            start(recipe, world) if again is None else resume(again, world)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = command.Parser(
        prog="python -m mlm.pretrain",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=USAGE + help_text(PretrainConfig),
    )
    parser.add_argument("recipe", nargs="*", metavar="RECIPE.yaml | section.key=value")
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration as YAML")
    parser.add_argument(
        "--dry-run", action="store_true", help="show costs and the first batch; build data, don't train"
    )
    parser.add_argument("--resume", nargs="?", const="", metavar="RUN", help="go on with RUN, or with the newest run")
    return parser.parse_args(arguments)


def earlier_run(recipe: PretrainConfig, world: World) -> Path | None:
    """Return the run of `recipe` that this job began and saved before torchrun or SLURM started it again, if any."""
    if not world.restarted:
        return None

    def is_mine(path: Path) -> bool:
        try:
            same = read(PretrainConfig, path / checkpoint.RECIPE) == recipe
            return same and run_directory.read_json(path / run_directory.ENVIRONMENT).get("job") == world.job
        except UserError:  # what else lies among the runs is no reason not to start
            return False

    def newest() -> str:
        mine = filter(is_mine, run_directory.with_checkpoint(Path(recipe.runs)))
        return str(max(mine, key=lambda path: path.name, default=""))

    found = world.from_main("looking for this job's run", newest)
    return Path(found) if found else None


def recipe_of(path: Path) -> PretrainConfig:
    """Return a run's recipe.

    Raises:
        UserError: it is no run of pretraining.

    """
    return read(PretrainConfig, run_directory.recipe_path(path))


def start(recipe: PretrainConfig, world: World) -> None:
    """Start a new run."""
    world = world.with_precision(recipe.train.precision)
    pretraining = build(recipe, world)
    started_from = warm_start.load_start(recipe, pretraining.model)
    path = Path(
        world.from_main("making the run's directory", lambda: str(run_directory.create(Path(recipe.runs), recipe.name)))
    )
    with run_directory.lock(path) if world.is_main else nullcontext():
        if world.is_main:
            (path / checkpoint.RECIPE).write_text(dump(recipe), encoding="utf-8")
            environment = run_directory.environment(world) | {"job": world.job}
            run_directory.write_json(
                path / run_directory.ENVIRONMENT, environment | started_from | _data(pretraining.corpus)
            )
        follow(pretraining, path, TrainingProgress())


def resume(path: Path, world: World) -> None:
    """Go on with a run from its newest checkpoint; a finished run stays as it is."""
    recipe = recipe_of(path)
    with run_directory.lock(path) if world.is_main else nullcontext():
        if (path / run_directory.RESULTS).exists():
            if world.is_main:
                print(f"{path} is finished: its results are in {path / run_directory.RESULTS}")
            return
        folder = Path(world.from_main("checking the newest checkpoint", lambda: str(_newest_whole(path))))
        if recipe != read(PretrainConfig, folder / checkpoint.RECIPE):
            raise UserError(
                f"{path / checkpoint.RECIPE} was changed since the run began: undo that, or start a new run"
            )
        run_identity = run_directory.run_identity(path)
        world = world.with_recorded_precision(run_identity.precision)
        pretraining = build(recipe, world, folder / checkpoint.TOKENIZER)
        if _data(pretraining.corpus)["data"] != run_identity.data:
            raise UserError(f"the text of {path} is not what the run began with: put it back, or start a new run")
        if world.is_main and world.precision != run_identity.precision:
            environment = run_directory.read_json(path / run_directory.ENVIRONMENT)
            run_directory.write_json(path / run_directory.ENVIRONMENT, environment | {"went_on_in": world.precision})
        follow(pretraining, path, checkpoint.load_training(folder, pretraining.model, pretraining.optimizer))


def _newest_whole(path: Path) -> Path:
    return checkpoint.newest_whole(path, lambda line: print(line, file=sys.stderr))


def _data(corpus: Corpus) -> dict[str, Any]:
    manifest = corpus.shards.manifest
    return {
        "data": {"text_fingerprint": manifest.text_fingerprint, "tokenizer_sha256": manifest.tokenizer_sha256},
        "packages": [package.model_dump() for package in manifest.packages],
    }


if __name__ == "__main__":
    command.run(main)
