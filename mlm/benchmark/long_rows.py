"""The cases of long rows: training in rows of up to 8,192 tokens, beside rows of 128, with as many tokens a step."""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from mlm.benchmark.measure import Case, alternate

if TYPE_CHECKING:
    from mlm.benchmark.speed import Bench

SHORTEST, LONGER = 128, (512, 2048, 8192)
STEP_TOKENS = 8
"""Tokens of a step, as a multiple of those of the other cases: by default two of the longest rows."""
SEGMENTS = ("sentences", "documents")


def long_rows(bench: "Bench", name: str) -> list[Case]:
    """Train in rows of each length, beside rows of the shortest; the name ends with the segments of the text.

    A token attends to its segment, so that sentences cost the same in rows of any length, and whole documents more.
    """
    from mlm.benchmark.speed import measure_ours, needed_flops

    cases, segments, tokens = list[Case](), name.rpartition("/")[2], STEP_TOKENS * bench.scale.batch_tokens
    shortest = in_rows_of(bench, SHORTEST, tokens, segments)
    for length in LONGER:
        if length > tokens:  # of --quick
            continue
        one = in_rows_of(bench, length, tokens, segments)
        turns = alternate(partial(measure_ours, one), partial(measure_ours, shortest), bench.scale.repeats)
        rates = ([meter.rate for meter in side] for side in turns)
        counted = f"tokens without padding in rows of {length}, segments are {segments}; theirs: ours in rows of 128"
        needed = {"ours": needed_flops(one), "theirs": needed_flops(shortest)}
        cases.append(replace(Case.of(f"{name}/{length}", "tokens/s", counted, *rates), flops_per_token=needed))
    return cases


def in_rows_of(bench: "Bench", length: int, tokens: int, segments: str) -> "Bench":
    """Return the bench in rows of a length, with so many tokens a step, and rotary positions, as long rows have."""
    overrides = (
        f"text.segments={segments}",
        "model.encoder.positions={kind: rotary}",
        f"data.row_length={length}",
        f"train.batch_rows={max(tokens // length, 1)}",
    )
    return replace(bench, sizes=(*bench.sizes, *overrides))
