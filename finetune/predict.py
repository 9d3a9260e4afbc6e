"""Classify texts with a fine-tuned model: given as words, as lines of standard input, or as a table."""

import argparse
import csv
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from configs import UserError, command
from finetune import saved
from finetune.classification import predict
from finetune.saved import Saved
from mlm.distributed import World, find_world
from mlm.recipe import Recipe

AT_ONCE = 2048
"""Texts of a file that are tokenised, sorted by length and classified together."""

EXAMPLES = """
examples:
  python -m finetune.predict runs/x "Forest fire near La Ronge Sask. Canada"
  python -m finetune.predict runs/x --file tweets.csv --output predicted.csv
  python -m finetune.predict runs/x --file test.csv --output submission.csv --submission id
  tail -f messages.txt | python -m finetune.predict runs/x --json

A file's columns are those that the model was trained with; texts alone stand for the column of the text.
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = command.Parser(
        prog="python -m finetune.predict",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", nargs="?", type=Path, help="a fine-tuning run (default: the newest one in runs/)")
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts to classify; none: lines of standard input")
    parser.add_argument("--file", type=Path, help="table of texts: .csv .tsv .jsonl .parquet, plain or compressed")
    parser.add_argument("--output", type=Path, help="CSV file to write; it must not exist yet (with --file)")
    parser.add_argument("--submission", metavar="COLUMN", help="write this column and the predicted class, no more")
    parser.add_argument("--json", action="store_true", help="one JSON object for each text")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    options = parse(arguments)
    if (options.file is None) != (options.output is None):
        raise UserError("--file and --output go together: name both a table to read and a CSV file to write")
    if options.submission is not None and options.file is None:
        raise UserError("--submission is made of a table: name it with --file, and --output")
    if options.file is not None and (options.texts or options.json):
        raise UserError("--file goes without texts and without --json: what it makes is a CSV file")
    world = find_world("auto")
    model = saved.load(options.run or saved.newest(Path(Recipe().runs)), world.device)
    if options.file is not None:
        print(classify_file(model, options.file, options.output, options.submission, world), file=sys.stderr)
        return
    show = _json if options.json else _line
    for texts in [options.texts] if options.texts else ([line] for line in command.lines() if line.strip()):
        for text, chances in zip(texts, classify(model, _rows(model, texts), world), strict=True):
            print(show(text, model.classes, chances), flush=True)


def classify(model: Saved, rows: Sequence[Mapping[str, str]], world: World) -> list[list[float]]:
    """Return the probability of every class for each row of a table, cleaned as in training.

    Raises:
        UserError: a text is empty.

    """
    texts = [model.recipe.data.example(row) for row in rows]
    if not all(map(all, texts)):
        raise UserError("there is an empty text: leave it out")
    encoder = model.classifier.encoder
    tokens = encoder.tokenise(texts, min(model.recipe.encoder.longest, encoder.longest))
    found: list[list[float]] = predict(model.classifier, tokens, encoder.pad_id, world).tolist()
    return found


def classify_file(model: Saved, source: Path, output: Path, submission: str | None, world: World) -> str:
    """Classify every row of a table into a CSV file; return what there is to say about it.

    The file holds the table's columns, the predicted class, and a column of probabilities for each class; with
    `submission`, that column and the predicted class alone, under the name of the column that was trained on. Rows
    with an empty text get no class.

    Raises:
        UserError: the table cannot be read or lacks a column, or the output is there already.

    """
    columns = model.recipe.data.text_columns()
    needed = columns if submission is None else (*columns, submission)
    rows = model.recipe.data.rows(source, needed)
    empty = 0
    partial = output.with_name(output.name + ".partial")
    if output.exists():
        raise UserError(f"{output} is there already: name another file, or remove it")
    with partial.open("w", encoding="utf-8", newline="") as file, tqdm(total=len(rows), unit="text") as bar:
        writer = csv.writer(file)
        writer.writerow(_header(list(rows[0]), model, submission))
        for start in range(0, len(rows), AT_ONCE):
            part = rows[start : start + AT_ONCE]
            whole = [row for row in part if all(model.recipe.data.example(row))]
            chances = iter(classify(model, whole, world) if whole else [])
            for row in part:
                found = next(chances) if all(model.recipe.data.example(row)) else None
                empty += found is None
                writer.writerow(_cells(row, found, model.classes, submission))
            bar.update(len(part))
    if empty == len(rows):
        partial.unlink()
        raise UserError(f"{source}: the text in each of the {len(rows)} rows is empty (column {columns[0]!r})")
    partial.replace(output)
    return f"{len(rows):,} rows classified into {output}" + (f"; {empty:,} empty texts got no class" if empty else "")


def _header(there: list[str], model: Saved, submission: str | None) -> list[str]:
    if submission is not None:
        return [submission, model.recipe.data.label_column()]
    return [*there, "predicted", *(f"probability_{name}" for name in model.classes)]


def _cells(
    row: Mapping[str, str], chances: list[float] | None, classes: Sequence[str], submission: str | None
) -> list[str]:
    predicted = "" if chances is None else classes[chances.index(max(chances))]
    if submission is not None:
        return [row[submission], predicted]
    return [*row.values(), predicted, *(f"{chance:.6f}" for chance in chances or [])]


def _rows(model: Saved, texts: Sequence[str]) -> list[dict[str, str]]:
    columns = model.recipe.data.text_columns()
    if len(columns) > 1:
        raise UserError(f"the model classifies pairs ({', '.join(columns)}): give them as columns of a --file")
    return [{columns[0]: text} for text in texts]


def _line(text: str, classes: Sequence[str], chances: Sequence[float]) -> str:
    ranked = sorted(zip(chances, classes, strict=True), reverse=True)
    return f"{'  '.join(f'{name} {chance:.1%}' for chance, name in ranked)}    {text}"


def _json(text: str, classes: Sequence[str], chances: Sequence[float]) -> str:
    probabilities = dict(zip(classes, chances, strict=True))
    predicted = max(probabilities, key=probabilities.__getitem__)
    return json.dumps({"text": text, "predicted": predicted, "probabilities": probabilities}, ensure_ascii=False)


if __name__ == "__main__":
    command.run(main)
