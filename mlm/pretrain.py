"""Pretrain an encoder by masked language modelling: from raw text to filled-in blanks."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from configs import UserError, command, dump, help_text, read, recipes
from mlm.distributed.process import configure_process

MOST_TOKENS = 1e18
"""Most tokens of a projection."""
USAGE = """
examples:
  python -m mlm.pretrain                                    the quick start: no data, network or GPU needed
  python -m mlm.pretrain modern                             a recipe, by its name or file
  python -m mlm.pretrain text.source.kind=files "text.source.paths=[a.txt, more/*.jsonl.gz]" name=mine
  python -m mlm.pretrain --dry-run model.encoder.width=256  its cost, without training
  python -m mlm.pretrain --dry-run modern --tokens 1e11 --machines "8xH100, 64xH100"    projected for more
  python -m mlm.pretrain start_from=runs/x text.source...   adapt a run's encoder to other text
  python -m mlm.pretrain --resume                           resume the newest run

Defaults, then the recipe, then the overrides; every option can stand in either. A recipe is a YAML file, or the name of
one of these:
{recipes}

Options:
"""


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    configure_process()
    options = parse(arguments)
    from mlm import experiment
    from mlm.checkpoint.interrupt import Pause, SignalStop
    from mlm.dry_run.preview import preview
    from mlm.dry_run.projection import machines_in
    from mlm.tracking import run_directory
    from mlm.tracking.progress_bar import ProgressBar

    yaml, overrides = command.split(options.recipe, "pretrain")
    if options.resume is not None and (yaml or overrides or options.print_config or options.dry_run):
        raise UserError("--resume takes the run's own configuration: remove everything but the run")
    if not options.dry_run and (options.tokens or options.machines):
        raise UserError("--tokens and --machines are of a projection: add --dry-run")
    if options.until is not None and options.until < 1:
        raise UserError(f"--until {options.until}: name a step from 1 on")
    machines = machines_in(options.machines or "8xH100")
    config = read(experiment.PretrainConfig, yaml, overrides)
    if options.print_config:
        command.show(dump(experiment.resolve(config)).rstrip("\n"))
        return
    if options.dry_run:
        command.show(preview(experiment.resolve(config), options.tokens, machines))
        return
    pause = Pause(options.until)
    with SignalStop("saving") as signals:
        observers = [signals, pause, ProgressBar()]

        def stop() -> int:
            return max(signals.received(), pause.reached())

        if options.resume is None:
            run = experiment.pretrain(config, observers, stop=stop)
        else:
            path = Path(options.resume) if options.resume else run_directory.newest()
            run = experiment.resume(path, observers, stop=stop)
    if run.summary:
        print(run.summary)
    if run.stopped_by > pause.reached():
        sys.exit(command.EXIT_SIGNAL + run.stopped_by)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    from mlm.config import PretrainConfig

    epilog = USAGE.format(recipes=recipes.listing("pretrain")) + help_text(PretrainConfig)
    parser = command.Parser(prog="python -m mlm.pretrain", description=__doc__, epilog=epilog)
    parser.add_argument("recipe", nargs="*", metavar="RECIPE | section.key=value")
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration as YAML")
    parser.add_argument(
        "--dry-run", action="store_true", help="show costs and the first batch; build data, don't train"
    )
    parser.add_argument(
        "--tokens", type=_tokens, metavar="N", help="tokens of the projection, 1e11; default: the run's"
    )
    parser.add_argument("--machines", metavar="LIST", help="devices of the projection, such as '8xH100, 64xH100'")
    parser.add_argument("--resume", nargs="?", const="", metavar="RUN", help="resume RUN, or the newest run")
    parser.add_argument(
        "--until", type=int, metavar="STEP", help="save and stop after the first evaluation at STEP or later"
    )
    return parser.parse_intermixed_args(arguments)


def _tokens(text: str) -> float:
    """Read a number of tokens of the command line."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0  # is told in the same words as a number that is too small
    if not 1 <= number <= MOST_TOKENS:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of tokens from 1 to {MOST_TOKENS:g}, such as 1e11")
    return number


script = partial(command.run, main)

if __name__ == "__main__":
    script()
