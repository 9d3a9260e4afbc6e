"""The arms of a sweep: combinations of values, drawn or listed, and the overrides that set them."""

import itertools
import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from configs import UserError, as_override
from mlm.sweeps.config import Mode, Optuna, Random, Range, Search

Arm = Mapping[str, Any]
"""The value of each searched setting."""
_TRIES = 1000


def overrides_of(arm: Arm) -> list[str]:
    """Return the overrides, `section.key=value`, that set the values of an arm."""
    return [word for key, value in arm.items() for word in overrides_in(value) or [f"{key}={as_override(value)}"]]


def overrides_in(value: Any) -> list[str]:
    """Return the overrides of a value that is a list of them, or a name with one; none of any other value."""
    if is_named(value):
        return list(value["overrides"])
    is_list = isinstance(value, list | tuple) and all(isinstance(w, str) and re.match(r"[\w.-]+=", w) for w in value)
    return list(value) if is_list else []


def is_named(value: Any) -> bool:
    """Return True for a list of overrides with a name."""
    return isinstance(value, Mapping) and set(value) == {"name", "overrides"}


def cell(value: Any) -> str:
    """Return a value as it stands in a table: overrides by their name if they have one."""
    return str(value["name"]) if is_named(value) else " ".join(overrides_in(value)) or as_override(value)


def label(arm: Arm) -> str:
    """Return an arm as short text: the last parts of the names of its settings, and their values."""
    return ", ".join(
        f"{key.rpartition('.')[2]}={cell(value)}" if is_named(value) or not overrides_in(value) else short(cell(value))
        for key, value in arm.items()
    )


def full(arm: Arm) -> str:
    """Return an arm as text by the whole names of its settings, as a sweep's YAML has them."""
    return ", ".join(f"{key}={cell(value)}" for key, value in arm.items())


def short(overrides: str) -> str:
    """Return overrides, with a space between, by the last parts of their names where these differ."""
    names = re.findall(r"([\w-]+)=", overrides)
    return overrides if len(set(names)) < len(names) else re.sub(r"(?:[\w-]+\.)+([\w-]+=)", r"\1", overrides)


def key_of(arm: Arm) -> str:
    """Return a text that is equal for equal arms; a name stands for its overrides."""
    return json.dumps({key: value["name"] if is_named(value) else value for key, value in arm.items()}, sort_keys=True)


def ranked(values: Iterable[tuple[Arm, int, float | None]], mode: Mode) -> list[Arm]:
    """Return the arms that have values, each of a seed, the best first, by the mean of these.

    Arms with fewer seeds come last: a mean over the lucky seeds alone says nothing. An arm that was run twice with a
    seed has one value of it.
    """
    by_key: dict[str, tuple[Arm, dict[int, float]]] = {}
    for arm, seed, value in values:
        if value is not None:
            by_key.setdefault(key_of(arm), (arm, {}))[1][seed] = value
    sign = 1 if mode == "min" else -1
    order = sorted(by_key.values(), key=lambda found: (-len(found[1]), sign * statistics.fmean(found[1].values())))
    return [arm for arm, _ in order]


def grid(search: Search) -> list[Arm]:
    """Return every combination of the listed values, the last setting changing fastest."""
    values = [cast(tuple[Any, ...], values) for values in search.values()]
    return _distinct([dict(zip(search, combination, strict=True)) for combination in itertools.product(*values)])


def draw(search: Search, sampler: Random) -> list[Arm]:
    """Return combinations drawn at random."""
    rng = np.random.default_rng(sampler.seed)
    arms: dict[str, Arm] = {}
    for _ in range(_TRIES * sampler.arms):
        arm = {key: _drawn(values, rng) for key, values in search.items()}
        arms.setdefault(key_of(arm), arm)
        if len(arms) == sampler.arms:
            return list(arms.values())
    raise UserError(f"sampler.arms = {sampler.arms}, but search has only {len(arms)} combinations: lower it")


def propose(
    search: Search, sampler: Optuna, mode: Mode, known: Sequence[tuple[Arm, float | None]], count: int
) -> list[Arm]:
    """Return Optuna's next arms, given those before with their results; an arm without a result is a failed one."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {key: _distribution(values) for key, values in search.items()}
    # A proposal is a function of the seed and of all results before: nothing of Optuna's needs to be kept.
    study = optuna.create_study(
        direction="minimize" if mode == "min" else "maximize",
        sampler=optuna.samplers.TPESampler(seed=sampler.seed + len(known)),
    )
    for arm, result in known:
        values = {key: _parameter(search[key], value) for key, value in arm.items()}
        state = optuna.trial.TrialState.FAIL if result is None else optuna.trial.TrialState.COMPLETE
        study.add_trial(
            optuna.trial.create_trial(params=values, distributions=distributions, value=result, state=state)
        )
    asked = [study.ask(distributions) for _ in range(count)]
    return [{key: _value(search[key], one.params[key]) for key in search} for one in asked]


def _distribution(values: Range | tuple[Any, ...]) -> Any:
    import optuna

    if not isinstance(values, Range):
        return optuna.distributions.CategoricalDistribution([json.dumps(value) for value in values])
    if values.integer:
        return optuna.distributions.IntDistribution(round(values.low), round(values.high), log=values.log)
    return optuna.distributions.FloatDistribution(values.low, values.high, log=values.log)


def _parameter(values: Range | tuple[Any, ...], value: Any) -> Any:
    if not isinstance(values, Range):
        return json.dumps(value)
    return int(value) if values.integer else min(max(float(value), values.low), values.high)


def _value(values: Range | tuple[Any, ...], parameter: Any) -> Any:
    return _number(parameter, values) if isinstance(values, Range) else json.loads(parameter)


def _drawn(values: Range | tuple[Any, ...], rng: np.random.Generator) -> Any:
    if not isinstance(values, Range):
        return values[rng.integers(len(values))]
    low, high = (math.log(end) if values.log else end for end in (values.low, values.high))
    number = rng.uniform(low, high)
    return _number(math.exp(number) if values.log else number, values)


def _number(number: float, values: Range) -> str:
    """Return a number as text: four digits are all that a search tells apart."""
    return str(round(number)) if values.integer else f"{number:.4g}"


def ends(search: Search) -> list[Arm]:
    """Return arms that have each listed value, and both ends of each range, at least once."""
    values = {
        key: [_number(v.low, v), _number(v.high, v)] if isinstance(v, Range) else list(v) for key, v in search.items()
    }
    most = max(map(len, values.values()))
    return [{key: listed[number % len(listed)] for key, listed in values.items()} for number in range(most)]


def _distinct(arms: Sequence[Arm]) -> list[Arm]:
    return list({key_of(arm): arm for arm in arms}.values())
