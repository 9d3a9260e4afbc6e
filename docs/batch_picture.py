"""Draw how a batch is made, `docs/batch.png`, by the code that makes it: `python docs/batch_picture.py`."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from tokenizers import Tokenizer

from configs.files import written
from mlm.data.batches import IGNORED, Batch, PackedRows
from mlm.data.masking import Masking
from mlm.data.order import RowOrder
from mlm.model.attention import SegmentMask
from tokenizer import sentences, vocabulary
from tokenizer.cached_encoder import CachedEncoder
from tokenizer.shards.format import ShardArrays
from tokenizer.shards.rows import pack_window, seal
from tokenizer.special_tokens import SpecialTokens
from tokenizer.vocabulary import MASK, VocabularyConfig

OUTPUT = Path(__file__).with_name("batch.png")
TEXT = (
    "A hare laughed at the short feet of a tortoise. The tortoise smiled. She said that she would win a race. The hare "
    "agreed. The fox chose the course. On the day both set off. The tortoise never stopped, and kept a slow and steady "
    "pace. The hare ran far ahead. He lay down by the road. He slept. When he woke, he ran as fast as he could. The "
    "tortoise was already there. She slept well that night."
)
"""The hare and the tortoise, after Aesop."""
VOCABULARY_SIZE, ROW_LENGTH, SEED, EPOCHS = 390, 24, 75, 2
SHOWN = 3
"""The row whose masks and attention are drawn, from 0."""

COLOURS = ("#cfe0ee", "#f3dfc1", "#d5e8d4", "#e6d7ec", "#f6d5d5")
"""Of the segments of a row, in turn."""
PADDING, INK, MASKED, RANDOM, KEPT = "#f4f4f4", "#22313f", "#1f5582", "#b5651d", "#3c8d5a"
SMALL, NORMAL, LARGE = 7.0, 9.0, 11.5
LEGEND = (
    (MASKED, "predicted, seen as [MASK]"),
    (RANDOM, "predicted, seen as a random token"),
    (KEPT, "predicted, kept"),
)
EXPLANATION = """\
Filled squares: a token attends to the tokens
of its own segment and to no others.

Positions restart in every segment, so the
encoder computes the same for a segment that
shares a row and for the same segment alone.

Hatched cells are padding, a segment of its own
that no token attends to."""


def main(output: Path = OUTPUT) -> None:
    """Draw the picture."""
    tokenizer, rows = packed_text()
    numbers = np.arange(len(rows))
    epochs = [
        rows.masked(numbers, np.full(len(rows), epoch), Masking(), rate=Masking().rate, seed=SEED)
        for epoch in range(EPOCHS)
    ]
    whole_BL = rows.assemble(numbers).ids_BL
    figure = Figure(figsize=(11.5, 9.6))
    _draw_rows(figure.add_axes((0.065, 0.745, 0.915, 0.2)), tokenizer, whole_BL, epochs[0])
    _draw_masks(figure.add_axes((0.065, 0.515, 0.915, 0.165)), tokenizer, whole_BL, epochs)
    _draw_attention(figure.add_axes((0.1, 0.045, 0.42, 0.395)), tokenizer, whole_BL, epochs[0])
    _write_legend(figure.add_axes((0.54, 0.045, 0.44, 0.395)))
    with written(output) as partial:
        figure.savefig(partial, format="png", dpi=100)


def packed_text() -> tuple[Tokenizer, PackedRows]:
    """Return a tokenizer learned from the text, and the text's sentences packed into rows."""
    found = [sentence.lstrip(" ") for sentence in sentences.split(TEXT)]
    tokenizer = vocabulary.learn(iter(2 * found), VocabularyConfig(size=VOCABULARY_SIZE))  # a merge needs two pairs
    encoded = CachedEncoder(tokenizer).encode(found)
    starts = np.concatenate([[0], encoded.lengths.cumsum()])
    alone = np.arange(len(starts))  # each sentence is a segment of its own, the default of `text.segments`
    split = ShardArrays(encoded.tokens, encoded.word_starts, starts, alone)
    special = SpecialTokens.of(tokenizer)
    rows = pack_window(split, (0, len(found)), ROW_LENGTH, special, "<u2", alone=True)
    seal(rows)
    return tokenizer, PackedRows((rows,), RowOrder((len(rows),)), special, VOCABULARY_SIZE)


@dataclass(frozen=True)
class Cell:
    """One position of a row as it is drawn."""

    text: str
    color: str
    ink: str = INK
    hatch: str | None = None


def _draw_rows(axes: Axes, tokenizer: Tokenizer, whole_BL: NDArray[np.int64], batch: Batch) -> None:
    _prepare(axes, "1   Segments fill rows", ROW_LENGTH, len(whole_BL))
    for row in range(len(whole_BL)):
        _strip(axes, row, f"row {row + 1}", _cells(tokenizer, whole_BL, batch, row))


def _draw_masks(axes: Axes, tokenizer: Tokenizer, whole_BL: NDArray[np.int64], epochs: list[Batch]) -> None:
    _prepare(axes, "2   Every epoch masks other tokens of the same row", ROW_LENGTH, len(epochs) + 1)
    _strip(axes, 0, f"row {SHOWN + 1}", _cells(tokenizer, whole_BL, epochs[0], SHOWN))
    for epoch, batch in enumerate(epochs, start=1):
        cells = _cells(tokenizer, whole_BL, batch, SHOWN)
        filled_M = batch.labels_BM[SHOWN] != IGNORED
        for place in batch.predicted_BM[SHOWN][filled_M].tolist():
            seen, token = int(batch.ids_BL[SHOWN, place]), int(whole_BL[SHOWN, place])
            color = MASKED if seen == MASK else KEPT if seen == token else RANDOM
            cells[place] = Cell("[MASK]" if seen == MASK else _piece(tokenizer, seen), color, "white")
        _strip(axes, epoch, f"epoch {epoch}", cells)


def _draw_attention(axes: Axes, tokenizer: Tokenizer, whole_BL: NDArray[np.int64], batch: Batch) -> None:
    mask = SegmentMask.of(batch.segments_BL[[SHOWN]], batch.positions_BL[[SHOWN]], torch.float32)
    sees_LL = (mask.bias(None)[0, 0] == 0).numpy()
    segments_L = batch.segments_BL[SHOWN].tolist()
    _prepare(axes, f"3   Attention of row {SHOWN + 1} stays within a segment", ROW_LENGTH, ROW_LENGTH)
    axes.set_aspect("equal", anchor="NW")
    for query, key in np.ndindex(sees_LL.shape):
        color = _color(segments_L[query]) if sees_LL[query, key] else "white"
        axes.add_patch(Rectangle((key, query), 1, 1, facecolor=color, edgecolor="#dddddd", linewidth=0.4))
    for place, token in enumerate(whole_BL[SHOWN].tolist()):
        axes.text(-0.3, place + 0.5, _piece(tokenizer, token), ha="right", va="center", fontsize=SMALL, color=INK)
    axes.text(ROW_LENGTH / 2, ROW_LENGTH + 0.9, "key", ha="center", va="center", fontsize=NORMAL, color=INK)
    axes.text(-4.4, ROW_LENGTH / 2, "query", ha="center", va="center", fontsize=NORMAL, color=INK, rotation="vertical")


def _write_legend(axes: Axes) -> None:
    axes.set(xlim=(0, 10), ylim=(10, 0))
    axes.axis("off")
    for place, (color, label) in enumerate(LEGEND):
        axes.add_patch(Rectangle((0, 0.3 + 0.75 * place), 0.5, 0.45, facecolor=color))
        axes.text(0.8, 0.53 + 0.75 * place, label, va="center", fontsize=NORMAL + 1, color=INK)
    axes.text(0, 3.3, EXPLANATION, va="top", fontsize=NORMAL + 1, color=INK, linespacing=1.45)


def _prepare(axes: Axes, title: str, columns: int, rows: int) -> None:
    axes.set(xlim=(0, columns), ylim=(rows, 0))
    axes.axis("off")
    axes.set_title(title, loc="left", fontsize=LARGE, fontweight="bold", color=INK, pad=8)


def _cells(tokenizer: Tokenizer, whole_BL: NDArray[np.int64], batch: Batch, row: int) -> list[Cell]:
    """Return the cells of a row before any of its tokens is masked."""
    pairs = zip(whole_BL[row].tolist(), batch.segments_BL[row].tolist(), strict=True)
    return [
        Cell(_piece(tokenizer, token), _color(segment)) if segment else Cell("", PADDING, hatch="////")
        for token, segment in pairs
    ]


def _strip(axes: Axes, height: int, name: str, cells: list[Cell]) -> None:
    axes.text(-0.25, height + 0.5, name, ha="right", va="center", fontsize=NORMAL, color=INK)
    for place, cell in enumerate(cells):
        corner = (place, height + 0.1)
        axes.add_patch(
            Rectangle(corner, 1, 0.8, facecolor=cell.color, edgecolor="white", linewidth=1.2, hatch=cell.hatch)
        )
        axes.text(place + 0.5, height + 0.5, cell.text, ha="center", va="center", fontsize=SMALL, color=cell.ink)


def _piece(tokenizer: Tokenizer, token: int) -> str:
    return tokenizer.decode([token]).strip() or "·"


def _color(segment: int) -> str:
    return COLOURS[(segment - 1) % len(COLOURS)] if segment else PADDING


if __name__ == "__main__":
    main()
