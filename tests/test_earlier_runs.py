"""Runs that an earlier state of this project made are still resumed, read, judged, fine-tuned and used.

`tests/earlier` holds two pretraining runs of commit f683588 that stopped after step 20 of 40, one with a whole training
state and one with a sharded one, and a model that was fine-tuned on the finished run, with some of its predictions.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.processes import ROOT, call


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return shutil.copytree(ROOT / "tests" / "earlier", tmp_path / "home")


def output(home: Path, *words: str) -> str:
    done = call(home, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "checkpoints" / "step-000000040" / "weights.safetensors")


@pytest.mark.parametrize("name", ["earlier", "sharded"])
def test_a_run_is_resumed_to_the_weights_of_an_undisturbed_one_and_judged(home: Path, name: str) -> None:
    stopped = json.loads(output(home, "mlm.status", f"runs/{name}", "--json"))
    assert (stopped["state"], stopped["checkpoint"]) == ("stopped", f"runs/{name}/checkpoints/step-000000020")
    output(home, "mlm.pretrain", "--resume", f"runs/{name}")
    output(home, "mlm.pretrain", f"runs/{name}/config.yaml", "name=undisturbed")
    (undisturbed,) = home.glob("runs/*-undisturbed")
    expected = weights(undisturbed)
    for key, resumed in weights(home / "runs" / name).items():
        # Processors round differently, and half of the steps were made on another one.
        torch.testing.assert_close(resumed, expected[key], rtol=0, atol=1e-3)
    records = [json.loads(line) for line in (home / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["side"] == "train"] == [5, 10, 15, 20, 25, 30, 35, 40]
    judged = json.loads(output(home, "mlm.evaluate", f"runs/{name}", "--json"))
    assert set(judged["masks"]) == {"token", "word", "span"}


def test_a_run_fills_in_blanks_and_is_fine_tuned(home: Path) -> None:
    filled = json.loads(
        output(home, "mlm.fill_mask", "The old cat sees the [MASK].", "--run", "runs/earlier", "--json")
    )
    assert [len(blank) for blank in filled["blanks"]] == [5]
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
