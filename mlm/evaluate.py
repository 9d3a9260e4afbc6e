"""Measure a pretrained encoder on held-out text: by kind of mask, and in bits per byte of hidden words."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from configs import UserError, command
from mlm.distributed.process import configure_process


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = command.Parser(prog="python -m mlm.evaluate", description=__doc__)
    parser.add_argument("run", nargs="?", type=Path, help="run directory (default: the newest one in runs/)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    options = parse(arguments)
    configure_process()
    import torch

    from mlm.build import Recorded, corpus_of
    from mlm.checkpoint import checkpoint
    from mlm.distributed.device import with_recorded_precision
    from mlm.distributed.world import init_world
    from mlm.evaluation.by_corruption import UNITS, by_corruption, masked_by
    from mlm.evaluation.results import bits_line, measure_bits_per_byte, shown
    from mlm.tracking import run_directory

    named = options.run or run_directory.newest()
    path, folder = checkpoint.run_of(named), checkpoint.resolve(named)
    print(f"run: {path}, {folder.name}", file=sys.stderr)
    model, _, config = checkpoint.load_model(folder, torch.device("cpu"))
    identity = run_directory.run_identity(path)
    world = with_recorded_precision(init_world(), identity.precision)
    model.to(world.device)
    corpus = corpus_of(config, Recorded.of(path, folder, identity.data))
    if identity.data.get("text_fingerprint") != corpus.manifest.text_fingerprint:
        raise UserError(
            f"the text of {path} is not the text that the run was trained on, so no part of it is known to be held out"
        )
    mask_id = corpus.heldout.special.mask
    scores = {unit: by_corruption(model, masked_by(unit, config, corpus, world), world, mask_id) for unit in UNITS}
    bits = measure_bits_per_byte(config, corpus, model, world) if config.evaluation.words else None
    if options.json:
        command.show(json.dumps(run_directory.finite({"masks": scores, "bits_per_byte": bits}), allow_nan=False))
        return
    command.show(f"{'masked':8}{'seen as':>10}{'targets':>10}{'loss (nats)':>13}{'perplexity':>12}{'accuracy':>10}")
    for unit, kinds in scores.items():
        for kind, s in kinds.items():
            loss, perplexity = shown(s["loss"], ".3f"), shown(s["perplexity"], ".2f")
            numbers = f"{s['targets']:>10,}{loss:>13}{perplexity:>12}{shown(s['accuracy'], '.1%'):>10}"
            command.show(f"{unit:8}{kind:>10}{numbers}")
    if config.evaluation.words:
        command.show(f"\nbits per byte of hidden words: {bits_line(bits)}")


if __name__ == "__main__":
    command.run(main)
