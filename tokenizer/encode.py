"""Encode text into memory-mapped token shards, split into a training and a held-out side."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from configs import command
from tokenizer import command_line, vocabulary
from tokenizer.command_line import HasText
from tokenizer.shards import format
from tokenizer.shards.build import build
from tokenizer.shards.format import SIDES, Manifest
from tokenizer.shards.merge import merge
from tokenizer.shards.parts import Part, parse_count

_EXAMPLES = """\
  python -m tokenizer.encode --tokenizer tokenizer.json --output shards
  python -m tokenizer.encode 'texts/**/*.txt.gz' --tokenizer tokenizer.json --output shards text.segments=documents
  python -m tokenizer.encode reviews.csv --tokenizer tokenizer.json --output shards text.source.columns=review
  python -m tokenizer.encode texts/*.txt --tokenizer tokenizer.json --output shards --part 2/8
  python -m tokenizer.encode texts/*.txt --tokenizer tokenizer.json --output shards --merge 8
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_line.parser("tokenizer.encode", __doc__ or "", _EXAMPLES, HasText)
    parser.add_argument(
        "--tokenizer", type=Path, required=True, metavar="PATH", help="a tokenizer.json, as tokenizer.train writes it"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="the folder of shards to make")
    share = parser.add_mutually_exclusive_group()
    share.add_argument(
        "--part",
        metavar="NUMBER/COUNT",
        help="build one part of the shards only, such as 2/8, into FOLDER.part-2-of-8: each part may be built by a "
        "process or machine of its own, from the same files and options",
    )
    share.add_argument(
        "--merge",
        metavar="COUNT",
        help="make FOLDER out of so many finished parts, which must lie beside it: the same as without parts, byte "
        "for byte. The parts stay: remove them when you like",
    )
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    given = parse(arguments)
    part = None if given.part is None else Part.parse(given.part)
    count = None if given.merge is None else parse_count(f"--merge {given.merge}", given.merge)
    text = command_line.configuration(HasText, given.files, []).text
    start = time.monotonic()
    tokenizer = vocabulary.load(given.tokenizer)
    if count is None:
        built = build(text, tokenizer, given.output, part=part)
    else:
        built = merge(text, tokenizer, given.output, count)
    output = part.folder(given.output) if part else given.output
    manifest = format.read_manifest(output)
    print("\n".join(_summary(manifest)))
    if built:
        seconds = time.monotonic() - start
        megabytes = sum(getattr(manifest, side).text_bytes for side in SIDES) / 1e6
        print(f"{output}: {megabytes:,.1f} MB of text in {seconds:.1f} s, {megabytes / seconds:.1f} MB/s")
    else:
        print(f"{output}: already there, of the same text, tokenizer and settings")


def _summary(manifest: Manifest) -> list[str]:
    lines = [f"{'side':8}{'documents':>13}{'sentences':>13}{'words':>15}{'tokens':>15}{'bytes a token':>15}"]
    for side in SIDES:
        n = getattr(manifest, side)
        bytes_a_token = n.text_bytes / max(n.tokens, 1)  # a part's side may be empty
        lines.append(f"{side:8}{n.documents:>13,}{n.sentences:>13,}{n.words:>15,}{n.tokens:>15,}{bytes_a_token:>15.2f}")
    lines += [f"dropped: {count:,} {reason}" for reason, count in sorted(manifest.dropped.items())]
    return lines


if __name__ == "__main__":
    command.run(main)
