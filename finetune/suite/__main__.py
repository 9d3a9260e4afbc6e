"""Fine-tune an encoder on every task of a suite, such as GLUE, and print one table of them all."""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from configs import UserError, command, listed, recipes
from mlm.distributed import launcher
from mlm.distributed.process import configure_process

EXAMPLES = """
examples:
  python -m finetune.suite glue encoder.run=runs/x "train.seeds=[0, 1, 2]"
  python -m finetune.suite kim2014 --data kim2014/ encoder.run=runs/x control=true
  python -m finetune.suite my_recipes/ encoder.hub=google-bert/bert-base-uncased --name bert

A suite is a folder of recipes, or the name of one of {suites}. Overrides hold for all of its tasks. Each task is a run
of its own in runs/suites/NAME; started again, the command goes on with those that are not finished. A file
published.csv beside the recipes, with the columns task, model and score, adds the scores of others to the table.
"""
SUITES = Path("runs", "suites")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    suites = ", ".join(sorted(recipes.folders("finetune")))
    parser = command.Parser(prog="python -m finetune.suite", description=__doc__, epilog=EXAMPLES.format(suites=suites))
    parser.add_argument("words", nargs="+", metavar="SUITE | section.key=value")
    parser.add_argument("--name", help="name of the folder of the results (default: that of the suite)")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="folder of the files that the recipes name")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    options = parser.parse_intermixed_args(arguments)
    named = [word for word in options.words if "=" not in word]
    if len(named) != 1:
        raise UserError(f"name one suite, not {listed(named) or 'none'}: a folder of recipes, or one of {suites}")
    options.suite = recipes.folder(named[0], "finetune")
    options.overrides = [word for word in options.words if "=" in word]
    if own := [word for word in options.overrides if word.partition("=")[0] in ("name", "runs")]:
        raise UserError(f"{own[0]}: the suite names its runs, in {SUITES}: choose its folder there by --name")
    if launcher.has_several():
        raise UserError("a suite runs in one process: run its tasks one by one by torchrun, as finetune.cnn_head TASK")
    return options


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    options = parse(arguments)
    configure_process()
    from finetune.suite.table import as_text, published_scores, table
    from finetune.suite.tasks import configs_of, finished, run_tasks
    from mlm.tracking import run_directory

    path = SUITES / (options.name or options.suite.resolve().name)
    configs = configs_of(options.suite, options.overrides, options.data, path)
    published = published_scores(options.suite)
    path.mkdir(parents=True, exist_ok=True)
    with run_directory.lock(path):
        failed = run_tasks(path, configs)
    rows = table({task: folder for task in configs if (folder := finished(path, task))}, published)
    command.show(json.dumps(rows, ensure_ascii=False) if options.json else as_text(rows))
    if failed:
        told = "; ".join(f"{task}: {error}" for task, error in failed.items())
        raise UserError(f"{len(failed)} of {len(configs)} tasks failed ({told}): the same command goes on with them")


script = partial(command.run, main)

if __name__ == "__main__":
    script()
