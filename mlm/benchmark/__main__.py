"""Measure training, the data path and start-up beside what people use today: in turn, on one text and machine.

Both sides train models of the same size without dropout, ours BERT's, on the same sentences in the same tokens, about
as many of them a step. Ours is the shipped loop, with packed rows, in bfloat16 or float32, whichever the machine
multiplies faster; theirs is the transformers library's own Trainer, in a process of its own, which is left as its users
run it, in the precision that is said of it. Every figure is a median with the lowest and the highest; what exactly it
counts stands in the JSON.
"""

import argparse
import difflib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

from configs import UserError, command
from mlm.benchmark import curves, data, hf_trainer, loss, measure, processes, speed, startup
from mlm.benchmark.measure import Case
from mlm.benchmark.speed import FULL, FULL_ON_GPU, QUICK, RIVALS, Bench

CASES: dict[str, Callable[[Bench, str], list[Case]]] = {
    **dict.fromkeys(RIVALS, speed.training),
    "time-to-loss/one-sentence-a-row": loss.time_to_loss,
    "time-to-loss/concatenate-and-chunk": loss.time_to_loss,
    "loss-curves/concatenate-and-chunk": curves.loss_curves,
    "loss-curves/modernbert": curves.loss_curves,
    "data/assemble-and-mask": data.assemble_and_mask,
    "data/wait": data.data_wait,
    "data/build-shards": processes.build_shards,
    "start-up": processes.start_up,
    "resume": startup.resume,
    "saving": startup.saving,
}
"""Each returns what it measured, by the case's name or by names that begin with it."""


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    options = parse(arguments)
    for name in options.cases:
        if name not in CASES:
            near = difflib.get_close_matches(name, CASES, n=1)
            raise UserError(f"no such case: {name}: " + (f"did you mean {near[0]}?" if near else ", ".join(CASES)))
    hf_trainer.check_installed()
    output: Path = options.output
    output.mkdir(parents=True, exist_ok=True)
    first, *_ = benches = prepare(options)
    cases: list[Case] = []
    try:
        for bench, name in product(benches, options.cases or CASES):
            if bench is not first and name not in RIVALS:
                continue
            print(f"measuring {name}{bench.label}", file=sys.stderr)
            cases += CASES[name](bench, name)
            write(first, cases)
    finally:  # Ctrl-C costs only the case that it interrupts
        if cases:
            print(measure.table(cases))
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
    add("--size", action="append", type=_size, metavar="LxD", help="layers and width, repeatable; default: 4x256")
    add("--vocabulary", action="append", type=_count, metavar="N", help="its tokens, repeatable; default: 8192")
    add("--row-length", action="append", type=_count, metavar="L", help="tokens of a row, repeatable; default: 128")
    add("--batch-tokens", type=_count, metavar="N", help="slots of a training step; default: 2048, on CUDA 32768")
    add(
        "--curve-steps",
        type=_count,
        metavar="N",
        help=f"length of loss curves; {FULL.curve_steps}, {QUICK.curve_steps} if quick",
    )
    options = parser.parse_intermixed_args(arguments)
    if options.repeats is not None and options.repeats < 1:
        parser.error("--repeats must be 1 or more")
    return options


def _size(text: str) -> tuple[int, int]:
    layers, _, width = text.partition("x")
    if not (layers.isdigit() and width.isdigit() and int(layers) and int(width) and int(width) % 64 == 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not layers x width, a multiple of 64, such as 6x512")
    return int(layers), int(width)


def _count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def prepare(options: argparse.Namespace) -> list[Bench]:
    """Return what the command line asks for: training is measured at every size, all else at the first."""
    import torch

    scale = QUICK if options.quick else FULL_ON_GPU if torch.cuda.is_available() else FULL
    scale = replace(
        scale,
        repeats=options.repeats or scale.repeats,
        batch_tokens=options.batch_tokens or scale.batch_tokens,
        curve_steps=options.curve_steps or scale.curve_steps,
    )
    text = (
        ["text.source.kind=files", f"text.source.paths={json.dumps(options.text, ensure_ascii=False)}"]
        if options.text
        else []
    )
    sizes = list(product(options.size or [(4, 256)], options.vocabulary or [8192], options.row_length or [128]))
    return [
        Bench(
            options.output,
            scale,
            (
                f"model.encoder.layers={layers}",
                f"model.encoder.width={width}",
                f"model.encoder.heads={width // 64}",
                f"model.encoder.feedforward_width={4 * width}",
                f"vocabulary.size={vocabulary}",
                f"data.row_length={row_length}",
                f"train.batch_rows={max(scale.batch_tokens // row_length, 1)}",
                *text,
            ),
            f"/{layers}x{width}/{vocabulary}/{row_length}" if len(sizes) > 1 else "",
        )
        for (layers, width), vocabulary, row_length in sizes
    ]


def write(bench: Bench, cases: Sequence[Case]) -> None:
    """Write the JSON and the plot of what was measured so far."""
    from importlib import metadata

    from mlm.tracking import run_directory

    about: dict[str, Any] = run_directory.environment(bench.world)
    del about["git_diff"]
    about["versions"] |= {name: metadata.version(name) for name in hf_trainer.PACKAGES}
    manifest = bench.corpus.shards.manifest
    about |= {
        "scale": asdict(bench.scale),
        "recipe": bench.recipe.model_dump(mode="json"),
        "training_tokens": manifest.train.tokens,
        "text_fingerprint": manifest.text_fingerprint,
        "cases": [asdict(case) for case in cases],
    }
    run_directory.write_json(bench.output / "benchmark.json", about)
    measure.draw(cases, bench.output / "benchmark.png")
    if any(case.curves for case in cases):
        measure.draw_curves(cases, bench.output / "loss-curves.png")


if __name__ == "__main__":
    command.run(main)
