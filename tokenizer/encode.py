"""Encode text into memory-mapped token shards, split into a training and a held-out side."""

import argparse
import itertools
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from configs import UserError, command
from tokenizer import command_line, vocabulary
from tokenizer.shards import rows
from tokenizer.shards.build import build
from tokenizer.shards.format import SIDES, open_shards
from tokenizer.shards.workers import default_workers
from tokenizer.sources import Mixture
from tokenizer.special_tokens import SpecialTokens

_EXAMPLES = """\
  python -m tokenizer.encode --tokenizer tokenizer.json --output shards
  python -m tokenizer.encode 'texts/**/*.txt.gz' --tokenizer tokenizer.json --output shards text.segments=documents
  python -m tokenizer.encode wiki.txt --tokenizer tokenizer.json --output shards --row-lengths 128,512
  python -m tokenizer.encode reviews.csv --tokenizer tokenizer.json --output shards text.source.columns=review
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_line.parser("tokenizer.encode", __doc__ or "", _EXAMPLES, command_line.TextOptions)
    parser.add_argument(
        "--tokenizer", type=Path, required=True, metavar="PATH", help="a tokenizer.json, as tokenizer.train writes it"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="the folder of shards to make")
    parser.add_argument(
        "--row-lengths", type=_lengths, default=(), metavar="N,...", help="pack into rows of these lengths at once, too"
    )
    return parser.parse_intermixed_args(arguments)


def _lengths(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    given = parse(arguments)
    text = command_line.configuration(command_line.TextOptions, given.files, []).text.absolute()
    if isinstance(text.source, Mixture):
        raise UserError("text.source.kind=mixture: shards are of one corpus: encode each of its sources")
    start = time.monotonic()
    tokenizer = vocabulary.load(given.tokenizer)
    built = build(text, tokenizer, given.output)
    shards, special = open_shards(given.output), SpecialTokens.of(tokenizer)
    for row_length, side in itertools.product(given.row_lengths, SIDES):
        if not (folder := rows.beside(shards, side, row_length, special)).exists():
            rows.write(shards, side, row_length, special, folder, workers=default_workers())
    manifest = shards.manifest
    print(f"{'side':8}{'documents':>13}{'sentences':>13}{'words':>15}{'tokens':>15}{'bytes a token':>15}")
    for side in SIDES:
        n = getattr(manifest, side)
        bytes_a_token = n.text_bytes / n.tokens
        print(f"{side:8}{n.documents:>13,}{n.sentences:>13,}{n.words:>15,}{n.tokens:>15,}{bytes_a_token:>15.2f}")
    for remark in manifest.remarks():
        print(remark)
    if built:
        seconds = time.monotonic() - start
        megabytes = sum(getattr(manifest, side).text_bytes for side in SIDES) / 1e6
        print(f"{given.output}: {megabytes:,.1f} MB of text in {seconds:.1f} s, {megabytes / seconds:.1f} MB/s")
    else:
        print(f"{given.output}: already there, of the same text, tokenizer and settings")


script = partial(command.run, main)

if __name__ == "__main__":
    script()
