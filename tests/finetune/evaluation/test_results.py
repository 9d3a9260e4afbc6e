import json
from pathlib import Path

import pytest

from configs import UserError
from finetune.evaluation.results import control_of, difference_of, read, table
from tests.finetune.run_results import NAMES, results, trials

SCORES = {*NAMES, "loss"}


def test_the_file_holds_what_is_promised(tmp_path: Path) -> None:
    results([0.81, 0.83, 0.82, 0.86], 2, [0.8, 0.8, 0.8, 0.8]).write(tmp_path)
    found = json.loads((tmp_path / "results.json").read_text())
    assert set(found) == {
        "name", "head", "classes", "metric", "validation", "test", "trials", "baselines", "parameters", "data",
    }  # fmt: skip
    assert set(found["validation"]) == set(found["test"]) == SCORES
    assert found["test"]["accuracy"] == pytest.approx({"mean": 0.83, "std": (0.0014 / 3) ** 0.5})
    assert found["test"]["loss"]["mean"] == pytest.approx(0.17)
    assert [(trial["fold"], trial["seed"]) for trial in found["trials"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert set(found["trials"][0]) == {"fold", "seed", "validation", "test", "epochs", "seconds", "weights_sha256"}
    assert set(found["trials"][0]["test"]) == SCORES
    assert set(found["baselines"]) == {"majority", "tfidf", "random_encoder"}
    assert set(found["baselines"]["majority"]) == set(NAMES)
    assert found["baselines"]["majority"]["f1"] == pytest.approx({"mean": 0.55, "std": 0.005**0.5})
    assert found["baselines"]["tfidf"]["f1"] == {"mean": 0.8, "std": 0}
    reach = 12.706204736174694 * (0.0002**0.5) / 2**0.5  # the folds differ by 0.02 and 0.04; t of 1 degree of freedom
    difference = pytest.approx({"mean": 0.03, "low": 0.03 - reach, "high": 0.03 + reach, "pairs": 4, "freedom": 1})
    assert found["baselines"]["random_encoder"]["difference"] == difference
    assert found["baselines"]["tfidf"]["difference"] == difference  # its folds have 0.8 as well
    assert found["parameters"] == {"all": 4_000_000, "trained": 4_000_000}
    assert found["data"] == {"train": 4000, "validation": 800, "test": 1200, "counts": {"duplicates": 12}}


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    for control in ([], [0.7, 0.75]):
        written = results([0.8, 0.9], 1, control)
        written.write(tmp_path)
        assert read(tmp_path) == written


def test_a_value_that_is_missing_is_null_and_one_that_was_not_asked_for_is_not_there(tmp_path: Path) -> None:
    made = results([0.8], roc_auc=None)
    made.write(tmp_path)
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["test"]["roc_auc"] is None
    assert found["trials"][0]["test"]["roc_auc"] is None
    assert found["baselines"]["tfidf"]["roc_auc"] is None
    assert set(found["baselines"]) == {"majority", "tfidf"}
    assert read(tmp_path) == made


def test_the_control_of_a_metric_that_cannot_be_measured_has_no_difference(tmp_path: Path) -> None:
    ours, control = trials([0.8, 0.9], roc_auc=None), trials([0.7, 0.7], roc_auc=None)
    found = control_of(ours, control, "roc_auc")
    assert (found.difference, found.roc_auc) == (None, None)
    made = results([0.8, 0.9], roc_auc=None, metric="roc_auc")
    made = made.model_copy(update={"baselines": made.baselines.model_copy(update={"random_encoder": found})})
    made.write(tmp_path)
    assert read(tmp_path) == made
    assert table(made).splitlines()[-1] == "this encoder - random encoder, roc_auc: -"


def test_trials_pair_by_fold_and_seed_whatever_their_order() -> None:
    ours, theirs = trials([0.75, 0.875, 1.0], 3), trials([0.5, 0.5, 0.5], 3)
    found = difference_of(ours, theirs, "accuracy")
    assert found is not None
    assert (found.mean, found.pairs) == (0.375, 3)
    assert difference_of(ours, theirs[::-1], "accuracy") == found
    assert difference_of(ours, theirs[:2], "accuracy") is None
    assert difference_of(ours[:2], theirs, "accuracy") is None
    assert difference_of(trials([0.5], roc_auc=None), trials([0.5]), "roc_auc") is None


def test_the_table_shows_every_baseline_and_what_pretraining_bought() -> None:
    lines = table(results([0.81, 0.83, 0.82, 0.86], 2, [0.8, 0.8, 0.8, 0.8])).splitlines()
    assert lines[0].split() == ["test", "accuracy", "f1", "f1_macro", "mcc", "roc_auc"]
    assert lines[1].startswith("this encoder       0.830 ± 0.022   0.830 ± 0.022")
    assert [line[:16].strip() for line in lines[2:5]] == ["random encoder", "TF-IDF", "majority class"]
    assert len({len(line) for line in lines[:5]}) == 1
    assert lines[5] == "mean ± standard deviation over 4 trials (2 folds, 2 seeds); baselines over the folds"
    told = "accuracy: +0.030 (-0.097 to +0.157), 95 % interval over folds"
    assert lines[6:] == [f"this encoder - TF-IDF, {told}", f"this encoder - random encoder, {told}"]


def test_the_table_of_a_single_trial_claims_no_interval() -> None:
    lines = table(results([0.75], 1, [0.5])).splitlines()
    assert lines[-3].startswith("mean ± standard deviation over 1 trial (1 fold, 1 seed)")
    assert lines[-2] == "this encoder - TF-IDF, accuracy: -0.050"
    assert lines[-1] == "this encoder - random encoder, accuracy: +0.250"
    assert lines[1].split() == ["this", "encoder", "0.750", "0.750", "0.750", "0.750", "0.750"]
    assert "random" not in table(results([0.75]))


def test_an_unfinished_and_a_pretraining_run_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        read(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"results\.json"):
        read(tmp_path)
    (tmp_path / "results.json").write_text('{"heldout": {"loss": 3.0}, "baselines": {}, "tokens": 5}')
    with pytest.raises(UserError, match=r"finetune\.cnn_head encoder\.run="):
        read(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"head": "cnn"', '"head": 3', "results.json, head:"),
        ('"head": "cnn"', '"head": "cnn", "odd\\u001b[2Jkey": 1', r"results.json, odd \[2Jkey:"),
        ('"seconds": 12.5', '"seconds": "soon"', "results.json, trials.0.seconds:"),
        ('"seconds": 12.5', '"seconds": NaN', "results.json, trials.0.seconds:"),
        ('"fold": 0', '"fold": -1', "results.json, trials.0.fold:"),
        ('"metric": "accuracy"', '"metric": "bleu"', "results.json, metric:"),
        ('"head": "cnn",', "", "results.json, head:"),
        ('"head": "cnn",', "[" * 10_000, "results.json"),
        ('"head": "cnn"', '"head": "\udcff"', "results.json"),
    ],
)
def test_foreign_results_are_told_in_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    results([0.8]).write(tmp_path)
    path = tmp_path / "results.json"
    path.write_bytes(path.read_text().replace(old, new, 1).encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path)
    assert str(caught.value).isprintable()
