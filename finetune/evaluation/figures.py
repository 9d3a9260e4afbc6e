"""Figures of a classifier's training, its confusions, and comparisons of runs."""

import textwrap
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from finetune.data.class_names import short
from finetune.evaluation.metrics import Metric, goodness

if TYPE_CHECKING:  # imported by the functions that draw, because it takes a while
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TITLE_LETTERS_PER_INCH = 8
LIGHT, DARK, OTHER = "#9db4c8", "#1f5582", "#b5651d"
_HIDDEN = "_"  # start of the labels that matplotlib leaves out of the legend: all but the first of several like lines
_LETTER_INCHES = 0.09  # width of a letter beside the matrix


def confusion_figure(matrix_CC: NDArray[np.int64], class_names: Sequence[str], title: str) -> "Figure":
    """Draw counts, true classes in rows and predicted ones in columns, and each true class's shares, darker if larger.

    A name with letters that the font lacks is shown as its number.
    """
    from matplotlib.figure import Figure

    number = len(class_names)
    totals_C1 = matrix_CC.sum(axis=1, keepdims=True)
    shares_CC = matrix_CC / np.maximum(totals_C1, 1)
    names = [_drawable(short(name), instead=str(index)) for index, name in enumerate(class_names)]
    longest = max(map(len, names))
    upright = longest > (13 if number == 2 else 6)  # number of letters that fit under a column
    side, beside = max(3.0, 0.9 + 0.62 * number), _LETTER_INCHES * longest
    figure = Figure(figsize=(side + 0.4 + beside, side + 0.4 + upright * beside), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares_CC, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(number), names, parse_math=False, rotation=90 if upright else 0)
    axes.set_yticks(range(number), names, parse_math=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    size = 11 if number <= 4 else 8 if number <= 12 else 7
    for (row, column), count in np.ndenumerate(matrix_CC):
        share = float(shares_CC[row, column])
        shown = f"{count:,}\n{share:.0%}" if count else "0"
        color = "white" if share > 0.55 else "#808080" if not count else "black"
        axes.text(column, row, shown, ha="center", va="center", fontsize=size, color=color)
    axes.set_xlabel("predicted (%: share of the true class)")
    axes.set_ylabel("true")
    wide = int(side * _TITLE_LETTERS_PER_INCH)
    lines = [textwrap.wrap(_drawable(short(line, 80), instead=""), wide) for line in title.splitlines()]
    axes.set_title("\n".join(chain.from_iterable(lines)), parse_math=False, fontsize=11, loc="left")
    return figure


def numbers_figure(numbers_N: NDArray[np.float64], predicted_N: NDArray[np.float64], title: str) -> "Figure":
    """Draw each example's predicted number by the true one, and the line on which they are equal."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(numbers_N, predicted_N, "o", color=DARK, alpha=0.3, markersize=3)
    ends = [min(numbers_N.min(), predicted_N.min()), max(numbers_N.max(), predicted_N.max())]
    axes.plot(ends, ends, color=OTHER, linestyle="--", linewidth=1)
    lines = [_drawable(line, instead="") for line in title.splitlines()]
    axes.set_title("\n".join(lines), parse_math=False, fontsize=11, loc="left")
    _finish(axes, "true", "predicted")
    return figure


def learning_curves(records_by_trial: Mapping[str, Sequence[Mapping[str, Any]]], metric: Metric) -> "Figure":
    """Draw training and validation loss, and the validation metric, over epochs: one thin line per trial.

    A dot marks each trial's best evaluation by `metric`, whose weights are kept. Without evaluations the training loss
    alone is drawn. A record has `epoch`, `side` ('train' or 'validation'), `loss` and, for validation, the metrics;
    missing values are skipped.
    """
    from matplotlib.figure import Figure

    evaluated = any(record["side"] == "validation" for records in records_by_trial.values() for record in records)
    shown = list(dict.fromkeys(("loss", metric))) if evaluated else ["loss"]
    alpha = 1.0 if len(records_by_trial) == 1 else 0.6
    figure = Figure(figsize=(4.6 * len(shown), 3.6), layout="constrained")
    for axes, drawn in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for index, records in enumerate(records_by_trial.values()):
            once = _HIDDEN if index else ""
            if drawn == "loss":
                axes.plot(*_points(records, "train", drawn), color=LIGHT, linewidth=0.8, label=f"{once}training")
            if evaluated:
                points = _points(records, "validation", drawn)
                axes.plot(*points, color=DARK, linewidth=0.9, alpha=alpha, label=f"{once}validation")
                points = _best(records, metric, drawn)
                axes.plot(*points, "o", color=OTHER, markersize=4, label=f"{once}best {metric}, kept")
        _finish(axes, "epochs", drawn)
    if records_by_trial:
        figure.axes[0].legend(framealpha=0.9, edgecolor="none", fontsize=8)
    return figure


def comparison_figure(
    trials_by_run: Sequence[tuple[str, Sequence[float]]], baselines: Mapping[str, float], metric: str
) -> "Figure":
    """Draw each run's mean, standard deviation and single trials; the baselines' scores are vertical lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.4 + 0.5 * len(trials_by_run)), layout="constrained")
    axes = figure.subplots()
    known = [(height, values) for height, (_, values) in enumerate(trials_by_run) if values]
    for index, (height, values) in enumerate(known):
        once = _HIDDEN if index else ""
        offsets = np.linspace(-0.14, 0.14, len(values)) if len(values) > 1 else np.zeros(1)
        axes.plot(values, height + offsets, "o", color=LIGHT, markersize=4, label=f"{once}one trial")
        mean, spread = float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None
        label = f"{once}mean ± standard deviation"
        axes.errorbar(mean, height, xerr=spread, fmt="D", color=DARK, markersize=5, capsize=4, label=label)
    for (name, score), dashes in zip(baselines.items(), ("--", ":", "-."), strict=False):
        axes.axvline(score, color=OTHER, linestyle=dashes, linewidth=1, label=f"{name} {score:.3f}")
    names = [_drawable(name, instead=f"run {number}") for number, (name, _) in enumerate(trials_by_run, start=1)]
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set_ylim(len(names) - 0.5, -0.5)
    _finish(axes, f"test {metric}", "")
    if known or baselines:
        figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def _points(records: Sequence[Mapping[str, Any]], side: str, metric: str) -> tuple[list[float], list[float]]:
    known = [record for record in records if record["side"] == side and record.get(metric) is not None]
    return [record["epoch"] for record in known], [record[metric] for record in known]


def _best(records: Sequence[Mapping[str, Any]], metric: Metric, drawn: str) -> tuple[list[float], list[float]]:
    """Return epoch and drawn value of the first best evaluation, as lists that may be empty."""
    # The evaluation before the first step is no candidate.
    trained = [record for record in records if record["side"] == "validation" and record["epoch"] > 0]
    known = [record for record in trained if record.get(metric) is not None and record.get(drawn) is not None]
    best = [max(known, key=lambda record: goodness(metric, record[metric]))] if known else []
    return [record["epoch"] for record in best], [record[drawn] for record in best]


def _finish(axes: "Axes", across: str, up: str) -> None:
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _drawable(text: str, instead: str) -> str:
    """Return the text if the font has all its letters, else `instead`."""
    letters = _letters()
    return text if all(ord(letter) in letters for letter in text) else instead


@cache
def _letters() -> frozenset[int]:
    from matplotlib import font_manager

    return frozenset(font_manager.get_font(font_manager.findfont("sans\\-serif")).get_charmap())
