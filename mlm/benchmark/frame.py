"""The frame of both benchmarks: common options, and a run that writes JSON and plots after every case."""

import argparse
import difflib
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from configs import command, extras
from mlm.benchmark import measure
from mlm.benchmark.measure import Case

if TYPE_CHECKING:
    from mlm.distributed.world import World

PACKAGES = ("transformers", "accelerate")
"""Libraries of the reference; `transformers` alone is installed with this project."""
NEVER = 1_000_000_000
"""A number of steps that no measurement reaches."""


@dataclass(frozen=True)
class Scale:
    """Size of the measurements."""

    repeats: int
    """Turns of each side."""
    seconds: float
    """Shortest time that a side is measured over in a turn."""


AnyScale = TypeVar("AnyScale", bound=Scale)


def parser(module: str, description: str | None, cases: Iterable[str], output: str) -> command.Parser:
    """Return a parser with the options that both benchmarks have."""
    known = list(cases)

    def case(name: str) -> str:
        if name in known:
            return name
        near = [f"did you mean {close}?" for close in difflib.get_close_matches(name, known, n=1)]
        raise argparse.ArgumentTypeError(f"no such case: {name}: {''.join(near) or ', '.join(known)}")

    parser = command.Parser(prog=f"python -m {module}", description=description)
    add = parser.add_argument
    add("cases", nargs="*", type=case, metavar="CASE", help=f"cases to measure; all: {', '.join(known)}")
    add("--output", type=Path, default=Path(output), metavar="DIR", help="default: %(default)s")
    add("--repeats", type=count, metavar="N", help="turns of each side; default: 5, with --quick 2")
    add("--seconds", type=seconds, metavar="S", help="shortest length of a turn; default: 3 or 4, with --quick 0.3")
    add("--quick", action="store_true", help="take a minute: small batches, short turns")
    return parser


def count(text: str) -> int:
    """Read a positive whole number of the command line."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def seconds(text: str) -> float:
    """Read a duration of the command line."""
    if not 0 < (value := float(text)) < math.inf:
        raise argparse.ArgumentTypeError("must be over 0")
    return value


def with_options(scale: AnyScale, options: argparse.Namespace) -> AnyScale:
    """Return the scale with the values that the command line sets."""
    values = {field.name: getattr(options, field.name, None) for field in fields(scale)}
    return replace(scale, **{name: value for name, value in values.items() if value is not None})


def check_installed() -> None:
    """Raise a UserError if a library of the reference is not installed."""
    extras.require(*PACKAGES, extra="bench", purpose="the benchmark")


def run(
    cases: Iterable[tuple[str, Callable[[], Sequence[Case]]]], world: "World", about: Mapping[str, Any], output: Path
) -> None:
    """Measure named cases, write everything measured so far after each, and print a table at the end."""
    from importlib import metadata

    from mlm.tracking import run_directory

    environment = {**run_directory.environment(world), **about}
    del environment["git_diff"]
    environment["versions"] |= {name: metadata.version(name) for name in PACKAGES}
    measured: list[Case] = []
    try:
        for name, measure_case in cases:
            print(f"measuring {name}", file=sys.stderr)
            measured += measure_case()
            found = environment | {"cases": [asdict(case) for case in measured]}
            run_directory.write_json(output / "benchmark.json", found)
            measure.draw(measured, output)
    finally:  # Ctrl-C loses only the case that it interrupts.
        if measured:
            print(measure.table(measured))
    print(f"\nplot: {output / 'benchmark.png'}    all figures: {output / 'benchmark.json'}")
