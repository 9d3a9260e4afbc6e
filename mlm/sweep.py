"""Ask one question by many runs: a sweep over the settings of a command."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from configs import UserError, command, help_text, read, recipes
from configs.files import ending_by_signals
from mlm.distributed import launcher
from mlm.distributed.process import configure_process

USAGE = """
A sweep is a YAML file, which may be changed by section.key=value:

{recipes}

examples:
  python -m mlm.sweep activation
  python -m mlm.sweep mine.yaml trials_at_once=2
  python -m mlm.sweep mine.yaml -- text.source.kind=files text.source.paths=notes.txt      further words of the command
  python -m mlm.status runs/sweeps/activation           the state of its trials
  python -m mlm.report runs/sweeps/activation           tables, plots and the verdict, at any time

The sweep is a folder of ordinary runs. Ctrl-C lets the trials save; the same command goes on from there, and after any
kill.

"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; `further` are the words behind `--`."""
    from mlm.sweeps.config import SweepConfig

    epilog = USAGE.format(recipes=recipes.listing("sweep")) + help_text(SweepConfig)
    parser = command.Parser(prog="python -m mlm.sweep", description=__doc__, epilog=epilog)
    parser.add_argument("sweep", nargs="*", metavar="SWEEP | section.key=value")
    parser.add_argument("--dry-run", action="store_true", help="check everything and list the arms; start nothing")
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_intermixed_args(arguments[:end])
    options.further = tuple(arguments[end + 1 :])
    if launcher.has_several():
        raise UserError("a sweep runs in one process, and starts others: start it without torchrun")
    return options


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    configure_process()
    options = parse(arguments)
    from mlm.sweeps import arms
    from mlm.sweeps.config import SweepConfig
    from mlm.sweeps.sweep import checked, first_arms, sweep
    from mlm.sweeps.trials import read_sweep

    config = read(SweepConfig, *command.split(options.sweep, "sweep"))
    config = config.model_copy(update={"base": (*config.base, *options.further)})
    if options.dry_run:
        checked(config)
        listed = first_arms(config) if config.sampler.kind != "optuna" else []
        for arm in listed:
            command.show(arms.label(arm))
        count = config.sampler.arms if config.sampler.kind == "optuna" else len(listed)
        further = f" in the first of {len(config.stages) + 1} stages" if config.stages else ""
        trials = f"{count * len(config.seeds)} trials: {count} arms by {len(config.seeds)} seeds{further}"
        print(trials, file=sys.stderr)
        return
    try:
        with ending_by_signals():  # so that a scheduler's trials save too
            path = sweep(config)
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on with what the trials have saved", file=sys.stderr)
        raise
    states = [record.state for record in read_sweep(path).records()]
    told = f"{path}: {states.count('finished')} of {len(states)} trials finished"
    print(f"{told}\nnext: python -m mlm.report {path}", file=sys.stderr)


script = partial(command.run, main)

if __name__ == "__main__":
    script()
