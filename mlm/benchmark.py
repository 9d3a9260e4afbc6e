"""Measure training, the data path and start-up beside what people use today: in turn, on one text and machine.

Both sides train the same model, BERT of 4 layers of width 256 without dropout, on the same sentences in the same
tokens, about as many of them a step. Ours is the shipped loop, with packed rows and in bfloat16 where the hardware
has it; theirs is the transformers library's own Trainer. Every figure is a median with the lowest and the highest;
what exactly it counts stands in the JSON.
"""

import argparse
import difflib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from configs import UserError, command
from mlm import benchmark_cases, benchmark_jobs, benchmark_processes, comparison, competition
from mlm.benchmark_cases import FULL, QUICK, RECIPE, Bench
from mlm.comparison import Case

CASES: dict[str, Callable[[Bench, str], list[Case]]] = {
    "training/one-sentence-a-row": benchmark_cases.one_sentence_a_row,
    "training/concatenate-and-chunk": benchmark_cases.concatenate_and_chunk,
    "data/assemble-and-mask": benchmark_cases.assemble_and_mask,
    "data/build-shards": benchmark_processes.build_shards,
    "start-up": benchmark_processes.start_up,
    "saving": benchmark_jobs.saving,
    "processes": benchmark_jobs.processes,
}
"""Each returns what it measured, by the case's name or by names that begin with it."""


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    options = parse(arguments)
    for name in options.cases:
        if name not in CASES:
            near = difflib.get_close_matches(name, CASES, n=1)
            raise UserError(f"no such case: {name}: " + (f"did you mean {near[0]}?" if near else ", ".join(CASES)))
    competition.check_installed()
    output: Path = options.output
    output.mkdir(parents=True, exist_ok=True)
    bench = prepare(options)
    cases: list[Case] = []
    try:
        for name in options.cases or CASES:
            print(f"measuring {name}", file=sys.stderr)
            cases += CASES[name](bench, name)
            write(bench, cases)
    finally:  # Ctrl-C costs only the case that it interrupts
        if cases:
            print(comparison.table(cases))
    print(f"\nplot: {output / 'benchmark.png'}    all figures: {output / 'benchmark.json'}")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = command.Parser(
        prog="python -m mlm.benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("cases", nargs="*", metavar="CASE", help=f"what to measure; all: {', '.join(CASES)}")
    add("--output", type=Path, default=Path("runs/benchmark"), metavar="DIR", help="default: %(default)s")
    add("--repeats", type=int, metavar="N", help=f"turns of each side; {FULL.repeats}, {QUICK.repeats} if quick")
    add("--quick", action="store_true", help="look within a minute: small batches, short turns")
    add("--text", action="append", metavar="FILE", help="file or pattern, repeatable; default: Python's documentation")
    add("--vocabulary", type=int, default=8192, metavar="N", help="tokens of the vocabulary; default: %(default)s")
    options = parser.parse_intermixed_args(arguments)
    if options.repeats is not None and options.repeats < 1:
        parser.error("--repeats must be 1 or more")
    return options


def prepare(options: argparse.Namespace) -> Bench:
    """Return what the command line asks for."""
    scale = QUICK if options.quick else FULL
    text = (
        ["text.source.kind=files", f"text.source.paths={json.dumps(options.text, ensure_ascii=False)}"]
        if options.text
        else []
    )
    return Bench(
        options.output,
        replace(scale, repeats=options.repeats or scale.repeats),
        (*RECIPE, f"vocabulary.size={options.vocabulary}", f"train.batch_rows={scale.batch_rows}", *text),
    )


def write(bench: Bench, cases: Sequence[Case]) -> None:
    """Write the JSON and the plot of what was measured so far."""
    from importlib import metadata

    from mlm import run

    about: dict[str, Any] = run.environment(bench.world.device)
    del about["git_diff"]
    about["versions"] |= {name: metadata.version(name) for name in competition.PACKAGES}
    manifest = bench.corpus.shards.manifest
    about |= {
        "precision": str(bench.world.dtype).removeprefix("torch."),
        "scale": asdict(bench.scale),
        "recipe": bench.recipe.model_dump(mode="json"),
        "training_tokens": manifest.train.tokens,
        "text_fingerprint": manifest.text_fingerprint,
        "cases": [asdict(case) for case in cases],
    }
    run.write_json(bench.output / "benchmark.json", about)
    comparison.draw(cases, bench.output / "benchmark.png")


if __name__ == "__main__":
    command.run(main)
