"""The command line of fine-tuning, shared by the commands of all heads."""

import argparse
from collections.abc import Sequence

from pydantic import Field, create_model

from configs import command, dump, help_text, read
from finetune import experiment
from finetune.config import FinetuneConfig
from finetune.heads import Head

USAGE = """
examples:
  python -m finetune.{head}                                         the newest run of mlm.pretrain, no data needed
  python -m finetune.{head} configs/finetune/disaster_tweets.yaml data.train=train.csv encoder.run=runs/x
  python -m finetune.{head} configs/finetune/cola.yaml encoder.hub=google/electra-base-discriminator
  python -m finetune.{head} data.kind=labelled data.train=mine.csv data.text=comment data.label=rating
  python -m finetune.{head} control=true "train.seeds=[0, 1, 2]"    beside a randomly initialised encoder

Defaults, then the YAML file, then the overrides; every option can stand in either. Options:
"""


def config_of(head: Head) -> type[FinetuneConfig]:
    """Return FinetuneConfig with `head` as its default, and no other kind of head allowed."""
    field = type(head), Field(head, description="The head.")
    return create_model("FinetuneConfig", __base__=FinetuneConfig, head=field)


def parse(head: Head, description: str | None, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line of `python -m finetune.<kind>_head`."""
    name = f"{head.kind}_head"
    parser = command.Parser(
        prog=f"python -m finetune.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=USAGE.format(head=name) + help_text(config_of(head)),
    )
    parser.add_argument("recipe", nargs="*", metavar="RECIPE.yaml | section.key=value")
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration as YAML")
    return parser.parse_args(arguments)


def main(head: Head, description: str | None, arguments: Sequence[str]) -> None:
    """Run `python -m finetune.<kind>_head`.

    Raises:
        UserError: a setting is wrong, or names another kind of head than the command.

    """
    options = parse(head, description, arguments)
    yaml, overrides = command.split(options.recipe)
    settings = read(config_of(head), yaml, overrides)
    if options.print_config:
        print(dump(settings), end="")
    else:
        shown = experiment.start(settings)
        if shown:
            print(shown)
