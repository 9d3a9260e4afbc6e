"""Draw a run's learning curve and its loss by position, and write figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.files import written

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLES: Mapping[str, Any] = {
    "train": {"label": "training", "color": "#9db4c8", "linewidth": 1},
    "heldout": {"label": "held-out", "color": "#1f5582", "marker": "."},
}


def draw(
    records: Sequence[Mapping[str, Any]], path: Path, baselines: Mapping[str, Mapping[str, float]] | None = None
) -> None:
    """Draw loss and accuracy over tokens as a PNG file: of a metrics.jsonl's records, and of baselines as lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = (("loss", "masked loss (nats)"), ("accuracy", "masked accuracy"))
    for axes, (metric, title) in zip(figure.subplots(1, 2), panels, strict=True):
        for side, style in STYLES.items():
            points = [(r["tokens"] / 1e6, r[metric]) for r in records if r["side"] == side and r[metric] is not None]
            if points:
                axes.plot(*zip(*points, strict=True), **style)
        for (name, scores), dashes in zip((baselines or {}).items(), ("--", ":"), strict=False):
            axes.axhline(scores[metric], color="#b5651d", linestyle=dashes, linewidth=1, label=f"{name} (held-out)")
        axes.set(xlabel="tokens read (millions)", ylabel=title)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    if figure.axes[0].get_legend_handles_labels()[0]:
        figure.axes[0].legend(framealpha=0.9, edgecolor="none", fontsize=8)
    write(figure, path)


def draw_by_position(scores: Mapping[str, Mapping[str, float | None]], path: Path) -> None:
    """Draw the held-out loss of each range of positions as a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    points = [(name, score["loss"]) for name, score in scores.items() if score["loss"] is not None]
    axes.plot(*zip(*points, strict=True), **STYLES["heldout"])
    axes.set(xlabel="position in the text (tokens)", ylabel="masked loss (nats)")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    write(figure, path)


def draw_pairs(found: Mapping[str, Any], path: Path) -> None:
    """Draw the accuracy on all minimal pairs, by field and by paradigm, the worst first, with 95 % intervals."""
    from matplotlib.figure import Figure

    bars = {
        "all": found,
        **found["fields"],
        **dict(sorted(found["paradigms"].items(), key=lambda one: one[1]["accuracy"])),
    }
    figure = Figure(figsize=(8, 1 + 0.2 * len(bars)), layout="constrained")
    axes = figure.subplots()
    places = range(len(bars))
    values = [100 * one["accuracy"] for one in bars.values()]
    margins = [[100 * abs(one["accuracy"] - one[end]) for one in bars.values()] for end in ("low", "high")]
    colors = ["#1f5582" if name == "all" or name in found["fields"] else "#9db4c8" for name in bars]
    axes.barh(places, values, xerr=margins, color=colors, ecolor="#555555", height=0.7)
    axes.axvline(50, color="#b5651d", linestyle="--", linewidth=1, label="chance")
    axes.set(yticks=places, yticklabels=list(bars), xlim=(0, 100), ylim=(len(bars) - 0.4, -0.6))
    axes.set_xlabel("pairs whose good sentence is the likelier one (%)")
    axes.tick_params(axis="y", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    write(figure, path)


def write(figure: "Figure", path: Path) -> None:
    """Write the figure as a PNG file, which is whole at every moment."""
    with written(path) as partial:
        figure.savefig(partial, format="png", dpi=120)
