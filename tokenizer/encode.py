"""Encode text into memory-mapped token shards, split into a training and a held-out side."""

import argparse
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from configs import UserError, command
from tokenizer import cleaning, command_line, vocabulary
from tokenizer.cleaning import TextConfig
from tokenizer.shards import rows
from tokenizer.shards.build import BuildOptions, build
from tokenizer.shards.cluster import cluster
from tokenizer.shards.format import SIDES, ShardManifest, open_shards, read_manifest
from tokenizer.shards.joined import joined
from tokenizer.shards.packing import ROW_LENGTHS
from tokenizer.shards.parts import PART_BYTES, build_parts
from tokenizer.shards.workers import default_workers
from tokenizer.sources import Mixture
from tokenizer.special_tokens import SpecialTokens

_WORKERS = re.compile(r"(?P<ray>ray)(:[0-9]+)?|[0-9]+")
_EXAMPLES = """\
  python -m tokenizer.encode --tokenizer tokenizer.json --output shards
  python -m tokenizer.encode 'texts/**/*.txt.gz' --tokenizer tokenizer.json --output shards text.segments=documents
  python -m tokenizer.encode wiki.txt --tokenizer tokenizer.json --output shards --row-lengths 128,512
  python -m tokenizer.encode reviews.csv --tokenizer tokenizer.json --output shards text.source.columns=review
  python -m tokenizer.encode 's3://bucket/*.jsonl' --tokenizer tokenizer.json --output shards --workers ray
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
    parser.add_argument(
        "--workers",
        type=_workers,
        default=(False, None),
        metavar="N | ray[:N]",
        help="number of processes of this machine that encode; with ray, tasks of Ray each make a folder of their own, "
        "FOLDER/part-00000 and so on, of a part of the text; default: as many processes as pay",
    )
    parser.add_argument(
        "--address", metavar="HOST:PORT", help="the head of a running Ray cluster; default: Ray is started here"
    )
    parser.add_argument(
        "--part-megabytes",
        type=_megabytes,
        metavar="N",
        help=f"size of the files of a part, about; default: {PART_BYTES // 1_000_000}",
    )
    return parser.parse_intermixed_args(arguments)


def _megabytes(text: str) -> int:
    """Return bytes."""
    with suppress(ValueError, OverflowError):
        if (size := float(text) * 1e6) >= 1:
            return int(size)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")


def _lengths(text: str) -> tuple[int, ...]:
    with suppress(ValueError):
        lengths = tuple(map(int, text.split(",")))
        if set(lengths) <= set(ROW_LENGTHS):
            return lengths
    first, last = ROW_LENGTHS[0], ROW_LENGTHS[-1]
    raise argparse.ArgumentTypeError(f"{text!r} is not a list of lengths from {first} to {last:,}, such as 128,512")


def _workers(text: str) -> tuple[bool, int | None]:
    """Return True for those of Ray, and their number if it is given."""
    found = _WORKERS.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of processes nor ray nor ray:NUMBER")
    count = text.removeprefix("ray").removeprefix(":")
    return bool(found["ray"]), int(count) if count else None


def _check(given: argparse.Namespace, text: TextConfig) -> None:
    by_ray, count = given.workers
    if by_ray and count is not None and (given.address or not count):
        raise UserError("--workers ray:NUMBER starts so many processes here, one or more; a cluster has its own number")
    if not by_ray and (given.address or given.part_megabytes):
        raise UserError("--address and --part-megabytes are of Ray: add --workers ray")
    if isinstance(text.source, Mixture):
        raise UserError("text.source.kind=mixture: shards are of one corpus: encode each of its sources")
    if by_ray and text.most_words is not None:
        raise UserError(
            "text.most_words counts through all of the text, and Ray's tasks read parts: leave --workers out"
        )


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    given = parse(arguments)
    text = command_line.configuration(command_line.TextOptions, given.files, []).text.absolute()
    _check(given, text)
    start = time.monotonic()
    tokenizer = vocabulary.load(given.tokenizer)
    by_ray, count = given.workers
    folders = [given.output]
    if by_ray:
        part_bytes = given.part_megabytes or PART_BYTES
        with cluster(given.address, count) as engine:
            folders, built = build_parts(
                text, tokenizer, given.output, engine, part_bytes=part_bytes, row_lengths=given.row_lengths
            )
    else:
        count = default_workers() if count is None else count
        built = build(text, tokenizer, given.output, options=BuildOptions(workers=count))
        rows.write_beside(open_shards(given.output), given.row_lengths, SpecialTokens.of(tokenizer), count)
    manifests = [read_manifest(folder) for folder in folders]
    _show(folders, manifests)
    if built:
        seconds = time.monotonic() - start
        megabytes = sum(getattr(manifest, side).text_bytes for manifest in manifests for side in SIDES) / 1e6
        print(f"{given.output}: {megabytes:,.1f} MB of text in {seconds:.1f} s, {megabytes / seconds:.1f} MB/s")
    else:
        print(f"{given.output}: already there, of the same text, tokenizer and settings")


def _show(folders: Sequence[Path], manifests: Sequence[ShardManifest]) -> None:
    """Print the sizes of all folders together, and what there is to say of their texts."""
    print(f"{'side':8}{'documents':>13}{'sentences':>13}{'words':>15}{'tokens':>15}{'bytes a token':>15}")
    whole = joined(manifests, ())
    for side in SIDES:
        n = getattr(whole, side)
        bytes_a_token = n.text_bytes / n.tokens
        print(f"{side:8}{n.documents:>13,}{n.sentences:>13,}{n.words:>15,}{n.tokens:>15,}{bytes_a_token:>15.2f}")
    for remark in cleaning.describe_dropped(whole.dropped):
        print(remark)
    for folder, manifest in zip(folders, manifests, strict=True):
        for remark in cleaning.remarks({}, at_sentences=manifest.split_at_sentences):
            print(remark if len(folders) == 1 else f"{folder.name}: {remark}")


script = partial(command.run, main)

if __name__ == "__main__":
    script()
