"""Two sides measured in turn, and what is shown of them: a table, a plot and JSON."""

import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

WARMUP_STEPS = 2


@dataclass(frozen=True)
class Spread:
    """Several measurements of one quantity."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summarise `values`, of which there is at least one."""
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        """Write the median, and from where to where the rest goes."""
        return f"{_rounded(self.median)} ({_rounded(self.lowest)} to {_rounded(self.highest)})"


@dataclass(frozen=True)
class Case:
    """One quantity, measured on both sides."""

    name: str
    unit: str
    counted: str
    """What was measured, in words."""
    ours: Spread
    theirs: Spread
    ratio: Spread
    """Ours divided by theirs, measurement by measurement as they took turns."""
    peak_flops: float | None = None
    """Measured matrix-product rate of the machine at this case's shapes and precision, FLOP/s."""
    peak_share: float | None = None
    """Model FLOP/s of our side as a share of that."""

    @classmethod
    def of(cls, name: str, unit: str, counted: str, ours: Sequence[float], theirs: Sequence[float]) -> "Case":
        """Summarise what `alternate` measured."""
        ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
        return cls(name, unit, counted, Spread.of(ours), Spread.of(theirs), Spread.of(ratios))


def alternate(ours: Callable[[], T], theirs: Callable[[], T], repeats: int) -> tuple[list[T], list[T]]:
    """Measure both sides in turn, so that what else the machine does falls on both."""
    pairs = [(ours(), theirs()) for _ in range(repeats)]
    return [mine for mine, _ in pairs], [other for _, other in pairs]


class Meter:
    """Measures tokens a second over whole training steps, from the end of the warm-up on; the same for both sides."""

    def __init__(self, seconds: float, synchronise: Callable[[], None]) -> None:
        """Measure for at least `seconds`; `synchronise` waits until the device has done what it was given."""
        self._seconds, self._synchronise = seconds, synchronise
        self._steps = self._first_tokens = 0
        self._began = 0.0
        self.rate: float | None = None
        """Tokens a second, once enough was measured."""

    def after_step(self, tokens: int) -> bool:
        """Take note of a step's end and of the tokens read so far; tell whether enough was measured."""
        self._steps += 1
        if self._steps == WARMUP_STEPS:
            self._synchronise()
            self._first_tokens, self._began = tokens, time.perf_counter()
        elif self._steps > WARMUP_STEPS and time.perf_counter() - self._began >= self._seconds:
            self._synchronise()
            self.rate = (tokens - self._first_tokens) / (time.perf_counter() - self._began)
        return self.rate is not None


def in_fresh_process(function: Callable[..., T], *arguments: object) -> tuple[T, int]:
    """Call `function` in a new interpreter; return its result and the largest memory that process held, in bytes."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_with_peak_memory, function, arguments).result()


def _with_peak_memory(function: Callable[..., T], arguments: Sequence[object]) -> tuple[T, int]:
    return function(*arguments), _peak_memory_bytes()


def _peak_memory_bytes() -> int:
    status = Path("/proc/self/status")
    if status.exists():  # Linux hands a parent's ru_maxrss on to the programs it starts
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def table(cases: Sequence[Case]) -> str:
    """Return the cases as lines of text."""
    lines = [f"{'median (lowest to highest)':34}{'ours':>32}{'theirs':>32}{'ours / theirs':>26}"]
    for case in cases:
        label = f"{case.name}, {case.unit}"
        lines.append(f"{label:34}{case.ours!s:>32}{case.theirs!s:>32}{case.ratio!s:>26}")
        if case.peak_share is not None and case.peak_flops is not None:
            lines.append(
                f"  {case.peak_share:.0%} of the measured matrix-product peak, {case.peak_flops / 1e9:,.0f} GFLOP/s"
            )
    return "\n".join(lines)


def draw(cases: Sequence[Case], path: Path) -> None:
    """Draw the ratios into a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.2 + 0.5 * len(cases)), layout="constrained")
    axes = figure.subplots()
    ratios = [case.ratio for case in cases]
    errors = [[r.median - r.lowest for r in ratios], [r.highest - r.median for r in ratios]]
    bars = axes.barh(
        [f"{case.name}\n{case.unit}" for case in cases], [r.median for r in ratios], xerr=errors, color="#9db4c8"
    )
    axes.bar_label(bars, [_rounded(r.median) for r in ratios], padding=4)
    axes.axvline(1, color="#b5651d", linestyle="--", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("ours / theirs: median, lowest and highest of the measurements in turn")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, format="png", dpi=120)
    partial.replace(path)


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
