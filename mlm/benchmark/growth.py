"""The cases of the benchmark about growth: what a token costs as one number of the model or the data grows."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from mlm.benchmark.measure import Case
from mlm.benchmark.speed import NEVER, Bench, MeterObserver, train_ours

WIDTHS, LAYERS, ROW_LENGTHS, VOCABULARIES = (128, 256, 512), (2, 4, 8), (64, 128, 256, 512), (2048, 4096, 8192)


def _width(width: int) -> Sequence[str]:
    sizes = f"model.encoder.width={width}", f"model.encoder.heads={width // 64}"
    return (*sizes, f"model.encoder.feedforward_width={4 * width}")


def _layers(layers: int) -> Sequence[str]:
    return (f"model.encoder.layers={layers}",)


def _row_length(bench: Bench) -> Callable[[int], Sequence[str]]:
    def overrides(length: int) -> Sequence[str]:
        rows = max(bench.scale.batch_tokens // length, 1)
        return f"data.row_length={length}", f"train.batch_rows={rows}", "evaluation.window_bytes=48"

    return overrides


def _vocabulary(size: int) -> Sequence[str]:
    return (f"vocabulary.size={size}",)


def growth(bench: Bench, name: str) -> list[Case]:
    """Train at several values of each number: what the largest takes over the smallest, in time and in FLOPs."""
    axes: dict[str, tuple[Sequence[int], Callable[[int], Sequence[str]]]] = {
        "width": (WIDTHS, _width),
        "layers": (LAYERS, _layers),
        "row-length": (ROW_LENGTHS, _row_length(bench)),
        "vocabulary": (VOCABULARIES, _vocabulary),
    }
    return [_along(bench, f"{name}/{axis}", values, overrides) for axis, (values, overrides) in axes.items()]


def _along(bench: Bench, name: str, values: Sequence[int], overrides: Callable[[int], Sequence[str]]) -> Case:
    benches = [replace(bench, sizes=(*bench.sizes, *overrides(value))) for value in values]
    flops = [_flops(one) for one in benches]
    turns = [[1 / _rate(one) for one in benches] for _ in range(bench.scale.repeats)]
    measured, needed = (statistics.median(exponent(values, turn) for turn in turns), exponent(values, flops))
    counted = (
        f"seconds of a trained token at {values[-1]} over those at {values[0]}; theirs: the same of the FLOPs that it"
        f" needs. Fitted exponents: {measured:.2f} and {needed:.2f}"
    )
    grown = [turn[-1] / turn[0] for turn in turns]
    return Case.of(name, "times", counted, grown, [flops[-1] / flops[0]] * len(grown))


def exponent(values: Sequence[float], costs: Sequence[float]) -> float:
    """Return k of the power law cost = c * value^k that fits best in logarithms."""
    exponent, _ = np.polyfit(np.log(values), np.log(costs), 1)
    return float(exponent)


def _rate(bench: Bench) -> float:
    meter = bench.meter()
    train_ours(bench.recipe, bench.world, MeterObserver(meter), NEVER, lambda: meter.finished)
    return meter.rate


def _flops(bench: Bench) -> float:
    from mlm.training import flops

    size, rows = bench.corpus.manifest.vocabulary_size, bench.corpus.train.rows
    return flops.flops_per_token(bench.recipe.model, size, flops.mean_context(rows), bench.recipe.masking.rate)
