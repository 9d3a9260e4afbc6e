"""Classify texts with a fine-tuned model: from the command line, from standard input, or from a table."""

import argparse
import csv
import json
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from configs import UserError, check_text, command, files, streams
from mlm.distributed.process import configure_process
from tokenizer.sources.readers import unique_names

if TYPE_CHECKING:  # imported by `main`, because configure_process comes before torch
    from finetune.saved_model import Prediction, SavedModel
    from mlm.distributed.world import World

AT_ONCE = 2048
"""Number of texts of a file that are tokenised, sorted by length and classified together."""
MOST_SHOWN = 10
"""Number of classes in a line, the most probable ones."""
MOST_CHANCES = 2_000_000
"""Largest number of probabilities in memory: with thousands of classes, fewer texts are classified together."""

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
    parser.add_argument("--file", type=Path, help="table of texts: .csv .tsv .jsonl .parquet, plain or compressed")
    parser.add_argument("--output", type=Path, help="CSV file to write; it must not exist yet (with --file)")
    parser.add_argument("--encoding", default="utf-8", help="encoding of that table, such as latin-1 (default: utf-8)")
    parser.add_argument("--submission", metavar="COLUMN", help="write this column and the predicted class, no more")
    parser.add_argument("--json", action="store_true", help="one JSON object for each text")
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    options = parse(arguments)
    if (options.file is None) != (options.output is None):
        raise UserError("--file and --output belong together: name both a table to read and a CSV file to write")
    if options.submission is not None and options.file is None:
        raise UserError("--submission needs a table: name it with --file, and --output")
    if options.file is not None and (options.texts or options.json):
        raise UserError("--file excludes texts and --json: it writes a CSV file")
    if options.output is not None:
        files.check_new(options.output)
    configure_process()
    import torch

    from finetune import saved_model
    from mlm.checkpoint import checkpoint
    from mlm.config import RUNS
    from mlm.distributed.device import with_recorded_precision
    from mlm.distributed.world import init_world

    path = checkpoint.run_of(options.run) if options.run else saved_model.newest(Path(RUNS))
    model = saved_model.load(path, torch.device("cpu"))
    world = with_recorded_precision(init_world(), model.precision)
    if options.file is not None:
        said = classify_file(model, options.file, options.output, options.submission, world, options.encoding)
        print(said, file=sys.stderr)
        return
    columns = model.config.data.reader.columns
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


def classify_file(
    model: "SavedModel", source: Path, output: Path, submission: str | None, world: "World", encoding: str
) -> str:
    """Classify every row of a table into a CSV file; return remarks in one line.

    The file has the table's columns, the predicted class, and a column of probabilities for each class; a name that the
    table has already gets a number. With `submission` it has that column and the predicted class only, under the name
    of the training labels' column. Rows with an empty text get no class, but in a submission the most frequent one of
    training; an older model does not tell it, and the one predicted most often takes its place. If all are empty, that
    is a UserError.
    """
    reader, classes = model.config.data.reader, model.class_names
    columns = () if submission is None else (submission,)
    if submission == reader.label:
        raise UserError(
            f"--submission {submission}: that is the column of the classes: name the one that tells the rows"
        )
    rows = reader.rows(source, columns, all_columns=submission is None, encoding=encoding)
    empty, truncated, at_once = 0, 0, min(AT_ONCE, max(MOST_CHANCES // len(classes), 1))
    header = unique_names([*rows[0], "predicted", *(f"probability_{name}" for name in classes)])
    lines = [header if submission is None else [submission, reader.label]]
    with (
        files.written(output, new=True) as partial,
        partial.open("w", encoding="utf-8", newline="") as file,
        tqdm(total=len(rows), unit="text", file=streams.messages()) as bar,
    ):
        writer = csv.writer(file)
        for start in range(0, len(rows), at_once):
            part = rows[start : start + at_once]
            for row, found in zip(part, model.classify(part, world), strict=True):
                empty += not found.chances
                truncated += found.truncated
                predicted = classes[found.chances.index(max(found.chances))] if found.chances else ""
                if submission is None:
                    shown = [f"{chance:.6f}" for chance in found.chances] or [""] * len(classes)
                    lines.append([*row.values(), predicted, *shown])
                else:
                    lines.append([row[submission], predicted])
            if submission is None:
                writer.writerows(lines)
                lines.clear()
            bar.update(len(part))
        if empty == len(rows):
            names = ", ".join(reader.columns)
            raise UserError(f"{source}: the text in each of the {len(rows)} rows is empty ({names})")
        got = "no class" if submission is None or not empty else _fill_empty(lines, model.most_frequent)
        writer.writerows(lines)
    remarks = {f"empty texts got {got}": empty, "were truncated to the encoder's limit": truncated}
    said = [f"{number:,} {remark}" for remark, number in remarks.items() if number]
    missing = [name for name in reader.cleaning.prefix if name not in rows[0]]
    said += [f"there is no column {name}: texts are classified without it" for name in missing]
    return "; ".join([f"{len(rows):,} rows classified into {output}", *said])


def _fill_empty(lines: Sequence[list[str]], most_frequent: str | None) -> str:
    """Fill in the missing classes of a submission, whose first line is the header; return the class and its origin."""
    known = most_frequent or Counter(predicted for _, predicted in lines[1:] if predicted).most_common(1)[0][0]
    for line in lines[1:]:
        line[1] = line[1] or known
    if most_frequent is None:
        return f"{known}, the class predicted most often here: this older model does not tell that of training"
    return f"{known}, the most frequent class of training"


def _line(text: str, classes: Sequence[str], found: "Prediction") -> str:
    ranked = sorted(zip(found.chances, classes, strict=True), reverse=True) if found.chances else []
    shown = "  ".join(f"{name} {chance:.1%}" for chance, name in ranked[:MOST_SHOWN]) or "empty after cleaning"
    return f"{shown}    {text}"


def _json(text: str, classes: Sequence[str], found: "Prediction") -> str:
    probabilities = dict(zip(classes, found.chances, strict=True)) if found.chances else {}
    predicted = max(probabilities, key=probabilities.__getitem__, default=None)
    return json.dumps({"text": text, "predicted": predicted, "probabilities": probabilities}, ensure_ascii=False)


script = partial(command.run, main)

if __name__ == "__main__":
    script()
