import math
from itertools import pairwise

import pytest
from pydantic import ValidationError

from mlm.training.schedule import (
    Constant,
    Cosine,
    Exponential,
    Linear,
    OneCycle,
    PiecewiseConstant,
    Power,
    Schedule,
    Trapezoid,
)


@pytest.mark.parametrize(
    ("schedule", "numbers"),
    [
        (Constant(warmup=0.2), {0.1: 0.5, 0.2: 1.0, 1.0: 1.0}),
        (Linear(warmup=0.2), {0.6: 0.5, 0.8: 0.25, 1.0: 0.0}),
        (Linear(warmup=0.0, final=0.5), {0.0: 1.0, 0.5: 0.75, 1.0: 0.5}),
        (Cosine(warmup=0.0), {0.0: 1.0, 0.5: 0.5, 2 / 3: 0.25}),
        (Cosine(warmup=0.4, final=0.2), {0.4: 1.0, 0.7: 0.6, 0.8: 0.4}),
        (Power(warmup=0.01), {0.005: 0.5, 0.04: 0.5, 0.09: 1 / 3}),
        (Power(warmup=0.25, exponent=-1.0), {0.25: 1.0, 0.5: 0.5, 1.0: 0.25}),
        (Exponential(warmup=0.0, final=0.01), {0.0: 1.0, 0.5: 0.1, 1.0: 0.01}),
        (Exponential(warmup=0.5, final=0.25), {0.25: 0.5, 0.75: 0.5, 1.0: 0.25}),
        (PiecewiseConstant(warmup=0.0), {0.49: 1.0, 0.5: 0.3, 0.8: 0.1}),
        (
            PiecewiseConstant(warmup=0.5, boundaries=(0.5,), factors=(1.0, 0.25)),
            {0.25: 0.5, 0.74: 1.0, 0.75: 0.25},
        ),
        (OneCycle(warmup=0.5, initial=0.2, final=0.0), {0.0: 0.2, 0.25: 0.6, 0.75: 0.5}),
        (OneCycle(), {0.0: 0.04, 0.15: 0.52, 0.3: 1.0, 1.0: 4e-6}),
        (Trapezoid(warmup=0.1, decay=0.4), {0.05: 0.5, 0.6: 1.0, 0.8: 0.5}),
        (Trapezoid(warmup=0.0, decay=0.5, final=0.2), {0.0: 1.0, 0.75: 0.6, 1.0: 0.2}),
        (Trapezoid(warmup=0.1, decay=0.0), {0.1: 1.0, 0.5: 1.0, 1.0: 1.0}),
        (Trapezoid(warmup=0.4, decay=0.6), {0.2: 0.5, 0.4: 1.0, 0.7: 0.5}),
    ],
    ids=str,
)
def test_factors_worked_by_hand(schedule: Schedule, numbers: dict[float, float]) -> None:
    assert {progress: schedule.factor(progress) for progress in numbers} == pytest.approx(numbers, rel=0, abs=1e-12)


EVERY = [
    Constant(),
    Linear(),
    Cosine(),
    Power(),
    Exponential(),
    PiecewiseConstant(),
    OneCycle(),
    Trapezoid(),
]


@pytest.mark.parametrize("schedule", EVERY, ids=lambda schedule: schedule.kind)
def test_every_schedule_peaks_once_at_the_end_of_its_warmup(schedule: Schedule) -> None:
    factors = [schedule.factor(i / 1000) for i in range(1001)]
    assert all(0 <= factor <= 1 for factor in factors)
    peak = round(1000 * schedule.warmup)
    assert factors[peak] == 1
    assert all(a < b for a, b in pairwise(factors[:peak]))
    assert all(a >= b for a, b in pairwise(factors[peak:]))


@pytest.mark.parametrize("schedule", EVERY, ids=lambda schedule: schedule.kind)
def test_warmup_meets_the_schedule_at_the_peak(schedule: Schedule) -> None:
    just_before = math.nextafter(schedule.warmup, 0)
    assert schedule.factor(just_before) == pytest.approx(schedule.factor(schedule.warmup), rel=0, abs=1e-9)


@pytest.mark.parametrize("schedule", [Linear(final=0.3), Cosine(final=0.3), Trapezoid(final=0.3)], ids=str)
def test_the_end_is_the_final_share(schedule: Schedule) -> None:
    assert schedule.factor(1.0) == pytest.approx(0.3, rel=0, abs=1e-12)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (Linear, {"warmup": 1.0}, "less than 1"),
        (Linear, {"warmup": -0.1}, "greater than or equal to 0"),
        (Linear, {"final": 1.1}, "less than or equal to 1"),
        (Exponential, {"final": 0.0}, "greater than 0"),
        (Power, {"warmup": 0.0}, "infinite at the start without a warm-up"),
        (Power, {"exponent": 0.5}, "less than 0"),
        (OneCycle, {"warmup": 0.0}, "greater than 0"),
        (OneCycle, {"warmup": 1.0}, "less than 1"),
        (Trapezoid, {"warmup": 0.6, "decay": 0.5}, r"warmup \+ decay is 1\.1, longer than the whole budget"),
        (PiecewiseConstant, {"factors": (1.0, 0.5)}, "factors must be one more than boundaries"),
        (PiecewiseConstant, {"factors": (1.0, 0.5, -0.1)}, "none negative"),
        (PiecewiseConstant, {"boundaries": (0.8, 0.5)}, "boundaries must rise from 0 to 1"),
        (PiecewiseConstant, {"boundaries": (0.5, 1.2)}, "boundaries must rise from 0 to 1"),
    ],
)
def test_settings_that_make_no_schedule_are_refused(
    kind: type[Schedule], settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        kind.model_validate(settings)
