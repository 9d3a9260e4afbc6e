"""Measurements of two sides in alternating turns, and their table and plots."""

import math
import multiprocessing
import os
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from unittest import mock

from mlm.tracking import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes

T = TypeVar("T")

Curve = list[tuple[int, float]]
"""Held-out loss in nats by the number of tokens read."""
OURS, THEIRS = "#1f5582", "#b5651d"
"""Colors of the two sides."""


@dataclass(frozen=True)
class Spread:
    """Summary of several measurements of one quantity; infinite where a measurement found no value."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summarize one value or more."""
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        median, *reach = (f"{x:,.0f}" if x >= 1000 else f"{x:.3g}" for x in (self.median, self.lowest, self.highest))
        return f"{median} ({' to '.join(reach)})"


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
        """Summarize the measurements of `alternate`."""
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


def as_users_run_it(function: Callable[..., T], *arguments: object) -> T:
    """Call `function` in a new process, with the default settings of the C library and of OpenMP."""
    with mock.patch.dict(os.environ, GOMP_SPINCOUNT="300000"):  # libgomp's default, which this process has changed
        return in_fresh_process(function, *arguments)[0]


def _with_peak_memory(function: Callable[..., T], arguments: Sequence[object]) -> tuple[T, int]:
    result, status = function(*arguments), Path("/proc/self/status")
    if not status.exists():
        return result, peak_bytes(resource.RUSAGE_SELF)
    # On Linux a new process inherits the ru_maxrss of the process that started it; VmHWM is its own.
    (kilobytes,) = re.findall(r"^VmHWM:\s*(\d+)", status.read_text(), re.MULTILINE)
    return result, int(kilobytes) * 1024


def peak_bytes(who: int) -> int:
    """Return an upper bound of the peak memory of this process or, by RUSAGE_CHILDREN, of any finished child."""
    return resource.getrusage(who).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def times_a_second(call: Callable[[], object], seconds: float, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the rate of whole calls over at least `seconds`, after a first call that does not count."""
    call()
    count, elapsed, began = 0, 0.0, clock()
    while elapsed < seconds or not count:
        call()
        count, elapsed = count + 1, clock() - began
    return count / elapsed


def table(cases: Sequence[Case]) -> str:
    """Return the cases as lines of text, each number with its spread."""
    width = max(len(case.name) for case in cases)
    lines = [f"{'':{width + 12}}" + "".join(f"{side:>28}" for side in ("ours", "theirs", "ratio"))]
    for case in cases:
        sides = "".join(f"{side!s:>28}" for side in (case.ours, case.theirs, case.ratio))
        lines.append(f"{case.name:{width}}  {case.unit:10}{sides}")
        if case.peak_flops is not None:
            peak = f"matrix-product peak of {case.peak_flops / 1e9:,.0f} GFLOP/s"
            lines.append(f"{'':{width}}  ours at {case.peak_share:.0%} of the measured {peak}")
        if case.flops_per_token is not None:
            spent = ", ".join(f"{side} {flops / 1e6:,.1f}" for side, flops in case.flops_per_token.items())
            lines.append(f"{'':{width}}  million FLOPs computed for a token: {spent}")
    return "\n".join(lines)


def draw(cases: Sequence[Case], folder: Path) -> None:
    """Draw the ratios into benchmark.png, and the curves of the cases that have any into loss-curves.png."""
    _figure(folder / "benchmark.png", (9, 1.5 + 0.5 * len(cases)), [partial(_draw_ratios, cases)])
    if panels := [partial(_draw_curves, case.name, case.curves, case.baselines or {}) for case in cases if case.curves]:
        _figure(folder / "loss-curves.png", (1 + 4.5 * len(panels), 4), panels)


def _figure(path: Path, size: tuple[float, float], panels: "Sequence[Callable[[Axes], None]]") -> None:
    """Write panels side by side to a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        panel(axes)
    plots.write(figure, path)


def _draw_ratios(cases: Sequence[Case], axes: "Axes") -> None:
    """Draw a line for each case; a case with an infinite measurement of ours is only named."""
    drawn = [case for case in cases if math.isfinite(case.ratio.highest)]
    late = "".join(f"\nnot drawn, because ours took too long: {case.name}" for case in cases if case not in drawn)
    for height, ratio in enumerate(case.ratio for case in drawn):
        reach = [[ratio.median - ratio.lowest], [ratio.highest - ratio.median]]
        axes.errorbar(ratio.median, height, xerr=reach, fmt="o", color=OURS, capsize=3)
    axes.axvline(1, color=THEIRS, linestyle="--", linewidth=1)
    axes.set_yticks(range(len(drawn)), [f"{case.name}\n{case.unit}: {case.ratio}" for case in drawn])
    axes.set(xscale="log", ylim=(len(drawn) - 0.5, -0.5))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(f"ours / theirs\nhigher is better; for s, MiB, % of time and nats lower is{late}")


def _draw_curves(
    title: str, curves: Mapping[str, Sequence[Curve]], baselines: Mapping[str, float], axes: "Axes"
) -> None:
    """Draw the curves of both sides, and the baselines."""
    for side, color in (("theirs", THEIRS), ("ours", OURS)):
        for number, curve in enumerate(curves[side]):
            axes.plot(*zip(*curve, strict=True), color=color, marker=".", label=None if number else side)
    for name, level in baselines.items():
        axes.axhline(level, color="#777777", linestyle=":", linewidth=1)
        axes.annotate(name, (1, level), (0, 3), ("axes fraction", "data"), "offset points", ha="right")
    axes.set(title=title, xlabel="training tokens (millions)", ylabel="held-out masked loss (nats)")
    axes.xaxis.set_major_formatter(lambda tokens, _: f"{tokens / 1e6:g}")
    axes.label_outer()
    axes.legend(frameon=False)
