import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from configs import UserError
from finetune.compare import main, parse
from tests.finetune.run_results import results
from tests.processes import call


def run(folder: Path, values: Sequence[float], encoder: str = "run: runs/x", **changes: Any) -> str:
    """Make a finished run's folder and return its path."""
    folder.mkdir()
    results(values, **changes).write(folder)
    (folder / "config.yaml").write_text(f"name: a\nencoder:\n  {encoder}\nhead:\n  kind: cnn\n")
    return str(folder)


def compared(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[str]:
    main([str(argument) for argument in arguments])
    return capsys.readouterr().out.splitlines()


def cells(line: str) -> list[str]:
    return re.split(r"\s{2,}", line)


def test_runs_and_baselines_stand_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(tmp_path / "first", [0.79, 0.80, 0.81], "{run: runs/x, hub: null, random: true}", seeds=3)
    hub = "{run: null, hub: google/electra-base-discriminator, random: false}"
    second = run(tmp_path / "second", [0.80, 0.83, 0.86], hub, seeds=3, parameters={"all": 9000, "trained": 70})
    picture = tmp_path / "picture.png"
    lines = compared(capsys, first, second, "--output", picture)
    assert cells(lines[0]) == [
        "run", "head", "encoder", "trained parameters", "test accuracy", "trials", "validation", "to the first run",
    ]  # fmt: skip
    assert cells(lines[1]) == [
        "first", "cnn", "random (runs/x)", "4,000,000 of 4,000,000", "0.800 ± 0.010", "3", "0.810 ± 0.010", "-",
    ]  # fmt: skip
    # The differences are 0.01, 0.03 and 0.05: 0.03 -+ 4.303 * 0.02 / sqrt(3).
    assert cells(lines[2]) == [
        "second", "cnn", "google/electra-base-discriminator", "70 of 9,000", "0.830 ± 0.030", "3", "0.840 ± 0.030",
        "+0.030 (-0.020 to +0.080)",
    ]  # fmt: skip
    assert [cells(line) for line in lines[3:5]] == [["TF-IDF", "0.800"], ["majority class", "0.550 ± 0.071"]]
    assert lines[5:] == [f"picture: {picture}"]
    assert imread(picture).shape[0] > 200


def test_what_cannot_be_compared_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(tmp_path / "first", [0.8, 0.8])
    data = {"train": 4000, "validation": 800, "test": 1100, "counts": {}}
    second = run(tmp_path / "second", [0.8], data=data)
    third = run(tmp_path / "third", [0.8, 0.9], classes=["no", "yes"])
    lines = compared(capsys, first, second, third, "--output", tmp_path / "a.png")
    assert cells(lines[2])[-1] == "-"
    data_differ, trials_differ, classes_differ = (line for line in lines if line.startswith("note: "))
    for note, words in (
        (data_differ, ("second", "first", "data", "test 1,100", "1,200")),
        (trials_differ, ("second", "1 trial (1 fold, 1 seed)", "first", "2 trials (2 folds, 1 seed)")),
        (classes_differ, ("third", "first", "classes")),
    ):
        assert all(word in note for word in words), note


def test_runs_on_other_test_texts_are_not_paired(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Seeds of the split may leave the same number of folds and of texts."""
    runs = [run(tmp_path / name, [0.8, 0.8]) for name in "ab"]
    other = json.loads((tmp_path / "b" / "results.json").read_text())
    for trial in other["trials"]:
        trial["test_sha256"] = "0" * 64
    (tmp_path / "b" / "results.json").write_text(json.dumps(other))
    lines = compared(capsys, *runs, "--output", tmp_path / "a.png")
    assert cells(lines[2])[-1] != "-"
    assert not [line for line in lines if line.startswith("note: ")], "an older run does not record its texts"
    for trial, fold in zip(other["trials"], "xy", strict=True):
        trial["test_sha256"] = fold * 64
    (tmp_path / "a" / "results.json").write_text(json.dumps(other))
    lines = compared(capsys, *runs, "--output", tmp_path / "a.png")
    assert cells(lines[2])[-1] == "-"
    (note,) = (line for line in lines if line.startswith("note: "))
    assert "b was tested on other texts than a" in note


def test_json_holds_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [run(tmp_path / "a", [0.5, 0.75]), run(tmp_path / "b", [0.75, 1.0])]
    found = json.loads("\n".join(compared(capsys, *runs, "--json", "--metric", "mcc", "--output", tmp_path / "a.png")))
    assert set(found) == {"metric", "runs", "baselines", "notes", "picture"}
    assert found["metric"] == "mcc"
    assert found["runs"][1] == {
        "run": "b",
        "head": "cnn",
        "encoder": "runs/x",
        "parameters": 4_000_000,
        "trained": 4_000_000,
        "trials": 2,
        "validation": {"mean": 0.885, "std": pytest.approx(0.03125**0.5)},
        "test": {"mean": 0.875, "std": pytest.approx(0.03125**0.5)},
        "difference": {"mean": 0.25, "low": None, "high": None, "pairs": 2, "freedom": None},
    }
    assert found["baselines"]["TF-IDF"] == {"mean": 0.8, "std": 0}
    assert (found["notes"], found["picture"]) == ([], str(tmp_path / "a.png"))


def test_the_metric_is_the_first_run_s_own_and_baselines_have_no_loss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = compared(capsys, run(tmp_path / "a", [0.75], metric="loss"), "--output", tmp_path / "a.png")
    assert cells(lines[0])[4] == "test loss"
    assert cells(lines[1])[4] == "0.250"
    assert lines[2:] == [f"picture: {tmp_path / 'a.png'}"]


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for parent in ("x", "y"):
        (tmp_path / parent).mkdir()
    runs = [run(tmp_path / parent / "same", [0.75]) for parent in ("x", "y")]
    found = json.loads("\n".join(compared(capsys, *runs, "--json", "--output", tmp_path / "a.png")))
    assert [row["run"] for row in found["runs"]] == ["x/same", "y/same"]
    with pytest.raises(UserError, match="same"):
        main([runs[0], f"{runs[0]}/../same"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere"),
        (["."], r"results\.json"),
        (["done", "--metric", "bleu"], "bleu.*accuracy.*f1.*loss"),
        (["done", "--output", "a.pdf"], "--output a.pdf.*png"),
        (["done", "--output", "no/a.png"], "--output no/a.png"),
        (["bare"], "bare/config.yaml"),
        ([], "RUN.*--help"),
    ],
)
def test_mistakes_are_told_in_one_line_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "done", [0.75])
    run(tmp_path / "bare", [0.75])
    (tmp_path / "bare" / "config.yaml").unlink()
    with pytest.raises(UserError, match=message) as caught:
        main(arguments)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare", "done"]


def test_help_teaches_by_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    shown = capsys.readouterr().out
    assert "python -m finetune.compare runs/a runs/b runs/c" in shown
    assert "95 % interval" in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 120


def test_the_command_ends_with_two_on_a_mistake(tmp_path: Path) -> None:
    done = call(tmp_path, "finetune.compare", ".")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: .*results\.json.*\n", done.stderr)
