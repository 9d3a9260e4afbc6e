"""Two sides measured in turn, and what is shown of them: a table, a plot and JSON."""

import math
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")

Curve = list[tuple[int, float]]
"""Held-out loss in nats by the number of tokens read."""
WARMUP_STEPS, COUNTED_STEPS = 8, 16
"""Steps before a speed is measured, and those it is measured over at the least: batches differ in their padding."""


@dataclass(frozen=True)
class Spread:
    """Several measurements of one quantity; infinite where it took too long to be measured."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summarise `values`, of which there is at least one."""
        return cls(statistics.median(values), min(values), max(values))


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
    curves: Mapping[str, Sequence[Curve]] | None = None
    """Of `ours` and of `theirs`, in each turn."""
    baselines: Mapping[str, float] | None = None
    """Held-out loss of what counts words alone, and pairs of them, in nats."""
    flops_per_token: Mapping[str, float] | None = None
    """Floating-point operations that `ours` and `theirs` compute for a token that is not padding, to train on it."""

    @classmethod
    def of(cls, name: str, unit: str, counted: str, ours: Sequence[float], theirs: Sequence[float]) -> "Case":
        """Summarise what `alternate` measured."""
        ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
        return cls(name, unit, counted, Spread.of(ours), Spread.of(theirs), Spread.of(ratios))


def alternate(ours: Callable[[], T], theirs: Callable[[], T], repeats: int) -> tuple[list[T], list[T]]:
    """Measure both sides in turn, so that what else the machine does falls on both."""
    pairs = [(ours(), theirs()) for _ in range(repeats)]
    return [mine for mine, _ in pairs], [other for _, other in pairs]


def in_fresh_process(function: Callable[..., T], *arguments: object) -> tuple[T, int]:
    """Call `function` in a new interpreter; return its result and the most memory that process held, in bytes."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_with_peak_memory, function, arguments).result()


def _with_peak_memory(function: Callable[..., T], arguments: Sequence[object]) -> tuple[T, int]:
    return function(*arguments), _peak_memory_bytes()


def _peak_memory_bytes() -> int:
    status = Path("/proc/self/status")
    if status.exists():  # Linux passes ru_maxrss on from a process to those that it starts
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return _resident_bytes(resource.RUSAGE_SELF)


def largest_child_bytes() -> int:
    """Return at most how much memory any one held of the processes that this one started and that have ended.

    On Linux it is no less than what this one held when it started them.
    """
    return _resident_bytes(resource.RUSAGE_CHILDREN)


def _resident_bytes(who: int) -> int:
    return resource.getrusage(who).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Meter:
    """Measures tokens a second over whole training steps, from the end of the warm-up on; the same for both sides."""

    def __init__(self, seconds: float, synchronise: Callable[[], None]) -> None:
        """Measure for at least `seconds` and `COUNTED_STEPS`; `synchronise` waits for the device to be done."""
        self._seconds, self._synchronise = seconds, synchronise
        self._steps = self._first_tokens = 0
        self._began = self.rate = 0.0

    @property
    def finished(self) -> bool:
        """Whether enough was measured for `rate`, tokens a second, to be known."""
        return self.rate > 0

    def after_step(self, tokens: int, steps: int = 1) -> bool:
        """Take note of a step's end, or that of some, and of the tokens read so far; return whether that is enough."""
        self._steps += steps
        if not self._began and self._steps >= WARMUP_STEPS:
            self._synchronise()
            self._first_tokens, self._began = tokens, time.perf_counter()
        elif self._steps >= WARMUP_STEPS + COUNTED_STEPS and time.perf_counter() - self._began >= self._seconds:
            self._synchronise()
            self.rate = (tokens - self._first_tokens) / (time.perf_counter() - self._began)
        return self.finished


def table(cases: Sequence[Case]) -> str:
    """Return the cases as lines of text."""
    width = max((len(case.name) for case in cases), default=0)
    lines = [f"{'':{width}}  {'':12}{'':8}{'median':>12}{'lowest':>12}{'highest':>12}"]
    for case in cases:
        name, unit = case.name, case.unit
        for side, spread in (("ours", case.ours), ("theirs", case.theirs), ("ratio", case.ratio)):
            numbers = "".join(f"{_rounded(number):>12}" for number in (spread.median, spread.lowest, spread.highest))
            lines.append(f"{name:{width}}  {unit:12}{side:8}{numbers}")
            name = unit = ""
        if case.peak_share is not None and case.peak_flops is not None:
            peak = f"{case.peak_flops / 1e9:,.0f} GFLOP/s"
            lines.append(f"{'':{width}}  ours at {case.peak_share:.0%} of the measured matrix-product peak of {peak}")
        if case.flops_per_token is not None:
            spent = ", ".join(f"{side} {flops / 1e6:,.1f}" for side, flops in case.flops_per_token.items())
            lines.append(f"{'':{width}}  million FLOPs computed for a token: {spent}")
    return "\n".join(lines)


def draw(cases: Sequence[Case], path: Path) -> None:
    """Draw the ratios into a PNG file; cases in which ours was not always measured are named alone."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    missing = [case.name for case in cases if not math.isfinite(case.ratio.highest)]
    cases = [case for case in cases if case.name not in missing]
    figure = Figure(figsize=(9, 1.2 + 0.5 * len(cases)), layout="constrained")
    axes = figure.subplots()
    for height, ratio in enumerate(case.ratio for case in cases):
        reach = [[ratio.median - ratio.lowest], [ratio.highest - ratio.median]]
        axes.errorbar(ratio.median, height, xerr=reach, fmt="o", color="#1f5582", capsize=3)
        axes.annotate(
            _rounded(ratio.median), (ratio.median, height), xytext=(0, 6), textcoords="offset points", ha="center"
        )
    axes.axvline(1, color="#b5651d", linestyle="--", linewidth=1)
    axes.set_yticks(range(len(cases)), [f"{case.name}\n{case.unit}" for case in cases])
    axes.set_ylim(len(cases) - 0.5, -0.7)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.set_xlabel(
        "ours / theirs: median, lowest and highest\nmore is better, but of s, MiB, % of time, nats and times less"
        + "".join(f"\nnot drawn, for ours took too long: {name}" for name in missing)
    )
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def draw_curves(cases: Sequence[Case], path: Path) -> None:
    """Draw the curves of the cases that have any, side by side, into a PNG file."""
    from matplotlib.figure import Figure

    shown = [(case, case.curves) for case in cases if case.curves is not None]
    figure = Figure(figsize=(1 + 4.5 * len(shown), 4), layout="constrained")
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, (case, curves) in zip(panels, shown, strict=True):
        for side, colour in (("theirs", "#b5651d"), ("ours", "#1f5582")):
            for number, curve in enumerate(curves[side]):
                tokens, nats = zip(*curve, strict=True)
                axes.plot(tokens, nats, color=colour, marker=".", alpha=0.8, label=side if not number else None)
        for name, level in (case.baselines or {}).items():
            axes.axhline(level, color="#777777", linestyle=":", linewidth=1)
            axes.annotate(
                name, (1, level), (0, 3), ("axes fraction", "data"), "offset points", ha="right", fontsize="small"
            )
        axes.set_title(case.name, fontsize="medium")
        axes.set_xlabel("training tokens (millions)")
        axes.xaxis.set_major_formatter(lambda tokens, _: f"{tokens / 1e6:g}")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    panels[0].set_ylabel("held-out masked loss (nats)")
    _save(figure, path)


def _save(figure: "Figure", path: Path) -> None:
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, format="png", dpi=120)
    partial.replace(path)


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
