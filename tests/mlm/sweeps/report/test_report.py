import json
import re
from pathlib import Path

import pandas
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from configs import UserError, recipes
from mlm import report as command
from mlm.sweeps.config import SweepConfig
from mlm.sweeps.report import table
from mlm.sweeps.report.plots import series_of
from mlm.sweeps.report.report import report
from mlm.sweeps.report.study import filled
from mlm.sweeps.report.text import tables
from mlm.sweeps.trials import Sweep, Trial
from tests.mlm.sweeps.samples import Result, swept
from tests.processes import ROOT

PNG = b"\x89PNG"
LOSS = {"1e-3": 3.0, "1e-4": 4.0, "1e-5": 5.0}


def result(trial: Trial) -> Result:
    if trial.number == 5:
        return None
    return {"loss": LOSS[trial.arm["optim.lr"]] + trial.seed / 10 + (trial.arm["both"][0] == "x.y=2") / 100}


def sample(folder: Path) -> Sweep:
    search = {"optim.lr": tuple(LOSS), "both": [["x.y=1", "x.z=1"], ["x.y=2", "x.z=2"]]}
    baseline = {"optim.lr": "1e-4", "both": ["x.y=1", "x.z=1"]}
    hypothesis = {"better": {**baseline, "optim.lr": "1e-3"}, "than": baseline}
    settings = {"seeds": [0, 1], "baseline": baseline, "hypothesis": hypothesis}
    return swept(folder, result, name="q", search=search, **settings)


def test_a_report_has_the_table_the_verdict_the_failures_and_the_best_configuration(tmp_path: Path) -> None:
    found = sample(tmp_path)
    text = report(found)
    assert "12 trials of mlm.pretrain: 11 finished, 1 failed." in text
    assert "| 1e-3 | y=1 z=1 | 2 of 2 | 3.05 ± 0.071 | 2.415 to 3.685 | -1 (no scatter) | - |" in text
    assert "| 1e-5 | y=2 z=2 | 1 of 2 | 5.11 | one seed |" in text
    assert "**Undecided**: -1 (no scatter) over 2 of 2 pairs." in text
    assert "\nBaselines of heldout.loss: unigram 7; the trials: 3.968.\n" in text
    assert "Trial 0005 (lr=1e-5, y=2 z=2, seed 0):" in text
    assert "error: no memory" in text
    folder = found.path / "report"
    assert (folder / "report.md").read_text() == f"{text}\n"
    pictures = {"optim.lr.png", "both.png", "parallel_coordinates.png", "learning_curves.png"}
    assert {path.name for path in folder.glob("*.png")} == pictures
    assert all((folder / name).read_bytes().startswith(PNG) for name in pictures)
    best = (folder / "best.yaml").read_text()
    assert "# The best arm of the sweep q by heldout.loss: lr=1e-3, y=1 z=1." in best
    assert "name: q-best\nruns: runs\ntrain:\n  seed: 0\n" in best
    events = EventAccumulator(str(folder / "tensorboard" / "0000")).Reload()
    assert [one.value for one in events.Scalars("heldout.loss")] == [3.0]


def test_the_table_of_trials_is_read_back_with_the_same_tables(tmp_path: Path) -> None:
    found = sample(tmp_path)
    report(found)
    path = found.path / "report" / "results.csv"
    lines = path.read_text().splitlines()
    assert lines[0] == "trial,stage,seed,state,optim.lr,both,heldout.loss,steps,seconds"
    assert lines[1] == "0,0,0,finished,1e-3,x.y=1 x.z=1,3.0,10,1.5"
    assert lines[6] == "5,0,0,failed,1e-5,x.y=2 x.z=2,,,"
    frame = table.frame_of(found)
    assert tables(table.read(path, found.config), found.config) == tables(frame, found.config)
    path.write_text(path.read_text().replace("1e-5", "null"))  # a value, not a missing one
    assert "null" in set(table.read(path, found.config)["optim.lr"])
    path.write_text(path.read_text().replace(",3.0,", ",three,"))
    with pytest.raises(UserError, match=r"cannot read .*three"):
        table.read(path, found.config)
    path.write_text(path.read_text().splitlines()[0])
    with pytest.raises(UserError, match="has no trials"):
        table.read(path, found.config)
    with pytest.raises(UserError, match=r"no column head\.filters: it is no table of the sweep sweep"):
        table.read(path, SweepConfig(search={"head.filters": ("1",)}))
    with pytest.raises(UserError, match=r"cannot read .*none\.csv"):
        table.read(tmp_path / "none.csv", found.config)


def test_a_run_that_is_still_written_and_a_sweep_that_is_not_finished(tmp_path: Path) -> None:
    found = sample(tmp_path)
    path = found.path / "2026-01-01_00-00-00-0000" / "metrics.jsonl"
    path.write_text(path.read_text() + '{"side": "heldout", "st')
    (found.path / "2026-01-01_00-00-00-0006" / "results.json").unlink()
    assert "**Undecided so far**: -1 (one seed) over 1 of 2 pairs." in report(found)


def test_an_arm_with_its_lucky_seed_alone_is_not_the_best(tmp_path: Path) -> None:
    losses: dict[str, list[float | None]] = {"a": [3.0, 5.0], "b": [2.5, None]}

    def lucky(trial: Trial) -> Result:
        loss = losses[trial.arm["x"]][trial.seed]
        return None if loss is None else {"loss": loss}

    found = swept(tmp_path, lucky, search={"x": ("a", "b")}, seeds=[0, 1])
    report(found)
    assert "x=a." in (found.path / "report" / "best.yaml").read_text()


def test_a_report_of_a_sweep_that_has_just_begun_says_so(tmp_path: Path) -> None:
    found = swept(tmp_path, lambda _: None, name="q", search={"a": ["1", "2"]})
    with pytest.raises(UserError, match=r"trials: 0000 failed, 0001 failed; metrics: none"):
        report(found)


def test_a_page_has_its_tables_from_the_kept_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = sample(tmp_path)
    report(found)
    (tmp_path / "study").mkdir()
    (found.path / "report" / "results.csv").rename(tmp_path / "study" / "q.csv")
    recipe = tmp_path / "q.yaml"
    recipe.write_text(json.dumps(found.config.model_dump(mode="json")))
    monkeypatch.setattr(recipes, "known", lambda _: {"q": recipe})
    page = tmp_path / "page.md"
    page.write_text("Before.\n\n<!-- table: q -->\nold\n<!-- end -->\n\nAfter.\n")
    command.main(["--study", str(page)])
    expected = tables(table.read(tmp_path / "study" / "q.csv", found.config), found.config)
    assert page.read_text() == f"Before.\n\n<!-- table: q -->\n{expected}\n<!-- end -->\n\nAfter.\n"
    command.main(["--study", str(page)])
    assert page.read_text().count("<!-- table: q -->") == 1
    pictures = list((tmp_path / "study" / "q").glob("*.png"))
    assert {picture.stem for picture in pictures} == set(found.config.search)
    page.write_text("<!-- table: q metric=seconds mode=min -->\n<!-- end -->\n")
    command.main(["--study", str(page)])
    config = found.config.model_copy(update={"metric": "seconds", "mode": "min", "hypothesis": None})
    expected = tables(table.read(tmp_path / "study" / "q.csv", config), config)
    assert page.read_text() == f"<!-- table: q metric=seconds mode=min -->\n{expected}\n<!-- end -->\n"
    assert "| seconds |" in expected
    assert "Hypothesis" not in page.read_text()
    page.write_text(page.read_text().replace("<!-- end -->", ""))
    with pytest.raises(UserError, match="1 of the page's 1 tables have not the form of <!-- table: NAME"):
        command.main(["--study", str(page)])
    page.write_text("<!-- table: q metric=seconds mode=max -->\n<!-- end -->\n")
    with pytest.raises(UserError, match="seconds is better the lower: set mode=min"):
        command.main(["--study", str(page)])
    with pytest.raises(UserError, match=r"none/q\.csv is missing: copy the results\.csv"):
        filled("<!-- table: q -->\n<!-- end -->", tmp_path / "none")


@pytest.mark.parametrize("words", [[], ["runs/sweeps/x", "--study", "page.md"]])
def test_a_sweep_or_a_page_is_named(words: list[str]) -> None:
    with pytest.raises(UserError, match="name a sweep's folder"):
        command.main(words)


def test_a_picture_has_the_trials_of_the_stage_before_a_setting_was_searched() -> None:
    frame = pandas.DataFrame({"optim.lr": ["1", "2", "1", "1"], "head.dropout": [None, None, "0", "0.5"]})
    series = [list(rows.index) for _, rows in series_of(frame, ["head.dropout"])]
    assert series == [[0, 1], [2], [3]]
    ((_, whole),) = series_of(frame[:2], ["head.dropout"])
    assert list(whole.index) == [0, 1]


PAGES = "STUDY.md", "log.md", "speedrun.md"


def test_the_tables_of_every_page_are_those_of_its_kept_results() -> None:
    kept = ROOT / "docs" / "study"
    pages = {path: path.read_text(encoding="utf-8") for path in map((ROOT / "docs").joinpath, PAGES)}
    named = {name for text in pages.values() for name in re.findall(r"<!-- table: (\S+)", text)}
    assert named == {path.relative_to(kept).with_suffix("").as_posix() for path in kept.rglob("*.csv")} != set()
    for path, text in pages.items():
        assert filled(text, kept) == text, path
