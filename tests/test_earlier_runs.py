"""Runs that an earlier state of this project made are still read, judged, fine-tuned, trained further and used.

`tests/earlier` holds two pretraining runs of commit f683588 that stopped after step 20 of 40, one with a whole training
state and one with a sharded one, and a model that was fine-tuned on the finished run, with some of its predictions, and
what that commit filled into a blank.
"""

import json
import shutil
from pathlib import Path

import pytest

from mlm.checkpoint.manifest import DETERMINISM
from tests.processes import ROOT, call


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return shutil.copytree(ROOT / "tests" / "earlier", tmp_path / "home")


def output(home: Path, *words: str) -> str:
    done = call(home, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["earlier", "sharded"])
def test_a_run_in_another_order_of_rows_is_judged_and_trained_further_and_not_resumed(home: Path, name: str) -> None:
    stopped = json.loads(output(home, "mlm.status", f"runs/{name}", "--json"))
    assert (stopped["state"], stopped["checkpoint"]) == ("stopped", f"runs/{name}/checkpoints/step-000000020")
    before = {path: path.read_bytes() for path in (home / "runs" / name).rglob("*") if path.is_file()}
    refused = call(home, "mlm.pretrain", "--resume", f"runs/{name}")
    assert refused.returncode == 2
    (line,) = [line for line in refused.stderr.splitlines() if "version" in line]
    for word in (f"runs/{name}", "version 1 ", f"version {DETERMINISM}:", f"start_from=runs/{name}"):
        assert word in line
    assert "Traceback" not in refused.stderr
    assert {path: path.read_bytes() for path in before} == before
    judged = json.loads(output(home, "mlm.evaluate", f"runs/{name}", "--json"))
    assert set(judged["masks"]) == {"token", "word", "span"}
    further = ("name=further", f"start_from=runs/{name}", "train.budget.kind=steps", "train.budget.steps=20")
    output(home, "mlm.pretrain", f"runs/{name}/config.yaml", *further)
    (started,) = home.glob("runs/*-further")
    results = json.loads((started / "results.json").read_text())
    assert results["steps"] == 20
    records = map(json.loads, (home / "runs" / name / "metrics.jsonl").read_text().splitlines())
    (judged_then,) = [record for record in records if (record["side"], record["step"]) == ("heldout", 20)]
    # Under other masks, so not closer; a blank's guesses are compared exactly below.
    assert results["heldout_at_start"]["loss"] == pytest.approx(judged_then["loss"], abs=0.1)


def test_a_run_fills_in_blanks_and_is_fine_tuned(home: Path) -> None:
    filled = json.loads(
        output(home, "mlm.fill_mask", "The old cat sees the [MASK].", "--run", "runs/earlier", "--json")
    )
    (found,), (expected,) = filled["blanks"], json.loads((home / "filled.json").read_text())["blanks"]
    for guess, earlier in zip(found, expected, strict=True):
        assert guess["token"] == earlier["token"]
        assert guess["probability"] == pytest.approx(earlier["probability"], rel=1e-4)  # on any processor
    output(
        home,
        *("finetune.cnn_head", "encoder.run=runs/earlier", "name=tuned", "data.kind=labelled"),
        *("data.train=labelled.csv", "data.text=text", "data.label=label", "train.epochs=1", "train.seeds=[0]"),
    )
    (tuned,) = home.glob("runs/*-tuned")
    assert json.loads((tuned / "results.json").read_text())["trials"][0]["epochs"] == 1


def test_a_fine_tuned_model_predicts_and_is_compared(home: Path) -> None:
    expected = [json.loads(line) for line in (home / "predicted.jsonl").read_text().splitlines()]
    texts = [prediction["text"] for prediction in expected]
    said = [
        json.loads(line) for line in output(home, "finetune.predict", "runs/finetuned", *texts, "--json").splitlines()
    ]
    for prediction, earlier in zip(said, expected, strict=True):
        assert prediction["text"] == earlier["text"]
        assert prediction["probabilities"] == pytest.approx(earlier["probabilities"], abs=1e-3)
    assert "finetuned" in output(home, "finetune.compare", "runs/finetuned", "--output", "compared.png")
    assert (home / "compared.png").read_bytes().startswith(b"\x89PNG")


def test_a_fine_tuning_run_is_told_from_a_pretraining_run(home: Path) -> None:
    done = call(home, "mlm.pretrain", "--resume", "runs/finetuned")
    assert done.returncode == 2
    assert "runs/finetuned" in done.stderr
    assert "Traceback" not in done.stderr
