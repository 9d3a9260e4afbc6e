"""Measure a pretrained encoder on held-out text: by kind of mask, and in bits per byte of hidden words."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from configs import UserError, command, read
from mlm.distributed.process import configure_process

SECTIONS = ("text", "masking", "evaluation")
"""Sections of a run's configuration that may be changed for a measurement."""
EXAMPLES = """
examples:
  python -m mlm.evaluate                                    the newest run, on its own held-out text
  python -m mlm.evaluate runs/x text.source.kind=files text.source.paths=notes.jsonl     on another text's held-out side
  python -m mlm.evaluate runs/x masking.rate=0.3 evaluation.words=5000                   with other settings

Options of the sections text, masking and evaluation are as in python -m mlm.pretrain --help; the run's own are the
defaults. Another text is encoded once, and its shards are kept in the cache beside the run.
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; `run` is None for the newest one."""
    parser = command.Parser(prog="python -m mlm.evaluate", description=__doc__, epilog=EXAMPLES)
    parser.add_argument(
        "words",
        nargs="*",
        metavar="RUN | section.key=value",
        help="run directory (default: the newest one in runs/), and changes of text, masking and evaluation",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    options = parser.parse_intermixed_args(arguments)
    options.overrides = [word for word in options.words if "=" in word and not os.path.exists(word)]  # noqa: PTH110 - a long word is no error
    runs = [word for word in options.words if word not in options.overrides]
    if len(runs) > 1:
        raise UserError(f"at most one run, not {', '.join(runs)}")
    options.run = Path(runs[0]) if runs else None
    for override in options.overrides:
        if _section(override) not in SECTIONS:
            raise UserError(f"{override}: only {', '.join(SECTIONS[:-1])} and {SECTIONS[-1]} can be set for a run")
    return options


def _section(override: str) -> str:
    return override.partition("=")[0].partition(".")[0]


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    options = parse(arguments)
    configure_process()
    import torch

    from mlm.build import Recorded, corpus_of
    from mlm.checkpoint import checkpoint
    from mlm.config import PretrainConfig
    from mlm.distributed.device import with_recorded_precision
    from mlm.distributed.world import init_world
    from mlm.evaluation.by_corruption import UNITS, by_corruption, masked_by
    from mlm.evaluation.results import bits_line, measure_bits_per_byte, shown
    from mlm.tracking import run_directory

    named = options.run or run_directory.newest()
    path, folder = checkpoint.run_of(named), checkpoint.resolve(named)
    print(f"run: {path}, {folder.name}", file=sys.stderr)
    model, _, _ = checkpoint.load_model(folder, torch.device("cpu"))
    identity = run_directory.run_identity(path)
    world = with_recorded_precision(init_world(), identity.precision)
    model.to(world.device)
    config = read(PretrainConfig, folder / checkpoint.CONFIG, options.overrides)
    has_other_text = any(_section(override) == "text" for override in options.overrides)
    trained_on = identity.data.get("text_fingerprint")
    recorded = Recorded.of(path, folder, identity.data)
    if has_other_text:
        recorded = replace(recorded, fingerprint="")  # the run's own shards are not those of this text
        config = config.model_copy(update={"data": config.data.model_copy(update={"shards": None})})
    elif trained_on is None:
        raise UserError(
            f"{path} has no text of its own: name one, as text.source.kind=files text.source.paths=notes.txt"
        )
    corpus = corpus_of(config, recorded)
    if trained_on != corpus.manifest.text_fingerprint and not has_other_text:
        raise UserError(
            f"the text of {path} is not the text that the run was trained on, so no part of it is known to be held out"
        )
    if trained_on != corpus.manifest.text_fingerprint:
        print("the text is not the one that the run was trained on, which may hold parts of it", file=sys.stderr)
    mask_id = corpus.heldout.special.mask
    scores = {unit: by_corruption(model, masked_by(unit, config, corpus, world), world, mask_id) for unit in UNITS}
    bits = measure_bits_per_byte(config, corpus, model, world) if config.evaluation.words else {}
    if options.json:
        found = {"masks": scores, "bits_per_byte": None, **bits}
        command.show(json.dumps(run_directory.finite(found), allow_nan=False))
        return
    command.show(f"{'masked':8}{'seen as':>10}{'targets':>10}{'loss (nats)':>13}{'perplexity':>12}{'accuracy':>10}")
    for unit, kinds in scores.items():
        for kind, s in kinds.items():
            loss, perplexity = shown(s["loss"], ".3f"), shown(s["perplexity"], ".2f")
            numbers = f"{s['targets']:>10,}{loss:>13}{perplexity:>12}{shown(s['accuracy'], '.1%'):>10}"
            command.show(f"{unit:8}{kind:>10}{numbers}")
    if bits:
        command.show(f"\nbits per byte of hidden words: {bits_line(bits)}")


script = partial(command.run, main)

if __name__ == "__main__":
    script()
