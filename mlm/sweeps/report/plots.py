"""The pictures of a report: a metric by each swept setting, all settings beside each other, and learning curves."""

import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas

from mlm.sweeps.arms import short
from mlm.sweeps.config import SweepConfig
from mlm.sweeps.report.statistics import estimate
from mlm.sweeps.report.table import settings_of
from mlm.tracking.plots import write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DARK = "#1f5582"
_MOST_CURVES = 6
_BEHIND = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
_LOG_RATIO = 20.0
"""Largest value of a setting over its least, from which on its axis is logarithmic."""
Curve = Sequence[tuple[int, float]]
"""Steps, and the held-out loss after each."""


def draw_settings(frame: pandas.DataFrame, config: SweepConfig, folder: Path) -> None:
    """Draw the metric by each setting: a point a trial, and the mean of each value with its interval.

    If one other setting is swept, each of its values is a series of its own: a mean over both would hide either.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    for name in settings_of(config):
        known = frame.dropna(subset=[name, config.metric])
        if known[name].nunique() < 2:
            continue
        figure = Figure(figsize=(6, 3.8), layout="constrained")
        axes = figure.subplots()
        places = _places(list(dict.fromkeys(known[name])), axes)
        series = series_of(known, [other for other in settings_of(config) if other != name])
        for number, (label, rows) in enumerate(series):
            color = DARK if len(series) == 1 else colormaps["viridis"](0.85 * number / (len(series) - 1))
            _draw_series(
                axes, [(places[value], group) for value, group in rows.groupby(name, sort=False)], config, color, label
            )
        axes.set(xlabel=name, ylabel=config.metric)
        _tidy(axes)
        axes.legend(framealpha=0.9, edgecolor="none", fontsize=8)
        write(figure, folder / f"{name}.png")


def series_of(frame: pandas.DataFrame, others: Sequence[str]) -> list[tuple[str, pandas.DataFrame]]:
    """Return the trials by each value of the one other setting that is swept, with its label; else all as one series.

    Trials of the stages before the one that set it are a series too.
    """
    swept = [other for other in others if frame[other].nunique(dropna=False) > 1]
    if len(swept) != 1 or frame[swept[0]].nunique(dropna=False) > _MOST_CURVES:
        return [("mean, 95 % interval over seeds", frame)]
    (other,) = swept
    named = frame.assign(**{other: frame[other].astype(object).fillna("not set")})
    return [(short(f"{other}={value}"), rows) for value, rows in named.groupby(other, sort=False)]


def _draw_series(
    axes: "Axes", groups: Sequence[tuple[float, pandas.DataFrame]], config: SweepConfig, color: Any, label: str
) -> None:
    """Draw trials as faint points and, at each place, the mean over seeds with its 95 % interval."""
    found = []
    for place, group in groups:
        axes.plot([place] * len(group), group[config.metric], "o", color=color, alpha=0.35, markersize=4, linewidth=0)
        found.append(estimate(list(group.groupby("seed")[config.metric].mean())))  # arms of a seed are no repeats
    means = [one.mean for one in found]
    halves = [0.0 if one.high is None else one.high - one.mean for one in found]
    places = [place for place, _ in groups]
    axes.errorbar(places, means, halves, fmt="s", color=color, capsize=4, markersize=5, label=label)


def draw_parallel(frame: pandas.DataFrame, config: SweepConfig, path: Path) -> None:
    """Draw a line for each trial over an axis for each setting and one for the metric, colored by the metric."""
    from matplotlib import colormaps
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    known = frame.dropna(subset=[config.metric])
    names = [name for name in settings_of(config) if known[name].nunique() > 1]
    least, most = float(known[config.metric].min()), float(known[config.metric].max())
    scale = Normalize(least, most if most > least else least + 1)
    figure = Figure(figsize=(max(2.2 * (len(names) + 1), 5), 4), layout="constrained")
    axes = figure.subplots()
    columns: list[Mapping[Any, float]] = []
    for place, name in enumerate(names):
        values = sorted(dict.fromkeys(known[name].dropna()), key=_as_number)
        positions = {value: n / max(len(values) - 1, 1) for n, value in enumerate(values)}
        columns.append(positions)
        for value, height in positions.items():
            axes.text(
                place - 0.03,
                height,
                textwrap.fill(short(str(value)), 20, break_long_words=False),
                ha="right",
                va="center",
                fontsize=8,
                bbox=_BEHIND,
            )
    for row in known.sort_values(config.metric, ascending=config.mode == "max").to_dict("records"):
        heights = [positions.get(row[name], math.nan) for name, positions in zip(names, columns, strict=True)]
        heights.append(float(scale(row[config.metric])))
        axes.plot(
            range(len(heights)), heights, color=colormaps["viridis"](scale(row[config.metric])), alpha=0.6, linewidth=1
        )
    for height in (0.0, 0.5, 1.0):
        axes.text(len(names) + 0.03, height, f"{least + height * (most - least):.4g}", va="center", fontsize=8)
    axes.set_xticks(range(len(names) + 1), [*(name.rpartition(".")[2] for name in names), config.metric], fontsize=9)
    axes.set_yticks([])
    axes.set_xlim(-0.6, len(names) + 0.5)
    for place in range(len(names) + 1):
        axes.axvline(place, color="#808080", linewidth=0.8)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.set_title(f"a line a trial; yellow is {'the better' if config.mode == 'max' else 'the worse'} end", fontsize=9)
    write(figure, path)


def draw_curves(curves: Mapping[str, Sequence[Curve]], path: Path) -> None:
    """Draw the held-out loss of the arms over steps: the mean of the seeds, and their range as a band."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    shown = dict(list(curves.items())[:_MOST_CURVES])
    for place, (label, several) in enumerate(shown.items()):
        color = colormaps["viridis"](0.9 * place / max(len(shown) - 1, 1))
        by_step: dict[int, list[float]] = {}
        for step, loss in (point for curve in several for point in curve):
            by_step.setdefault(step, []).append(loss)
        steps = sorted(by_step)
        axes.plot(steps, [statistics.fmean(by_step[step]) for step in steps], color=color, label=label, linewidth=1.4)
        axes.fill_between(
            steps,
            [min(by_step[s]) for s in steps],
            [max(by_step[s]) for s in steps],
            color=color,
            alpha=0.15,
            linewidth=0,
        )
    left = f" (the best {_MOST_CURVES} of {len(curves)} arms)" if len(curves) > _MOST_CURVES else ""
    axes.set(xlabel="steps", ylabel="held-out loss (nats)")
    axes.set_title(f"mean and range over seeds{left}", fontsize=9)
    _tidy(axes)
    axes.legend(framealpha=0.9, edgecolor="none", fontsize=8)
    write(figure, path)


def _places(values: Sequence[str], axes: "Axes") -> dict[str, float]:
    """Return the place of each value: its number, on a logarithmic axis if need be, else one after the other."""
    as_numbers = [_as_number(value) for value in values]
    if any(isinstance(number, str) for _, number in as_numbers) or len(values) < 3:
        axes.set_xticks(
            range(len(values)),
            [textwrap.fill(short(value), max(72 // len(values), 8), break_long_words=False) for value in values],
            fontsize=8,
        )
        axes.set_xlim(-0.5, len(values) - 0.5)
        return {value: float(place) for place, value in enumerate(values)}
    found = {value: float(number) for value, (_, number) in zip(values, as_numbers, strict=True)}
    least, most = min(found.values()), max(found.values())
    if least > 0 and most / least >= _LOG_RATIO:
        axes.set_xscale("log")
    return found


def _as_number(value: str) -> tuple[bool, float | str]:
    """Return a key that sorts numbers by size, before other texts."""
    try:
        return False, float(value)
    except ValueError:
        return True, value


def _tidy(axes: "Axes") -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
