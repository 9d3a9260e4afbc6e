"""Measurements of two sides in alternating turns, and their table and plots."""

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
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

T = TypeVar("T")

Curve = list[tuple[int, float]]
"""Held-out loss in nats by the number of tokens read."""
WARMUP_STEPS, COUNTED_STEPS = 8, 16
"""Steps before the clock starts, and the fewest steps it runs for: batches differ in their padding."""
OURS, THEIRS = "#1f5582", "#b5651d"
"""Colours of the two sides."""


@dataclass(frozen=True)
class Spread:
    """Summary of several measurements of one quantity; infinite where a measurement found no value."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summarise one value or more."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Case:
    """One quantity, measured on both sides."""

    name: str
    unit: str
    counted: str
    """Definition of the quantity, in words."""
    ours: Spread
    theirs: Spread
    ratio: Spread
    """Ours divided by theirs, turn by turn."""
    peak_flops: float | None = None
    """Measured rate of matrix products at this case's shapes and precision, FLOP/s."""
    peak_share: float | None = None
    """Model FLOP/s of our side as a share of `peak_flops`."""
    curves: Mapping[str, Sequence[Curve]] | None = None
    """Curves of `ours` and of `theirs`, one a turn."""
    baselines: Mapping[str, float] | None = None
    """Held-out loss of the unigram and the bigram model, in nats."""
    flops_per_token: Mapping[str, float] | None = None
    """Floating-point operations that `ours` and `theirs` compute to train on a token; padding is no token."""

    @classmethod
    def of(cls, name: str, unit: str, counted: str, ours: Sequence[float], theirs: Sequence[float]) -> "Case":
        """Summarise the measurements of `alternate`."""
        ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
        return cls(name, unit, counted, Spread.of(ours), Spread.of(theirs), Spread.of(ratios))


def alternate(ours: Callable[[], T], theirs: Callable[[], T], repeats: int) -> tuple[list[T], list[T]]:
    """Measure both sides in turn, so that other load on the machine falls on both."""
    pairs = [(ours(), theirs()) for _ in range(repeats)]
    return [mine for mine, _ in pairs], [other for _, other in pairs]


def in_fresh_process(function: Callable[..., T], *arguments: object) -> tuple[T, int]:
    """Call `function` in a new interpreter; return its result and the peak memory of that process in bytes."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_with_peak_memory, function, arguments).result()


def _with_peak_memory(function: Callable[..., T], arguments: Sequence[object]) -> tuple[T, int]:
    result, status = function(*arguments), Path("/proc/self/status")
    if not status.exists():
        return result, _resident_bytes(resource.RUSAGE_SELF)
    # On Linux a new process inherits the ru_maxrss of the process that started it; VmHWM is its own.
    (kilobytes,) = (line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return result, int(kilobytes) * 1024


def largest_child_bytes() -> int:
    """Return an upper bound of the peak memory of any finished child process.

    On Linux it is at least the memory that this process held when it started the child.
    """
    return _resident_bytes(resource.RUSAGE_CHILDREN)


def _resident_bytes(who: int) -> int:
    return resource.getrusage(who).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def synchronise() -> None:
    """Wait until the GPU, if there is one, has finished its queue."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Meter:
    """Training speed over whole steps, without the first ones, and over at least `seconds`."""

    def __init__(
        self,
        seconds: float,
        synchronise: Callable[[], None] = synchronise,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._seconds, self._synchronise, self._clock = seconds, synchronise, clock
        self._steps = self._first_tokens = 0
        self._began: float | None = None
        self.rate = 0.0
        """Tokens a second; 0 until the measurement is finished."""

    @property
    def finished(self) -> bool:
        """True once `rate` is known."""
        return self.rate > 0

    def after_step(self, tokens: int, steps: int = 1) -> bool:
        """Record the end of one step or more and the tokens read so far; return whether `rate` is known."""
        self._steps += steps
        if self._began is None:
            if self._steps >= WARMUP_STEPS:
                self._synchronise()
                self._first_tokens, self._began = tokens, self._clock()
        elif self._steps >= WARMUP_STEPS + COUNTED_STEPS and self._clock() - self._began >= self._seconds:
            self._synchronise()
            self.rate = (tokens - self._first_tokens) / (self._clock() - self._began)
        return self.finished


def times_a_second(call: Callable[[], object], seconds: float, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the rate of whole calls over at least `seconds`, after a first call that does not count."""
    call()
    count, elapsed, began = 0, 0.0, clock()
    while elapsed < seconds or not count:
        call()
        count, elapsed = count + 1, clock() - began
    return count / elapsed


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
    """Draw the ratios into a PNG file; a case with an infinite measurement of ours is only named."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    missing = [case.name for case in cases if not math.isfinite(case.ratio.highest)]
    cases = [case for case in cases if case.name not in missing]
    figure = Figure(figsize=(9, 1.2 + 0.5 * len(cases)), layout="constrained")
    axes = figure.subplots()
    for height, ratio in enumerate(case.ratio for case in cases):
        reach = [[ratio.median - ratio.lowest], [ratio.highest - ratio.median]]
        axes.errorbar(ratio.median, height, xerr=reach, fmt="o", color=OURS, capsize=3)
        axes.annotate(_rounded(ratio.median), (ratio.median, height), (0, 6), textcoords="offset points", ha="center")
    axes.axvline(1, color=THEIRS, linestyle="--", linewidth=1)
    axes.set_yticks(range(len(cases)), [f"{case.name}\n{case.unit}" for case in cases])
    axes.set_ylim(len(cases) - 0.5, -0.7)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.set_xlabel(
        "ours / theirs: median, lowest and highest\nhigher is better; for s, MiB, % of time, nats and times lower is"
        + "".join(f"\nnot drawn, because ours took too long: {name}" for name in missing)
    )
    axes.grid(axis="y", alpha=0.3)
    _save(figure, [axes], path)


def draw_curves(cases: Sequence[Case], path: Path) -> None:
    """Draw the curves of all cases that have any, side by side, into a PNG file."""
    from matplotlib.figure import Figure

    shown = [(case, case.curves) for case in cases if case.curves is not None]
    figure = Figure(figsize=(1 + 4.5 * len(shown), 4), layout="constrained")
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, (case, curves) in zip(panels, shown, strict=True):
        for side, colour in (("theirs", THEIRS), ("ours", OURS)):
            for number, curve in enumerate(curves[side]):
                axes.plot(*zip(*curve, strict=True), color=colour, marker=".", label=None if number else side)
        for name, level in (case.baselines or {}).items():
            axes.axhline(level, color="#777777", linestyle=":", linewidth=1)
            axes.annotate(name, (1, level), (0, 3), ("axes fraction", "data"), "offset points", ha="right")
        axes.set_title(case.name, fontsize="medium")
        axes.set_xlabel("training tokens (millions)")
        axes.xaxis.set_major_formatter(lambda tokens, _: f"{tokens / 1e6:g}")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    panels[0].set_ylabel("held-out masked loss (nats)")
    _save(figure, panels, path)


def _save(figure: "Figure", panels: "Sequence[Axes]", path: Path) -> None:
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, format="png", dpi=120)
    partial.replace(path)


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
