"""Export a fine-tuned model as a folder for other programs: ONNX, or a classifier that plain transformers opens."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from configs import command
from mlm.distributed.process import configure_process

EXAMPLES = """
examples:
  python -m finetune.export classifier/                      the newest fine-tuning run
  python -m finetune.export runs/x classifier/ --format onnx

onnx           onnx/model.onnx with the classes and the cleaning of texts in its metadata, and tokenizer.json: any head
transformers   a folder for AutoModelForSequenceClassification and pipeline("text-classification"): the linear head,
               where the encoder's architecture has an exact counterpart; else the reason and the remedy are told

README.md in the folder has the code for both. The probabilities are compared with the run's before the folder appears.
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = command.Parser(prog="python -m finetune.export", description=__doc__, epilog=EXAMPLES)
    parser.add_argument("run", nargs="?", type=Path, help="a fine-tuning run (default: the newest one in runs/)")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make; it must not exist yet")
    parser.add_argument(
        "--format",
        action="append",
        choices=("transformers", "onnx"),
        help="may be repeated (default: onnx, and transformers for a linear head)",
    )
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    options = parse(arguments)
    configure_process()
    from finetune import saved_model
    from finetune.interop.export import export
    from mlm.checkpoint import checkpoint
    from mlm.config import RUNS

    run = checkpoint.run_of(options.run) if options.run else saved_model.newest(Path(RUNS))
    exported = export(run, options.out, options.format or ())
    origin = "some of the run's data" if exported.of_the_run else "none of the run's data, which is not at hand"
    for name, difference in exported.differences.items():
        command.show(
            f"{name}: largest difference of a probability {difference:.1e}, on {exported.texts} texts ({origin})"
        )
    command.show(f"{exported.path}: README.md there tells how to use it")


script = partial(command.run, main)

if __name__ == "__main__":
    script()
