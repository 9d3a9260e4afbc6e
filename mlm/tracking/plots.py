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


def write(figure: "Figure", path: Path) -> None:
    """Write the figure as a PNG file, which is whole at every moment."""
    with written(path) as partial:
        figure.savefig(partial, format="png", dpi=120)
