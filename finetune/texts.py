"""Write the texts of a table, cleaned by a recipe, to a file for pretraining.

An encoder that is adapted to a task's unlabelled texts (`start_from`) should see them as the classifier does.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pydantic import ConfigDict

from configs import Config, UserError, command, files, read, section_names
from finetune.config import FinetuneConfig
from finetune.data.labelled import ClassificationData, Labelled
from tokenizer.cleaning import describe_dropped

EXAMPLES = """
examples:
  python -m finetune.texts disaster_tweets --file test.csv --output tweets.txt
  python -m mlm.pretrain disaster_messages start_from=runs/x text.source.paths=tweets.txt
"""


class _DataOnly(Config):
    """The section `data` of a recipe, whatever its head; other sections are ignored."""

    model_config = ConfigDict(extra="ignore")

    data: ClassificationData = Labelled()


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = command.Parser(prog="python -m finetune.texts", description=__doc__, epilog=EXAMPLES)
    parser.add_argument("recipe", nargs="*", metavar="RECIPE | data.key=value", help="the cleaning of the texts")
    parser.add_argument("--file", required=True, help="a table with the columns of the texts")
    parser.add_argument("--output", type=Path, required=True, help="the .txt file to write: one text per line")
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    options = parse(arguments)
    if options.output.suffix != ".txt":
        raise UserError(f"--output {options.output}: it has one text per line, so its name must end in .txt")
    files.check_new(options.output)
    yaml, overrides = command.split(options.recipe, "finetune")
    if wrong := [override for override in overrides if not override.startswith("data.")]:
        raise UserError(f"{wrong[0]}: only options of data are read here, as data.key=value")
    if unknown := section_names(yaml) - FinetuneConfig.model_fields.keys() if yaml else set():
        raise UserError(f"{yaml}: unknown key {min(unknown)}: known: {', '.join(FinetuneConfig.model_fields)}")
    reader = read(_DataOnly, yaml, overrides).data.reader
    examples = [reader.texts(row) for row in reader.rows(options.file)]
    lines = [text for example in examples for text in example if text]
    files.write_text(options.output, "".join(f"{line}\n" for line in lines), new=True)
    print(f"{options.output}: {len(lines):,} texts")
    for remark in describe_dropped({"empty texts": len(examples) * len(reader.columns) - len(lines)}):
        print(remark)


script = partial(command.run, main)

if __name__ == "__main__":
    script()
