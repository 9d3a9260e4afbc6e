"""The frame of both benchmarks: common options, and a run that writes JSON and plots after every case."""

import argparse
import difflib
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from configs import command
from mlm.benchmark import measure
from mlm.benchmark.hf_trainer import PACKAGES
from mlm.benchmark.measure import Case

if TYPE_CHECKING:
    from mlm.distributed.world import World

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


class Bench(Protocol):
    """The objects that the cases of a benchmark share."""

    @property
    def world(self) -> "World":
        """The device and its precision."""

    def describe(self) -> dict[str, Any]:
        """Return the scale, the configuration and the data of the measurements, for the JSON."""


def parser(module: str, description: str | None, cases: Iterable[str], output: str) -> command.Parser:
    """Return a parser with the options that both benchmarks have."""
    parser = command.Parser(
        prog=f"python -m {module}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("cases", nargs="*", metavar="CASE", help=f"cases to measure; all: {', '.join(cases)}")
    add("--output", type=Path, default=Path(output), metavar="DIR", help="default: %(default)s")
    add("--repeats", type=count, metavar="N", help="turns of each side; default: 5, with --quick 2")
    add("--quick", action="store_true", help="take a minute: small batches, short turns")
    return parser


def count(text: str) -> int:
    """Read a positive whole number of the command line."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def parse(parser: command.Parser, arguments: Sequence[str], cases: Iterable[str]) -> argparse.Namespace:
    """Parse the command line; a wrong option and an unknown case are a UserError."""
    options, known = parser.parse_intermixed_args(arguments), list(cases)
    for name in options.cases:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            parser.error(f"no such case: {name}: " + (f"did you mean {near[0]}?" if near else ", ".join(known)))
    return options


def with_options(scale: AnyScale, options: argparse.Namespace) -> AnyScale:
    """Return the scale with the values that the command line sets."""
    values = {field.name: getattr(options, field.name, None) for field in fields(scale)}
    return replace(scale, **{name: value for name, value in values.items() if value is not None})


def run(bench: Bench, cases: Iterable[tuple[str, Callable[[], Sequence[Case]]]], output: Path) -> None:
    """Measure named cases, write everything measured so far after each, and print a table at the end."""
    measured: list[Case] = []
    try:
        for name, measure_case in cases:
            print(f"measuring {name}", file=sys.stderr)
            measured += measure_case()
            write(bench, measured, output)
    finally:  # Ctrl-C loses only the case that it interrupts.
        if measured:
            print(measure.table(measured))
    print(f"\nplot: {output / 'benchmark.png'}    all figures: {output / 'benchmark.json'}")


def write(bench: Bench, cases: Sequence[Case], output: Path) -> None:
    """Write the JSON and the plots."""
    from importlib import metadata

    from mlm.tracking import run_directory

    about = run_directory.environment(bench.world)
    del about["git_diff"]
    about["versions"] |= {name: metadata.version(name) for name in PACKAGES}
    about |= bench.describe() | {"cases": [asdict(case) for case in cases]}
    run_directory.write_json(output / "benchmark.json", about)
    measure.draw(cases, output / "benchmark.png")
    if any(case.curves for case in cases):
        measure.draw_curves(cases, output / "loss-curves.png")
