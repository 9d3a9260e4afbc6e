"""Classify texts with a fine-tuned model: from the command line, from standard input, or from a table."""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from configs import UserError, check_text, command, files, streams
from mlm.distributed.process import configure_process

if TYPE_CHECKING:  # imported by `main`, because configure_process comes before torch
    from finetune.saved_model import Prediction

MOST_SHOWN = 10
"""Number of classes in a line, the most probable ones."""

EXAMPLES = """
examples:
  python -m finetune.predict runs/x "Forest fire near La Ronge Sask. Canada"
  python -m finetune.predict runs/x --file tweets.csv --output predicted.csv
  python -m finetune.predict runs/x --file test.csv --output submission.csv --submission id
  tail -f messages.txt | python -m finetune.predict runs/x --json

A file has the columns that the model was trained with; texts alone stand for the column of the text.
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = command.Parser(prog="python -m finetune.predict", description=__doc__, epilog=EXAMPLES)
    parser.add_argument("run", nargs="?", type=Path, help="a fine-tuning run (default: the newest one in runs/)")
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts to classify; none: lines of standard input")
    parser.add_argument("--file", help="table of texts: .csv .tsv .jsonl .json .parquet .xlsx, plain or compressed")
    parser.add_argument("--output", type=Path, help="CSV file to write; it must not exist yet (with --file)")
    parser.add_argument("--encoding", help="encoding of that table, such as latin-1 (default: utf-8)")
    parser.add_argument("--submission", metavar="COLUMN", help="write this column and the predicted class, no more")
    parser.add_argument("--json", action="store_true", help="one JSON object for each text")
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    options = parse(arguments)
    if (options.file is None) != (options.output is None):
        raise UserError("--file and --output belong together: name both a table to read and a CSV file to write")
    for name in ("submission", "encoding"):
        if getattr(options, name) is not None and options.file is None:
            raise UserError(f"--{name} needs a table: name it with --file, and --output")
    if options.file is not None and (options.texts or options.json):
        raise UserError("--file excludes texts and --json: it writes a CSV file")
    if options.output is not None:
        files.check_new(options.output)
    configure_process()
    import torch

    from finetune import saved_model
    from finetune.table import classify_table
    from mlm.checkpoint import checkpoint
    from mlm.config import RUNS
    from mlm.distributed.device import with_recorded_precision
    from mlm.distributed.world import init_world

    path = checkpoint.run_of(options.run) if options.run else saved_model.newest(Path(RUNS))
    model = saved_model.load(path, torch.device("cpu"))
    world = with_recorded_precision(init_world(), model.precision)
    if options.file is not None:
        steps = classify_table(
            model, options.file, options.output, options.submission, world, options.encoding or "utf-8"
        )
        begun = next(steps)  # here, so that a table that cannot be read shows no bar
        with tqdm(total=begun.total, unit="text", disable=None, file=streams.messages()) as bar:
            for step in steps:
                bar.update(step.done - bar.n)
        print(step.remarks, file=sys.stderr)
        return
    columns = model.reader.columns
    if len(columns) > 1:
        raise UserError(f"the model classifies pairs ({', '.join(columns)}): give them as columns of a --file")
    show = _json if options.json else _line

    def answer(*texts: str) -> None:
        check_text(texts, "text", mend="give it in UTF-8")
        for text, found in zip(texts, model.classify([{columns[0]: text} for text in texts], world), strict=True):
            command.show(show(text, model.class_names, found))
            if found.truncated:
                print(f"truncated to the encoder's limit: {text[:40]!r}...", file=sys.stderr)

    if options.texts:
        answer(*options.texts)
    else:
        command.answer_lines(answer)


def _line(text: str, classes: Sequence[str], found: "Prediction") -> str:
    if len(classes) == 1 and found.probabilities:
        return f"{classes[0]} {found.probabilities[0]:.4g}    {text}"
    ranked = sorted(zip(found.probabilities, classes, strict=True), reverse=True) if found.probabilities else []
    shown = (
        "  ".join(f"{name} {probability:.1%}" for probability, name in ranked[:MOST_SHOWN]) or "empty after cleaning"
    )
    return f"{shown}    {text}"


def _json(text: str, classes: Sequence[str], found: "Prediction") -> str:
    if len(classes) == 1:
        return json.dumps({"text": text, "predicted": next(iter(found.probabilities), None)}, ensure_ascii=False)
    probabilities = dict(zip(classes, found.probabilities, strict=True)) if found.probabilities else {}
    predicted = max(probabilities, key=probabilities.__getitem__, default=None)
    return json.dumps({"text": text, "predicted": predicted, "probabilities": probabilities}, ensure_ascii=False)


script = partial(command.run, main)

if __name__ == "__main__":
    script()
