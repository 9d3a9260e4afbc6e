"""Fine-tuning as a function: what a notebook or a sweep calls."""

import json
from pathlib import Path

import pytest
import torch

from configs import UserError
from finetune import saved_model
from finetune.config import FinetuneConfig, TrainConfig
from finetune.data.labelled import Labelled
from finetune.encoders import EncoderChoice
from finetune.evaluation import results
from finetune.evaluation.results import TrialResult
from finetune.experiment import FinetuneRun, finetune
from finetune.heads.cnn import CnnHead
from finetune.heads.linear import LinearHead
from finetune.trial import FinetuneObserver, Trial
from mlm.checkpoint import weights
from mlm.training.budget import TrainingLength
from tests.finetune import samples


def config(run: Path, folder: Path, head: CnnHead | LinearHead) -> FinetuneConfig:
    return FinetuneConfig(
        name="called",
        runs=str(folder / "runs"),
        encoder=EncoderChoice(run=str(run)),
        head=head,
        data=Labelled(train=str(samples.write_csv(folder / "train.csv", 60)), label="target"),
        train=TrainConfig(epochs=1, batch_examples=8, precision="float32", seeds=(0, 1)),
    )


class Events(FinetuneObserver):
    """Keeps the names of the events of a run and its trials."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def run_started(self, path: Path, summary: str) -> None:
        self.seen.append(path.name)

    def trial_started(self, trial: Trial, length: TrainingLength, steps_per_epoch: int) -> None:
        assert length.steps == steps_per_epoch
        self.seen.append(f"start {trial.name}")

    def trial_finished(self, trial: Trial, result: TrialResult) -> None:
        assert result.scores.seed == trial.seed
        self.seen.append(f"end {trial.name}")


def sha256(run: FinetuneRun) -> str:
    return weights.sha256(weights.of(run.model.classifier))


def test_it_is_called_twice_in_one_process_and_prints_nothing(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = finetune(config(run, tmp_path, CnnHead(filters=8)))
    again = finetune(config(run, tmp_path, CnnHead(filters=8)))
    other = finetune(config(run, tmp_path, LinearHead()))
    assert capfd.readouterr() == ("", "")
    assert torch.equal(torch.get_rng_state(), before)
    assert len({first.path, again.path, other.path}) == 3
    assert first.results.model_dump(exclude={"trials"}) == again.results.model_dump(exclude={"trials"})
    assert sha256(first) == sha256(again) != sha256(other)


def test_its_result_is_what_lies_in_the_directory(run: Path, tmp_path: Path) -> None:
    made = finetune(config(run, tmp_path, CnnHead(filters=8)))
    assert made.results == results.read(made.path)
    assert (made.path / "report.txt").read_text().strip() in made.report
    saved = saved_model.load(made.path, torch.device("cpu"))
    assert (saved.class_names, saved.precision) == (made.model.class_names, made.model.precision)
    assert not made.model.classifier.training
    assert weights.sha256(weights.of(saved.classifier)) == sha256(made)
    assert json.loads((made.path / "environment.json").read_text())["kind"] == "fine-tuning"


def test_observers_see_the_run_and_every_trial(run: Path, tmp_path: Path) -> None:
    events = Events()
    made = finetune(config(run, tmp_path, CnnHead(filters=8)), [events])
    trials = ("fold0-seed0", "fold0-seed1")
    assert events.seen == [made.path.name, *(f"{what} {trial}" for trial in trials for what in ("start", "end"))]


def test_a_mistake_is_an_exception_and_makes_no_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="nowhere"):
        finetune(config(tmp_path / "nowhere", tmp_path, CnnHead()))
    assert not (tmp_path / "runs").exists()
    assert capfd.readouterr() == ("", "")
