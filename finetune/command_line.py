"""The command line of fine-tuning, shared by the commands of all heads."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from configs import command, dump, help_text, read, recipes
from mlm.distributed.process import configure_process

if TYPE_CHECKING:  # imported by the functions below, because configure_process comes before torch
    from finetune.config import FinetuneConfig

USAGE = """
examples:
  python -m finetune.{head}                                         the newest run of mlm.pretrain, no data needed
  python -m finetune.{head} disaster_tweets data.train=train.csv encoder.run=runs/x
  python -m finetune.{head} cola encoder.hub=google/electra-base-discriminator
  python -m finetune.{head} data.kind=labelled data.train=mine.csv data.text=comment data.label=rating
  python -m finetune.{head} control=true "train.seeds=[0, 1, 2]"    beside a randomly initialized encoder

Defaults, then the recipe, then the overrides; every option can stand in either. A recipe is a YAML file, or the name of
one of these:
{recipes}

Options:
"""


def main(kind: str, description: str | None, arguments: Sequence[str]) -> None:
    """Run `python -m finetune.<kind>_head`."""
    configure_process()
    options = parse(kind, description, arguments)
    from finetune.experiment import finetune
    from mlm.checkpoint.interrupt import SignalStop
    from mlm.tracking.progress_bar import ProgressBar

    config = read(config_of(kind), *command.split(options.recipe, "finetune"))
    if options.print_config:
        command.show(dump(config).rstrip("\n"))
        return
    with SignalStop("stopping") as signals:
        run = finetune(config, [signals, ProgressBar()], stop=signals.received)
    if run.summary:
        print(run.summary)


def parse(kind: str, description: str | None, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line of `python -m finetune.<kind>_head`."""
    name = f"{kind}_head"
    parser = command.Parser(
        prog=f"python -m finetune.{name}",
        description=description,
        epilog=USAGE.format(head=name, recipes=recipes.listing("finetune")) + help_text(config_of(kind)),
    )
    parser.add_argument("recipe", nargs="*", metavar="RECIPE | section.key=value")
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration as YAML")
    return parser.parse_intermixed_args(arguments)


def config_of(kind: str) -> "type[FinetuneConfig]":
    """Return FinetuneConfig with a head of this kind as its default, and no other kind allowed."""
    from pydantic import Field, create_model

    from finetune.config import FinetuneConfig
    from finetune.heads import HEADS

    head = HEADS[kind]
    field = head, Field(head(), description="The head.")
    return create_model("FinetuneConfig", __base__=FinetuneConfig, head=field)
