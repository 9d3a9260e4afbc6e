"""Measure a pretrained encoder on held-out text, in bits per byte of hidden words, and on minimal pairs."""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs import UserError, command, files, read
from mlm.distributed.process import configure_process

if TYPE_CHECKING:
    from mlm.config import PretrainConfig
    from mlm.data.corpus import Corpus

SECTIONS = ("text", "masking", "evaluation")
"""Sections of a run's configuration that may be changed for a measurement."""
LENGTH = "data.row_length"
"""The setting outside of them that may be changed too."""
UNREAD = {
    "evaluation.pairs": "name them by --pairs",
    "evaluation.most_pairs": "name their number by --most",
    "evaluation.baseline_tokens": "baselines are those of the run, in its results.json",
}
"""Settings of these sections that no measurement here reads, and the remedy."""
EXAMPLES = """
examples:
  python -m mlm.evaluate                                    the newest run, on its own held-out text
  python -m mlm.evaluate runs/x text.source.kind=files text.source.paths=notes.jsonl     on another text's held-out side
  python -m mlm.evaluate runs/x masking.rate=0.3 evaluation.words=5000                   with other settings
  python -m mlm.evaluate runs/x --by-position --plot x.png                               near and far in long texts
  python -m mlm.evaluate runs/x --by-position data.row_length=4096                       in rows longer than the run's
  python -m mlm.evaluate runs/x --pairs                                  minimal pairs of a small grammar
  python -m mlm.evaluate runs/x --pairs BLiMP.zip --most 200 --plot x.png  published ones
  python -m mlm.evaluate runs/x --pairs nyu-mll/blimp                    those of the hub

Pairs are in .jsonl files with BLiMP's columns, .txt files as Zorro's, where a bad sentence stands on the line before
its good one, .tsv files of good<TAB>bad or good<TAB>bad<TAB>paradigm, or folders and archives of such.

Options of the sections text, masking and evaluation are as in python -m mlm.pretrain --help; the run's own are the
defaults. data.row_length may be changed too, and exceed the run's if its positions are rotary. Another text is encoded
once, and its shards are kept in the cache beside the run.
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
    parser.add_argument(
        "--by-position", action="store_true", help="only the loss by position in the text: 0-127, 128-255, 256-511, ..."
    )
    parser.add_argument(
        "--pairs",
        nargs="*",
        metavar="FILE",
        help="only the accuracy on minimal pairs: in files, archives, folders, or a data set of the Hugging Face hub; "
        "without a name those of a small grammar of English",
    )
    parser.add_argument("--most", type=int, metavar="N", help="only the first N pairs of each paradigm")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw positions or pairs into a new file")
    options = parser.parse_intermixed_args(arguments)
    if options.pairs is not None and options.by_position:
        raise UserError("--pairs and --by-position are two measurements: choose one")
    if options.plot is not None and not options.by_position and options.pairs is None:
        raise UserError("--plot draws the loss by position, or pairs: add --by-position or --pairs")
    if options.most is not None and (options.pairs is None or options.most < 1):
        raise UserError("--most limits the pairs of a paradigm: add --pairs, and name a number from 1 on")
    if options.plot is not None:
        files.check_new(options.plot)
    options.overrides = [word for word in options.words if "=" in word and not os.path.exists(word)]  # noqa: PTH110 - a long word is no error
    runs = [word for word in options.words if word not in options.overrides]
    if len(runs) > 1:
        raise UserError(f"at most one run, not {', '.join(runs)}")
    options.run = Path(runs[0]) if runs else None
    if options.pairs is not None and options.overrides:
        raise UserError(f"--pairs reads no text and hides tokens by itself: remove {options.overrides[0]}")
    for override in options.overrides:
        if _section(override) not in SECTIONS and override.partition("=")[0] != LENGTH:
            raise UserError(f"{override}: only {', '.join(SECTIONS)} and {LENGTH} can be set for a run")
        if remedy := UNREAD.get(override.partition("=")[0]):
            raise UserError(f"{override} is not read here: {remedy}")
        if override.startswith("masking.unit=") and not options.by_position:
            raise UserError(
                f"{override} is not read here, where each unit is measured: remove it, or add --by-position"
            )
    return options


def _section(override: str) -> str:
    return override.partition("=")[0].partition(".")[0]


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    options = parse(arguments)
    configure_process()
    import torch

    from mlm.checkpoint import checkpoint
    from mlm.config import PretrainConfig
    from mlm.distributed.device import with_recorded_precision
    from mlm.distributed.world import init_world
    from mlm.evaluation.by_target import UNITS, Targets, by_corruption, by_position, masked_by
    from mlm.evaluation.pairs.accuracy import measure_pairs, report
    from mlm.evaluation.pairs.reading import read_pairs
    from mlm.evaluation.results import bits_line, measure_bits_per_byte
    from mlm.tracking import plots, run_directory

    named = options.run or run_directory.newest()
    path, folder = checkpoint.run_of(named), checkpoint.resolve(named)
    print(f"run: {path}, {folder.name}", file=sys.stderr)
    run_directory.check_head(path)
    pairs = None if options.pairs is None else read_pairs(options.pairs, options.most)
    model, tokenizer, trained = checkpoint.load_model(folder, torch.device("cpu"))
    config = _with_fitting_batches(read(PretrainConfig, folder / checkpoint.CONFIG, options.overrides), trained)
    identity = run_directory.run_identity(path)
    world = with_recorded_precision(init_world(), identity.precision)
    model.to(world.device)
    if pairs is not None:
        of_pairs = measure_pairs(model, tokenizer, pairs, trained.data.row_length, world)
        command.show(json.dumps({"pairs": of_pairs}, allow_nan=False) if options.json else report(of_pairs))
        if options.plot is not None:
            plots.draw_pairs(of_pairs, options.plot)
        return
    corpus = _corpus(config, options.overrides, path, folder, identity.data)

    def targets(unit: str) -> Targets:
        return Targets.of(model, masked_by(unit, config, corpus, world), world)

    if options.by_position:
        positions = by_position(targets(config.masking.unit))
        table: dict[str, Any] = {config.masking.unit: positions}
        found, bits = dict[str, Any](positions=positions), dict[str, float | None]()
    else:
        table = {unit: by_corruption(targets(unit), corpus.heldout.special.mask) for unit in UNITS}
        bits = measure_bits_per_byte(config, corpus, model, world) if config.evaluation.words else {}
        found = {"masks": table, "bits_per_byte": None, **bits}
    if options.json:
        command.show(json.dumps(run_directory.finite(found), allow_nan=False))
    else:
        _show(table, "position" if options.by_position else "seen as")
        if bits:
            command.show(f"\nbits per byte of hidden words: {bits_line(bits)}")
    if options.plot is not None:
        plots.draw_by_position(positions, options.plot)


def _with_fitting_batches(config: "PretrainConfig", trained: "PretrainConfig") -> "PretrainConfig":
    """Return the configuration with batches no larger than the run's; raise a UserError if it has too few positions."""
    kind, longest, wanted = trained.model.encoder.positions.kind, trained.data.row_length, config.data.row_length
    if wanted <= longest:
        return config
    if kind != "rotary":
        raise UserError(f"{LENGTH} = {wanted}: the {kind} positions of the run end at its rows of {longest}: lower it")
    rows = config.train.micro_batch_rows or config.train.batch_rows
    fitting = {"micro_batch_rows": max(rows * longest // wanted, 1)}
    return config.model_copy(update={"train": config.train.model_copy(update=fitting)})


def _corpus(
    config: "PretrainConfig", overrides: Sequence[str], path: Path, folder: Path, data: Mapping[str, str]
) -> "Corpus":
    """Return the run's corpus, or that of another text; raise a UserError if the run's is gone or changed."""
    from mlm.build import RecordedCorpus, corpus_of

    has_other_text = any(_section(override) == "text" for override in overrides)
    trained_on, recorded = data.get("text_fingerprint"), RecordedCorpus.of(path, folder, data)
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
    return corpus


def _show(scores: Mapping[str, Mapping[str, Mapping[str, float | None]]], kinds: str) -> None:
    """Show a table of scores, by the unit of masking and by kinds of targets."""
    from mlm.evaluation.results import shown

    command.show(f"{'masked':8}{kinds:>10}{'targets':>10}{'loss (nats)':>13}{'perplexity':>12}{'accuracy':>10}")
    for unit, found in scores.items():
        for kind, s in found.items():
            loss, perplexity = shown(s["loss"], ".3f"), shown(s["perplexity"], ".2f")
            numbers = f"{s['targets']:>10,}{loss:>13}{perplexity:>12}{shown(s['accuracy'], '.1%'):>10}"
            command.show(f"{unit:8}{kind:>10}{numbers}")


script = partial(command.run, main)

if __name__ == "__main__":
    script()
