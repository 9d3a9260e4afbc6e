"""What the entry points of all heads share: a recipe and overrides become a run."""

import argparse
from collections.abc import Sequence

from configs import command, dump, help_text, read
from finetune import experiment
from finetune.config import FinetuneConfig

USAGE = """
examples:
  python -m finetune.{head}                                         the newest run of mlm.pretrain, no data needed
  python -m finetune.{head} configs/finetune/disaster_tweets.yaml data.train=train.csv encoder.run=runs/x
  python -m finetune.{head} configs/finetune/cola.yaml encoder.hub=google/electra-base-discriminator
  python -m finetune.{head} data.kind=labelled data.train=mine.csv data.text=comment data.label=rating
  python -m finetune.{head} control=true "train.seeds=[0, 1, 2]"    beside a randomly initialised encoder

Defaults, then the YAML file, then the overrides; every option can stand in either. Options:
"""


def parse(
    name: str, description: str | None, recipe: type[FinetuneConfig], arguments: Sequence[str]
) -> argparse.Namespace:
    """Parse the command line of the head in the file `name`."""
    parser = command.Parser(
        prog=f"python -m finetune.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=USAGE.format(head=name) + help_text(recipe),
    )
    parser.add_argument("recipe", nargs="*", metavar="RECIPE.yaml | section.key=value")
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration as YAML")
    return parser.parse_args(arguments)


def main(name: str, description: str | None, recipe: type[FinetuneConfig], arguments: Sequence[str]) -> None:
    """Run the command line of the head in the file `name`."""
    options = parse(name, description, recipe, arguments)
    yaml, overrides = command.split(options.recipe)
    settings = read(recipe, yaml, overrides)
    if options.print_config:
        print(dump(settings), end="")
    else:
        shown = experiment.start(settings)
        if shown:
            print(shown)
