"""Measure training, the data path and start-up beside the usual tools: in turn, on one text and machine.

Both sides train models of the same size without dropout, on the same sentences in the same tokens, with about as many
tokens a step. Our side is the training loop of `mlm.pretrain`; their side is the Trainer of the transformers library in
a process of its own. Every figure is a median with the lowest and the highest; the JSON states the exact definition.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING

from configs import command
from mlm.benchmark import frame
from mlm.benchmark.measure import Case
from mlm.distributed.process import configure_process

if TYPE_CHECKING:
    from mlm.benchmark.speed import Bench


def cases() -> "dict[str, Callable[[Bench, str], list[Case]]]":
    """Return the cases by name; each returns cases by that name, or by names that begin with it."""
    # Imported here, because this module is imported by processes whose memory without torch is measured.
    from mlm.benchmark import data, loss, pairs, scale, speed, startup

    return {
        **{f"training/{reference}": speed.training for reference in speed.REFERENCES},
        "time-to-loss/one-sentence-a-row": loss.time_to_loss,
        "time-to-loss/concatenate-and-chunk": loss.time_to_loss,
        "loss-curves/concatenate-and-chunk": loss.loss_curves,
        "loss-curves/modernbert": loss.loss_curves,
        "data/assemble-and-mask": data.assemble_and_mask,
        "data/wait": speed.data_wait,
        "data/build-shards": data.build_shards,
        "scale": scale.scale,
        **{f"long-rows/{segments}": speed.long_rows for segments in speed.SEGMENTS},
        "pairs": pairs.pairs,
        "start-up": startup.start_up,
        "resume": startup.resume,
        "saving": startup.saving,
    }


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    configure_process()
    options, known = parse(arguments), cases()
    frame.check_installed()
    options.output.mkdir(parents=True, exist_ok=True)
    first, *_ = benches = prepare(options)

    def measure(bench: "Bench", name: str) -> list[Case]:
        return [replace(case, name=case.name + bench.label) for case in known[name](bench, name)]

    chosen = [
        (name + bench.label, partial(measure, bench, name))
        for bench, name in product(benches, options.cases or known)
        if bench is first or name.startswith("training/")
    ]
    frame.run(chosen, first.world, first.describe(), options.output)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; a wrong option and an unknown case are a UserError."""
    parser = frame.parser("mlm.benchmark", __doc__, cases(), "runs/benchmark")
    add = parser.add_argument
    add("--text", action="append", metavar="FILE", help="file or pattern, repeatable; default: Python's documentation")
    add("--size", action="append", type=_size, metavar="LxD", help="layers and width, repeatable; default: 4x256")
    add("--vocabulary", action="append", type=frame.count, metavar="N", help="its size, repeatable; default: 8192")
    add("--row-length", action="append", type=frame.count, metavar="L", help="in tokens, repeatable; default: 128")
    add("--batch-tokens", type=frame.count, metavar="N", help="slots of a step; default: 2048, on CUDA 32768")
    add("--curve-steps", type=frame.count, metavar="N", help="steps of loss curves; default: 400, with --quick 8")
    return parser.parse_intermixed_args(arguments)


def _size(text: str) -> tuple[int, int]:
    layers, _, width = text.partition("x")
    if not (layers.isdigit() and width.isdigit() and int(layers) and int(width) and int(width) % 64 == 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not layers x width, a multiple of 64, such as 6x512")
    return int(layers), int(width)


def prepare(options: argparse.Namespace) -> "list[Bench]":
    """Return a bench for each size of the command line; only training is measured on more than the first."""
    import torch

    from mlm.benchmark.speed import FULL, FULL_ON_GPU, QUICK, Bench

    scale = QUICK if options.quick else FULL_ON_GPU if torch.cuda.is_available() else FULL
    scale = frame.with_options(scale, options)
    text = ["text.source.kind=files", f"text.source.paths={json.dumps(options.text)}"] if options.text else []
    sizes = list(product(options.size or [(4, 256)], options.vocabulary or [8192], options.row_length or [128]))
    benches = []
    for (layers, width), vocabulary, row_length in sizes:
        overrides = (
            f"model.encoder={{layers: {layers}, width: {width}, heads: {width // 64}, feedforward_width: {4 * width}}}",
            f"vocabulary.size={vocabulary}",
            f"data.row_length={row_length}",
            f"train.batch_rows={max(scale.batch_tokens // row_length, 1)}",
        )
        label = f"/{layers}x{width}/{vocabulary}/{row_length}" if len(sizes) > 1 else ""
        benches.append(Bench(options.output, scale, (*overrides, *text), label))
    return benches


if __name__ == "__main__":
    command.run(main)
