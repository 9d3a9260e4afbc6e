"""Measure fine-tuning and prediction beside the transformers library's Trainer: in turn, on one encoder and machine.

Both sides have the same BERT with a linear layer on [CLS], the same dropout, texts and batch size, and AdamW. Our side
is the training loop of `finetune.linear_head`; their side is the Trainer in a process of its own, once in float32 with
examples padded to 64 tokens, and once at its best. Every figure is a median with the lowest and the highest.
"""

import argparse
from collections.abc import Sequence
from functools import partial

from configs import command
from mlm.benchmark import frame
from mlm.distributed.process import configure_process


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    configure_process()
    from finetune.benchmark.speed import CASES, prepare

    options = parse(arguments)
    frame.check_installed()
    options.output.mkdir(parents=True, exist_ok=True)
    bench = prepare(options)
    cases = [(name, partial(CASES[name].measure, bench, name)) for name in options.cases or CASES]
    frame.run(cases, bench.world, bench.describe(), options.output)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; a wrong option and an unknown case are a UserError."""
    from finetune.benchmark.speed import CASES

    parser = frame.parser("finetune.benchmark", __doc__, CASES, "runs/finetune-benchmark")
    add = parser.add_argument
    add("--encoder", metavar="NAME", help="a published BERT, folder or name on the hub; default: a random one, 4 x 256")
    add("--file", metavar="FILE", help="table of labelled texts; default: bigram shift in Python's documentation")
    add("--text", default="text", metavar="COLUMN", help="the file's column of texts; default: %(default)s")
    add("--label", default="label", metavar="COLUMN", help="the file's column of classes; default: %(default)s")
    add("--vocabulary", type=int, default=8192, metavar="N", help="of the random encoder; default: %(default)s")
    return parser.parse_intermixed_args(arguments)


if __name__ == "__main__":
    command.run(main)
