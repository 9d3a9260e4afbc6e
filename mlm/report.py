"""Report a sweep, finished or not: tables, intervals, a verdict, plots, and the best configuration."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from configs import UserError, command
from configs.files import write_text
from mlm.distributed.process import configure_process

EXAMPLES = """
examples:
  python -m mlm.report runs/sweeps/activation
  tensorboard --logdir runs/sweeps/activation/report/tensorboard       its trials under HParams
  python -m mlm.report --study docs/STUDY.md          rebuild a page's tables and pictures from kept results

The report is a folder in that of the sweep: results.csv (a row a trial), report.md, plots, and best.yaml, which the
swept command takes. A page has its tables between <!-- table: NAME --> and <!-- end -->: that of the recipe
configs/sweep/NAME.yaml, from study/NAME.csv beside the page. Settings of the sweep may stand behind the name, such as
metric=heldout.accuracy mode=max. Its pictures are study/NAME/SETTING.png.
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = command.Parser(prog="python -m mlm.report", description=__doc__, epilog=EXAMPLES)
    parser.add_argument("sweeps", nargs="*", type=Path, metavar="SWEEP", help="folder of a sweep")
    parser.add_argument("--study", type=Path, metavar="PAGE", help="a page whose tables are made from kept results")
    options = parser.parse_intermixed_args(arguments)
    if bool(options.sweeps) == bool(options.study):
        raise UserError("name a sweep's folder, such as runs/sweeps/activation, or a page by --study")
    return options


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    configure_process()
    options = parse(arguments)
    from mlm.sweeps.report.report import FOLDER, report
    from mlm.sweeps.report.study import draw, filled
    from mlm.sweeps.trials import read_sweep

    if options.study:
        try:
            page = options.study.read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot read {options.study}: {error.strerror}") from error
        kept = options.study.parent / "study"
        write_text(options.study, filled(page, kept))
        draw(page, kept)
        return
    for path in options.sweeps:
        command.show(report(read_sweep(path)))
        print(f"tables, plots, the best configuration: {path / FOLDER}", file=sys.stderr)


script = partial(command.run, main)

if __name__ == "__main__":
    script()
