import csv
import json
import os
import re
import shutil
from pathlib import Path

import pytest

from configs import UserError, read, recipes
from finetune.config import FinetuneConfig
from finetune.data.labelled import Labelled, in_folder
from finetune.evaluation import results
from finetune.evaluation.differences import mean_difference
from finetune.suite.__main__ import main
from finetune.suite.table import table
from tests.finetune import run_results, samples
from tests.processes import interrupted_in_training
from tokenizer.cleaning import TextConfig

RECIPE = """
data: {{kind: labelled, train: {train}, label: target}}
head: {{kind: {head}}}
splits: {{validation: 0.2, test: 0.2}}
train: {{epochs: 1, early_stopping: {{metric: {metric}}}}}
tracking: []
"""
KIM2014 = sorted(recipes.folder("kim2014", "finetune").glob("*.yaml"))


@pytest.fixture
def folder(tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working directory, with a suite of two tasks, their data in another folder, and a run."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "data").mkdir()
    for task, head, metric in (("first", "linear", "accuracy"), ("second", "cnn", "mcc")):
        samples.write_csv(tmp_path / "data" / f"{task}.csv", seed=len(task))
        recipe = RECIPE.format(train=f"{task}.csv", head=head, metric=metric)
        (tmp_path / "mine" / f"{task}.yaml").write_text(recipe)
    (tmp_path / "mine" / "published.csv").write_text("task,model,score\nfirst,Theirs,0.75\n")
    shutil.copytree(run, tmp_path / "runs" / run.name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def called(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    main(["mine", "--data", "data", "encoder.run=runs/tiny", *words])
    return capsys.readouterr().out.splitlines()


def test_every_task_is_a_run_and_a_row_beside_its_baselines_and_published_scores(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = called(capsys, "train.seeds=[0, 1]", "control=true")
    first, second = (results.read(next(folder.glob(f"runs/suites/mine/*-{task}"))) for task in ("first", "second"))
    assert (first.head, second.head) == ("linear", "cnn")
    assert lines[0].split("  ")[0] == "task"
    assert lines[0].endswith("trials  this encoder   random encoder  TF-IDF  Theirs  difference to TF-IDF")
    control = first.baselines.random_encoder
    assert control is not None
    assert first.test.accuracy is not None
    assert second.test.mcc is not None
    tfidf, other = first.baselines.tfidf.difference, second.baselines.tfidf.difference
    assert tfidf is not None
    assert other is not None
    cells = [cell for cell in lines[1].split("  ") if cell.strip()]
    expected = ["first", "accuracy", "2", str(first.test.accuracy), str(control.accuracy)]
    expected += [str(first.baselines.tfidf.accuracy), "0.750", str(tfidf)]
    assert [cell.strip() for cell in cells] == expected
    assert lines[2].split()[:4] == ["second", "mcc", "2", f"{second.test.mcc.mean:.3f}"]
    assert str(other) in lines[2]
    mean = (first.test.accuracy.mean + second.test.mcc.mean) / 2
    assert lines[3].split()[:2] == ["mean", f"{mean:.3f}"]
    assert lines[3].split()[4] == "-", "a mean over other tasks would not compare"
    difference = (tfidf.mean + other.mean) / 2
    assert lines[3].endswith(str(mean_difference([tfidf, other])))
    assert f"  {difference:+.3f}" in lines[3]


def test_the_mean_has_no_interval_where_an_older_run_covers_seeds_alone(tmp_path: Path) -> None:
    older = {"mean": 0.1, "low": 0.05, "high": 0.15, "pairs": 4}
    for name, values, seeds in (("folds", [0.7, 0.8, 0.7, 0.9], 2), ("seeds", [0.7, 0.8], 2)):
        (tmp_path / name).mkdir()
        run_results.results(values, seeds).write(tmp_path / name)
        written = json.loads((tmp_path / name / "results.json").read_text())
        written["baselines"]["tfidf"]["difference"] = older
        (tmp_path / name / "results.json").write_text(json.dumps(written))
    folds = table({"folds": tmp_path / "folds"}, {})["difference"]
    assert (folds["low"], folds["high"], folds["freedom"]) == (pytest.approx(0.05), pytest.approx(0.15), 1)
    both = table({name: tmp_path / name for name in ("folds", "seeds")}, {})["difference"]
    assert (both["mean"], both["low"]) == (pytest.approx(0.1), None)


def test_a_suite_goes_on_where_it_was_stopped_and_repeats_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "data" / "second.csv").rename(folder / "second.csv")
    with pytest.raises(UserError, match=r"1 of 2 tasks failed \(second: no such file: .*/data/second\.csv"):
        called(capsys)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["task", "first", "mean"]
    (first,) = (folder / "runs" / "suites" / "mine").glob("*-first")
    (first.parent / "foreign").mkdir()
    (first.parent / "foreign" / "results.json").write_text("{}")
    first = first.rename(first.with_name(f"{first.name}-1"))  # as a run whose name was taken
    before = (first / "results.json").stat().st_mtime_ns
    (folder / "second.csv").rename(folder / "data" / "second.csv")
    found = json.loads(called(capsys, "--json")[0])
    assert list(found["tasks"]) == ["first", "second"]
    assert found["tasks"]["first"]["scores"]["Theirs"] == {"mean": 0.75, "std": None}
    assert set(found["mean"]) == {"this encoder", "TF-IDF"}
    assert list((folder / "runs" / "suites" / "mine").glob("*-first*")) == [first]
    assert (first / "results.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="was made by another train: choose another --name, or remove it"):
        called(capsys, "train.epochs=2")
    assert called(capsys, "train.epochs=2", "--name", "longer")[1].startswith("first")


def test_ctrl_c_ends_the_suite_and_not_its_task_alone(folder: Path) -> None:
    words = ["mine", "--data", "data", "encoder.run=runs/tiny", "train.epochs=10000"]
    interrupted_in_training(folder, "runs/suites/*/*/metrics.jsonl", "finetune.suite", *words)
    assert [path.name.rpartition("-")[2] for path in folder.glob("runs/suites/mine/*-*")] == ["first"]


def test_the_reasons_are_told_if_every_task_fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"2 of 2 tasks failed \(first: .*no such file.*; second: .*no such file"):
        main(["mine", "--data", "elsewhere", "encoder.run=runs/tiny"])
    assert capsys.readouterr().out.split() == ["task", "metric", "trials", "difference", "to", "TF-IDF", "mean", "-"]


def test_a_mistake_is_told_before_anything_is_trained(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["nowhere"], "no such folder: nowhere: name one with recipes, or one of glue, kim2014"),
        (["mine", "glue"], "name one suite, not mine, glue"),
        (["train.epochs=1"], "name one suite, not none"),
        (["data"], "data has no recipes: name a folder with a .yaml file for each task"),
        (["mine", "train.epoch=1"], "did you mean train.epochs"),
        (["mine", "encoder.run=runs/absent"], "absent"),
        (["mine", "runs=elsewhere"], "runs=elsewhere: the suite names its runs, in runs/suites"),
        (["glue", "--data", "data", "encoder.run=runs/tiny"], "--data data: no recipe of"),
    ):
        with pytest.raises(UserError) as caught:
            main(words)
        assert message in str(caught.value)
    assert not (folder / "runs" / "suites").exists()
    (folder / "mine" / "published.csv").write_text("task,score\nfirst,0.75\n")
    with pytest.raises(UserError, match=r"published\.csv: .*model.*: its columns are task, model and score"):
        called(capsys)
    assert not (folder / "runs" / "suites").exists()


def test_several_processes_are_told_to_run_the_tasks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="a suite runs in one process: run its tasks one by one by torchrun"):
        main(["mine", "encoder.run=runs/tiny"])


def test_the_suites_have_the_tasks_of_their_papers() -> None:
    folders = recipes.folders("finetune")
    glue = {"cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli"}
    assert {path.stem for path in folders["glue"].glob("*.yaml")} == glue
    tasks = {path.stem for path in folders["kim2014"].glob("*.yaml")}
    assert tasks == {"mr", "subj", "cr", "mpqa", "sst2", "trec"}
    with (folders["kim2014"] / "published.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["task"], row["model"]) for row in rows} == {
        (task, f"CNN-{kind}") for task in tasks for kind in ("rand", "static", "non-static")
    }
    assert all(0.7 < float(row["score"]) < 1 for row in rows)


@pytest.mark.skipif("MLM_TEST_DATA" not in os.environ, reason="MLM_TEST_DATA names no folder with real data")
@pytest.mark.parametrize("recipe", KIM2014, ids=lambda path: path.stem)
def test_kims_tasks_have_the_size_that_their_recipes_tell(recipe: Path) -> None:
    folder = Path(os.environ["MLM_TEST_DATA"]) / "kim2014"
    config = read(FinetuneConfig, recipe, [])
    assert isinstance(config.data, Labelled)
    data = in_folder(config.data, folder).load(TextConfig())
    splits = list(config.splits.splits(data))
    told = re.search(r"Size: ([\d,]+) texts", recipe.read_text(encoding="utf-8"))
    assert told is not None
    size = int(told[1].replace(",", "")) - sum(data.counts.values())
    if config.data.test is None:
        assert (len(splits), sum(len(split.test) for split in splits)) == (10, size)
    else:
        (split,) = splits
        assert len(split.test) == {"sst2": 1821, "trec": 500}[recipe.stem]
        assert len(split.train) + len(split.validation) + len(split.test) == size
    assert set(data.counts) <= {"empty texts", "training texts that are also in the test data"}
