"""Export a pretrained encoder as a folder that plain transformers opens: weights, tokenizer, model card."""

import argparse
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from configs import UserError, command
from mlm.distributed.process import configure_process

USAGE = """
examples:
  python -m mlm.export encoder/                              the newest run
  python -m mlm.export runs/x encoder/ --license apache-2.0 --language en
  python -m mlm.export runs/x/checkpoints/step-000001000 encoder/
  python -m mlm.export runs/x encoder/ --onnx                also ONNX; --format onnx: nothing else, and for any recipe

The folder is opened by transformers without code of its own, as BERT or ModernBERT:
  pipeline("fill-mask", "encoder/")         AutoModelForMaskedLM, AutoModel, AutoTokenizer
  SentenceTransformer("encoder/")           AutoModelForSequenceClassification, for further training

Its scores and hidden states are compared with the run's before it appears. A model that has no exact counterpart is
refused, with the settings of the nearest one.
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = command.Parser(prog="python -m mlm.export", description=__doc__, epilog=USAGE)
    parser.add_argument("run", nargs="?", type=Path, help="run or checkpoint (default: the newest run in runs/)")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    parser.add_argument(
        *("--license", "--licence"), metavar="ID", help="license of the weights, for the card: apache-2.0, mit, ..."
    )
    parser.add_argument("--language", metavar="CODE", help="language of the text, for the card: en, de, ...")
    parser.add_argument(
        "--format",
        action="append",
        choices=("transformers", "onnx"),
        help="may be repeated (default: transformers); onnx is onnx/model.onnx, for onnxruntime: any recipe has it",
    )
    parser.add_argument("--onnx", action="store_true", help="--format onnx beside the others")
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    options = parse(arguments)
    for name, example in (("license", "apache-2.0"), ("language", "en")):
        value = getattr(options, name)
        if value is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", value):
            raise UserError(f"--{name} {value!r} is no identifier: give one such as {example}")
    configure_process()
    from mlm.checkpoint import checkpoint
    from mlm.tracking import run_directory
    from mlm.tracking.exported_run import export
    from mlm.tracking.model_card import READERS

    formats = {*(options.format or ["transformers"]), *(["onnx"] if options.onnx else [])}
    path = options.run or run_directory.newest()
    print(f"run: {checkpoint.run_of(path)}", file=sys.stderr)
    exported = export(path, options.out, license=options.license, language=options.language, formats=formats)
    found = next(iter(exported.compared.values()))
    texts = "held-out texts of the run" if found.heldout else "general sentences, for no text of the run is at hand"
    command.show(f"{exported.path}: {exported.architecture}, compared with the run's model on {found.texts} {texts}")
    for name, compared in exported.compared.items():
        for kind, difference in compared.differences.items():
            command.show(f"  largest difference of {kind} in {READERS[name]}: {difference}")
    command.show(f"its model card, {exported.path / 'README.md'}, shows how to load it")


script = partial(command.run, main)

if __name__ == "__main__":
    script()
