import math
import statistics
from collections import Counter

import pytest

from configs import UserError
from mlm.sweeps import arms
from mlm.sweeps.config import Mode, Optuna, Random, Range, Search, SweepConfig


def test_a_grid_is_every_combination_once() -> None:
    found = arms.grid({"a.b": ("1", "2", "1"), "c": ("x", "y")})
    assert found == [{"a.b": a, "c": c} for a in "12" for c in "xy"]


def test_the_overrides_of_an_arm_are_those_of_a_command_line() -> None:
    arm = {"head.widths": ["3", "4"], "both": ["a.b=1", "c=[2, 3]"], "start_from": None, "optim.lr": "1e-3"}
    assert arms.overrides_of(arm) == ["head.widths=[3, 4]", "a.b=1", "c=[2, 3]", "start_from=null", "optim.lr=1e-3"]
    assert arms.label(arm) == "widths=[3, 4], b=1 c=[2, 3], start_from=null, lr=1e-3"


def test_a_name_stands_for_its_overrides() -> None:
    search = {"shape": {"wide": ["a.b=1", "c=2"], 64: ["c=3"]}, "only": [{"lang": ["a=b"]}, {"lang": ["c"]}]}
    config = SweepConfig.model_validate({"search": search}, strict=False)
    first, *_, last = arms.grid(config.search)
    assert arms.overrides_of(first) == ["a.b=1", "c=2", "only={lang: [a=b]}"]
    assert arms.label(last) == "shape=64, only={lang: [c]}"
    assert arms.key_of(first) == arms.key_of({"shape": "wide", "only": {"lang": ["a=b"]}})
    assert SweepConfig.model_validate(config.model_dump(mode="json"), strict=False) == config


def test_names_that_are_alike_are_shown_whole() -> None:
    assert arms.short("optim.kind=adamw schedule.kind=linear") == "optim.kind=adamw schedule.kind=linear"
    assert arms.short("optim.kind=muon optim.lr=0.1") == "kind=muon lr=0.1"
    assert arms.short("a.b") == "a.b"


def test_random_arms_are_those_of_their_seed_and_none_is_drawn_twice() -> None:
    search: Search = {
        "lr": Range(low=1e-5, high=1e-1, log=True),
        "layers": Range(low=1, high=4, integer=True),
        "a": ("x", "y"),
    }
    found = arms.draw(search, Random(arms=300, seed=1))
    assert found == arms.draw(search, Random(arms=300, seed=1)) != arms.draw(search, Random(arms=300, seed=2))
    assert len({arms.key_of(arm) for arm in found}) == 300
    assert set(Counter(arm["layers"] for arm in found)) == {"1", "2", "3", "4"}
    rates = [float(arm["lr"]) for arm in found]
    assert min(rates) >= 1e-5
    assert max(rates) <= 1e-1
    assert 100 < sum(rate < 1e-3 for rate in rates) < 200  # half of the logarithms
    with pytest.raises(UserError, match="only 2 combinations"):
        arms.draw({"a": ("x", "y")}, Random(arms=3))


def test_optuna_learns_from_results() -> None:
    pytest.importorskip("optuna", reason="the extra sweep is not installed")
    assert late_results("max") - late_results("min") > 0.5  # 0 without results, as the seeds are the same


def late_results(mode: Mode) -> float:
    """Return the median result of the arms behind the first ten, which Optuna draws at random."""
    search: Search = {"lr": Range(low=1e-4, high=1e-1, log=True)}
    known: list[tuple[arms.Arm, float | None]] = []
    for _ in range(30):
        (arm,) = arms.propose(search, Optuna(arms=30), mode, known, 1)
        known.append((arm, abs(math.log10(float(arm["lr"])) + 2)))  # distance from 0.01 in powers of ten, 0 to 2
    return statistics.median(result for _, result in known[10:] if result is not None)


def test_optuna_proposes_the_same_arms_again_from_the_same_results() -> None:
    pytest.importorskip("optuna", reason="the extra sweep is not installed")
    search: Search = {"lr": Range(low=1e-4, high=1e-1, log=True), "widths": (("3", "4"), ("5",)), "a": (None, "x")}
    known: list[tuple[arms.Arm, float | None]] = []
    sampler = Optuna(arms=20)
    for number in range(15):
        (arm,) = arms.propose(search, sampler, "min", known, 1)
        assert arms.propose(search, sampler, "min", known, 1) == [arm]
        assert arm["widths"] in (["3", "4"], ["5"])
        assert 1e-4 <= float(arm["lr"]) <= 1e-1
        known.append((arm, None if number == 3 else abs(float(arm["lr"]) - 0.01)))


def test_every_listed_value_and_both_ends_are_tried() -> None:
    found = arms.ends({"lr": Range(low=0.1, high=0.5), "a": ("x", "y", "z")})
    assert [arm["a"] for arm in found] == ["x", "y", "z"]
    assert {arm["lr"] for arm in found} == {"0.1", "0.5"}


def test_an_arm_that_was_run_twice_with_a_seed_is_no_better_for_it() -> None:
    worse, better, lucky = {"x": "1"}, {"x": "2"}, {"x": "3"}
    values = [(worse, 0, 3.0), (worse, 0, 3.0), (worse, 1, 3.0), (better, 0, 1.0), (better, 1, 2.0), (lucky, 0, 0.0)]
    assert arms.ranked(values, "min") == [better, worse, lucky]
    assert arms.ranked(values, "max") == [worse, better, lucky]
    assert arms.ranked([(worse, 0, None)], "min") == []
