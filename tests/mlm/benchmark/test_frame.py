"""The frame of both benchmarks: a run keeps what it has measured, and options replace the scale's values."""

import json
from argparse import Namespace
from pathlib import Path

import pytest

from configs import UserError
from mlm.benchmark import frame
from mlm.benchmark.measure import Case
from tests.mlm.samples import CPU


def test_an_interrupted_run_keeps_the_cases_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def first() -> list[Case]:
        return [Case.of("first", "s", "seconds", [1.0], [2.0]), Case.of("first/more", "s", "seconds", [3.0], [2.0])]

    def second() -> list[Case]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        frame.run([("first", first), ("second", second)], CPU, {"scale": {"repeats": 1}}, tmp_path)
    found = json.loads((tmp_path / "benchmark.json").read_text())
    assert [case["name"] for case in found["cases"]] == ["first", "first/more"]
    assert found["scale"] == {"repeats": 1}
    assert "git_diff" not in found
    assert {path.name for path in tmp_path.iterdir()} == {"benchmark.json", "benchmark.png"}
    said = capsys.readouterr()
    assert "first/more" in said.out
    assert "measuring second" in said.err


def test_options_that_are_given_replace_values_of_the_scale() -> None:
    scale = frame.Scale(repeats=5, seconds=3.0)
    assert frame.with_options(scale, Namespace(repeats=2, text=["a"])) == frame.Scale(repeats=2, seconds=3.0)
    assert frame.with_options(scale, Namespace(repeats=None, seconds=None)) == scale


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--repeats", "0"], "--repeats"),
        (["--repeats", "x"], "--repeats"),
        (["--seconds", "0"], "--seconds"),
        (["--seconds", "nan"], "--seconds"),
        (["--seconds", "x"], "--seconds"),
        (["on"], "did you mean one"),
        (["else"], "one, two"),
    ],
)
def test_a_wrong_option_and_an_unknown_case_are_named(words: list[str], named: str) -> None:
    parser = frame.parser("mlm.benchmark", None, ["one", "two"], "runs")
    with pytest.raises(UserError, match=named):
        parser.parse_intermixed_args(words)
