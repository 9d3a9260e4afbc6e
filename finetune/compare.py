"""Compare finished fine-tuning runs: a table, and a figure of means, deviations and single trials."""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pydantic import Field

import configs
from configs import Config, UserError, command
from finetune.config import FinetuneConfig
from finetune.data.class_names import short
from finetune.evaluation import figures, results
from finetune.evaluation.differences import Difference
from finetune.evaluation.metrics import METRIC_NAMES, Metric
from finetune.evaluation.results import MeanStd, Results
from mlm.checkpoint import checkpoint
from mlm.tracking import plots

LONGEST_PATH = 100

EXPLANATION = """\
The other runs are compared with the first one. If a run has the folds, test texts and seeds of the first run, the table
shows its difference to the first run (plus: its score is higher) with a 95 % interval over the folds; the seeds
of a fold share their test examples and are averaged first. With a single test part it is over the seeds, and says
nothing about other test examples. An interval that contains 0 leaves the difference undecided. TF-IDF and the
majority class are the baselines of the first run.

examples:
  python -m finetune.compare runs/a runs/b runs/c
  python -m finetune.compare runs/pretrained runs/random --metric mcc --output pretraining.png
  python -m finetune.compare runs/a runs/b --json | python -m json.tool
"""


class Row(Config):
    """A run in the table."""

    run: str
    head: str
    encoder: str
    parameters: int
    trained: int
    trials: int
    validation: MeanStd | None
    test: MeanStd | None
    difference: Difference | None
    """Difference to the first run; None for the first run itself, and if trials do not pair."""
    scores: tuple[float, ...] = Field(exclude=True)
    """The metric of each trial on its test part."""


class Comparison(Config):
    """Runs beside the first of them."""

    metric: Metric
    runs: tuple[Row, ...]
    baselines: dict[str, MeanStd]
    """Scores of the baselines of the first run."""
    notes: tuple[str, ...]
    """Warnings against comparing what differs."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = command.Parser(prog="python -m finetune.compare", description=__doc__, epilog=EXPLANATION)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="directory of a finished fine-tuning run")
    metric_help = "one of %(choices)s (default: the metric of the first run's early stopping)"
    parser.add_argument("--metric", choices=METRIC_NAMES, metavar="METRIC", help=metric_help)
    parser.add_argument("--output", type=Path, default=Path("compare.png"), help="the figure (default: compare.png)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    options = parse(arguments)
    if options.output.suffix.lower() != ".png":
        raise UserError(f"--output {options.output}: the figure is a PNG file, so its name must end in .png")
    if not options.output.parent.is_dir():
        raise UserError(f"--output {options.output}: there is no folder {options.output.parent}: make it first")
    found = compare(options.runs, options.metric)
    drawn = [(row.run, row.scores) for row in found.runs]
    means = {name: score.mean for name, score in found.baselines.items()}
    plots.write(figures.comparison_figure(drawn, means, found.metric), options.output)
    if options.json:
        values = {**found.model_dump(), "picture": str(options.output)}
        command.show(json.dumps(values, ensure_ascii=False, indent=2))
        return
    lines = table(found.runs, found.baselines, found.metric), *(f"note: {note}" for note in found.notes)
    command.show("\n".join(lines))
    print(f"picture: {options.output}")


def compare(runs: Sequence[Path], metric: Metric | None = None) -> Comparison:
    """Compare finished runs with the first one, by its own metric if none is given; raise a UserError for others."""
    folders = list(map(checkpoint.run_of, runs))
    names, found = _names(folders), [results.read(folder) for folder in folders]
    first, metric = found[0], metric or found[0].metric
    rows = tuple(
        Row(
            run=name,
            head=run.head,
            encoder=_encoder(folder),
            parameters=run.parameters.all,
            trained=run.parameters.trained,
            trials=len(run.trials),
            validation=None if run.validation is None else run.validation.get(metric),
            test=run.test.get(metric),
            difference=None if run is first else results.difference_of(run.trials, first.trials, metric),
            scores=tuple(value for trial in run.trials if (value := trial.test.get(metric)) is not None),
        )
        for name, folder, run in zip(names, folders, found, strict=True)
    )
    simplest = "mean number" if len(first.classes) == 1 else "majority class"
    scores = {"TF-IDF": first.baselines.tfidf.get(metric), simplest: first.baselines.majority.get(metric)}
    notes = tuple(note for name, run in zip(names, found, strict=True) for note in _notes(names[0], name, first, run))
    known = {name: score for name, score in scores.items() if score is not None}
    return Comparison(metric=metric, runs=rows, baselines=known, notes=notes)


def table(rows: Sequence[Row], baselines: dict[str, MeanStd], metric: str) -> str:
    """Return the rows as lines of text, followed by the baselines."""
    names = "run", "head", "encoder", "trained parameters", f"test {metric}", "trials", "validation", "to the first run"
    cells = [
        (
            row.run,
            short(row.head),
            row.encoder,
            f"{row.trained:,} of {row.parameters:,}",
            results.shown(row.test),
            str(row.trials),
            results.shown(row.validation),
            results.shown(row.difference),
        )
        for row in rows
    ]
    cells += [(name, "", "", "", str(score), "", "", "") for name, score in baselines.items()]
    return results.aligned([names, *cells])


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the runs' names: as many last parts of their paths as tell them apart."""
    whole = [folder.resolve() for folder in folders]
    for folder in folders:
        if whole.count(folder.resolve()) > 1:
            raise UserError(f"{folder} is named twice: name each run once")
    last = 1
    while len({folder.parts[-last:] for folder in whole}) < len(whole):
        last += 1
    return [short("/".join(folder.parts[-last:]), LONGEST_PATH) for folder in whole]


def _encoder(folder: Path) -> str:
    """Return the source of a run's encoder, such as `runs/x` or `random (runs/x)`."""
    encoder = configs.read(FinetuneConfig, folder / checkpoint.CONFIG).encoder
    source = short(encoder.hub or encoder.run or "newest run", LONGEST_PATH)
    return f"random ({source})" if encoder.random else source


def _notes(first_name: str, name: str, first: Results, run: Results) -> list[str]:
    """Return warnings against a comparison of a run with the first one."""
    notes = []
    if run.classes != first.classes:
        notes.append(f"{name} has other classes than {first_name}: the scores of different tasks cannot be compared")
    sizes = [(part, getattr(first.data, part), getattr(run.data, part)) for part in ("train", "validation", "test")]
    differing = [f"{part} {there:,} against {here:,}" for part, here, there in sizes if here != there]
    if differing:
        notes.append(f"{name} has other data than {first_name} ({', '.join(differing)} examples): compare with care")
    if {(t.fold, t.seed) for t in run.trials} != {(t.fold, t.seed) for t in first.trials}:
        notes.append(
            f"{name} has {results.count_trials(run.trials)}, {first_name} {results.count_trials(first.trials)}: "
            "folds or seeds differ, so there is no paired difference"
        )
    elif not results.same_tests(run.trials, first.trials):
        notes.append(f"{name} was tested on other texts than {first_name}, so there is no paired difference")
    return notes


script = partial(command.run, main)

if __name__ == "__main__":
    script()
