"""Fine-tuning as a function: what a notebook or a sweep calls."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from configs import UserError
from finetune import encoders, saved_model
from finetune.config import EarlyStopping, TrainConfig
from finetune.data import augment_contextual
from finetune.data.augment import Augmentation, Variants
from finetune.data.labelled import Labelled
from finetune.encoders import EncoderChoice
from finetune.evaluation import results
from finetune.evaluation.differences import jackknife_error, paired_difference
from finetune.evaluation.metrics import Metric
from finetune.evaluation.results import TrialResult
from finetune.experiment import FinetuneConfig, FinetuneRun, finetune
from finetune.heads.cnn import CnnHead
from finetune.heads.linear import LinearHead
from finetune.trial import Trial, run_trial
from mlm.checkpoint import weights
from mlm.distributed.world import World
from mlm.training.budget import TrainingLength, TrainingProgress
from mlm.training.loop import Observer, StepMetrics
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


class Events(Observer):
    """Keeps the names of the events of training, and the steps."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.steps: list[int] = []

    def started(self, world: World, length: TrainingLength, progress: TrainingProgress) -> None:
        self.seen.append("started")

    def log(self, progress: TrainingProgress, metrics: StepMetrics) -> None:
        self.steps.append(progress.step)

    def ended(self, progress: TrainingProgress) -> None:
        self.seen.append("ended")


def test_a_control_has_all_of_its_trial_but_pretraining_and_the_words_that_it_predicts(
    run: Path, tmp_path: Path
) -> None:
    """Both are trials as one trains them by oneself, the one on the texts that the encoder's own predictions make."""
    augment = Augmentation(replace=0.5)
    plain = config(run, tmp_path, CnnHead(filters=8))
    train = plain.train.model_copy(update={"early_stopping": EarlyStopping(metric="loss")})
    choice = plain.encoder
    settings = plain.model_copy(update={"augment": augment, "control": True, "train": train})
    made = finetune(settings).results
    dataset = plain.data.load(encoders.corpus_of(choice), encoders.open_encoder(choice, 0).as_read)
    (split,) = plain.splits.splits(dataset)
    predictor = encoders.open_predictor(choice, samples.CPU)
    replaced = augment_contextual.variants(split.train.texts, predictor, 0.5, augment.variants, seed=0)

    def trained(seed: int, *, is_control: bool, variants: Variants) -> TrialResult:
        trial = Trial(settings, split, seed, num_classes=2, is_control=is_control, variants=variants)
        encoder = encoders.open_encoder(choice.model_copy(update={"random": is_control}), seed)
        return run_trial(trial, encoder, samples.CPU, [])[0]

    assert made.baselines.random_encoder is not None
    trials, controls = made.trials, made.baselines.random_encoder.trials
    ours = [trained(seed, is_control=False, variants=replaced) for seed in (0, 1)]
    theirs = [trained(seed, is_control=True, variants=()) for seed in (0, 1)]
    assert [trial.weights_sha256 for trial in trials] == [one.scores.weights_sha256 for one in ours]
    assert [trial.weights_sha256 for trial in controls] == [one.scores.weights_sha256 for one in theirs]
    as_they_are = trained(0, is_control=False, variants=())
    assert as_they_are.scores.weights_sha256 != trials[0].weights_sha256

    def loss(labels_N: NDArray[np.int64], predictions_NC: NDArray[np.float64]) -> float:
        return float(-np.log(predictions_NC[np.arange(len(labels_N)), labels_N]).mean())

    # The interval is over the seeds and over the test texts, of which there is one part.
    mine, other = ([one.probabilities_NC for one in side] for side in (ours, theirs))
    error = jackknife_error(split.test.labels, mine, other, loss)
    mine_losses, other_losses = ([loss(split.test.labels, one) for one in side] for side in (mine, other))
    assert error > 0
    expected = paired_difference(mine_losses, other_losses, [0, 0], error).model_dump()
    assert made.baselines.random_encoder.difference is not None
    assert made.baselines.random_encoder.difference.model_dump() == pytest.approx(expected)


def sha256(run: FinetuneRun) -> str:
    return weights.sha256(weights.host_state_dict(run.model.classifier))


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
    assert first.results.model_dump(exclude={"trials", "seconds"}) == again.results.model_dump(
        exclude={"trials", "seconds"}
    )
    assert sha256(first) == sha256(again) != sha256(other)


def test_its_result_is_what_lies_in_the_directory(run: Path, tmp_path: Path) -> None:
    made = finetune(config(run, tmp_path, CnnHead(filters=8)))
    assert made.results == results.read(made.path)
    assert (made.path / "report.txt").read_text().strip() in made.summary
    saved = saved_model.load(made.path, torch.device("cpu"))
    assert (saved.class_names, saved.precision) == (made.model.class_names, made.model.precision)
    assert not made.model.classifier.training
    assert weights.sha256(weights.host_state_dict(saved.classifier)) == sha256(made)
    assert json.loads((made.path / "environment.json").read_text())["kind"] == "fine-tuning"


def test_observers_see_every_trial_and_progress_is_logged(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    events = Events()
    with caplog.at_level("INFO", "finetune"):
        made = finetune(config(run, tmp_path, CnnHead(filters=8)), [events])
    assert events.seen == ["started", "ended"] * 2
    assert events.steps == [*range(1, 7), *range(1, 7)]
    opening, *trials = caplog.messages
    assert str(made.path) in opening
    assert ["seed 0" in trials[0], "seed 1" in trials[1], len(trials)] == [True, True, 2]


def calm_texts(path: Path) -> str:
    """Write sentences of the first class alone."""
    rows = "".join(f"The harbour was calm on day {number},0\n" for number in range(12))
    path.write_text("text,target\n" + rows, encoding="utf-8")
    return str(path)


def test_a_test_part_of_one_class_leaves_null_what_cannot_be_measured(run: Path, tmp_path: Path) -> None:
    settings = config(run, tmp_path, LinearHead())
    data = settings.data.model_copy(update={"test": calm_texts(tmp_path / "calm.csv")})
    rule = EarlyStopping(metric="f1")
    training = settings.train.model_copy(update={"early_stopping": rule, "seeds": (0,)})
    made = finetune(settings.model_copy(update={"data": data, "train": training, "control": True}))
    text = (made.path / "results.json").read_text()
    found = json.loads(text, parse_constant=pytest.fail)
    unmeasured = {name for name, value in found["test"].items() if value is None}
    assert unmeasured == {"f1", "mcc", "precision", "recall", "roc_auc"}
    assert {name for name, value in found["baselines"]["majority"].items() if value is None} == unmeasured
    assert {name for name, value in found["trials"][0]["test"].items() if value is None} == unmeasured
    assert found["validation"]["f1"]["mean"] is not None
    assert found["test"]["accuracy"]["std"] is None  # one trial
    assert found["baselines"]["random_encoder"]["difference"] is None
    assert made.results == results.read(made.path)
    report = (made.path / "report.txt").read_text()
    assert "f1: -" in report
    told = [line for line in report.splitlines() if "not measured in 1 of 1 trial" in line]
    assert {line.split()[1].rstrip(":") for line in told} == unmeasured


def test_validation_metrics_that_cannot_be_measured_are_null_in_the_records(run: Path, tmp_path: Path) -> None:
    settings = config(run, tmp_path, LinearHead())
    data = settings.data.model_copy(update={"validation": calm_texts(tmp_path / "calm.csv")})
    made = finetune(settings.model_copy(update={"data": data}))
    records = [json.loads(line) for line in (made.path / "metrics.jsonl").read_text().splitlines()]
    validated = [record for record in records if record["side"] == "validation"]
    assert len(validated) == 4  # at both ends of both trials
    for record in validated:
        unmeasured = {name for name, value in record.items() if value is None}
        assert unmeasured == {"f1", "mcc", "precision", "recall", "roc_auc"}
    (board,) = (made.path / "trials").glob("*seed0")
    events = EventAccumulator(str(board))
    events.Reload()
    assert "validation/accuracy" in events.Tags()["scalars"]
    assert "validation/f1" not in events.Tags()["scalars"]


@pytest.mark.filterwarnings("ignore")  # what the tool's own packages use
def test_trials_and_results_are_shown_by_the_tools_that_the_recipe_names_and_no_other(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trackio = pytest.importorskip("trackio", reason="the extra trackio is not installed")
    made = finetune(config(run, tmp_path, LinearHead()).model_copy(update={"tracking": ("trackio",)}))
    found = {one.name: one for one in trackio.Api().runs("mlm") if one.name.startswith(made.path.name)}
    trials = [f"{made.path.name}-fold0-seed{seed}" for seed in (0, 1)]
    assert found.keys() == {made.path.name, *trials}
    assert found[trials[1]].config["head"]["kind"] == "linear"

    def points(name: str, metric: str) -> list[tuple[int, float]]:
        logs = trackio.sqlite_storage.SQLiteStorage.get_logs("mlm", name, run_id=found[name].id)
        return [(log["step"], log[metric]) for log in logs if metric in log]

    for name, trial in zip(trials, made.results.trials, strict=True):
        assert points(name, "results/test/accuracy") == [(points(name, "validation/loss")[-1][0], trial.test.accuracy)]
    assert made.results.test.accuracy is not None
    assert points(made.path.name, "results/test/accuracy/mean")[0][1] == made.results.test.accuracy.mean
    assert points(made.path.name, "confusion")
    assert not list(made.path.rglob("events.*"))
    assert [message for message in caplog.messages if "NOT WRITTEN" in message] == []


@pytest.mark.parametrize("metric", ["f1", "mcc", "precision", "recall", "roc_auc"])
def test_weights_cannot_be_chosen_by_a_metric_that_the_validation_part_lacks(
    run: Path, tmp_path: Path, metric: Metric
) -> None:
    settings = config(run, tmp_path, LinearHead())
    data = settings.data.model_copy(update={"validation": calm_texts(tmp_path / "calm.csv")})
    training = settings.train.model_copy(update={"early_stopping": EarlyStopping(metric=metric)})
    with pytest.raises(UserError, match=rf"train\.early_stopping\.metric={metric}.*validation"):
        finetune(settings.model_copy(update={"data": data, "train": training}))
    assert not list((tmp_path / "runs").glob("*"))


def test_a_stop_is_an_exception_after_the_step(run: Path, tmp_path: Path) -> None:
    events = Events()
    with pytest.raises(KeyboardInterrupt) as stopped:
        finetune(config(run, tmp_path, CnnHead(filters=8)), [events], stop=lambda: 15 * (len(events.steps) > 2))
    assert stopped.value.args == (15,)
    assert events.seen == ["started", "ended"]
    assert not list((tmp_path / "runs").glob("*/results.json"))


def test_a_stop_after_a_trials_last_step_is_heeded(run: Path, tmp_path: Path) -> None:
    events = Events()
    with pytest.raises(KeyboardInterrupt) as stopped:
        finetune(config(run, tmp_path, CnnHead(filters=8)), [events], stop=lambda: 15 * ("ended" in events.seen))
    assert stopped.value.args == (15,)
    assert events.seen == ["started", "ended"]


def test_a_mistake_is_an_exception_and_makes_no_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="nowhere"):
        finetune(config(tmp_path / "nowhere", tmp_path, CnnHead()))
    assert not (tmp_path / "runs").exists()
    assert capfd.readouterr() == ("", "")


def test_a_process_group_that_exists_is_used_and_left_open(run: Path, tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        inside = finetune(config(run, tmp_path, CnnHead(filters=8)))
        assert torch.distributed.is_initialized()
    finally:
        torch.distributed.destroy_process_group()
    assert sha256(inside) == sha256(finetune(config(run, tmp_path, CnnHead(filters=8))))
