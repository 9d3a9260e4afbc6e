"""One trial: early stopping, the weights that are kept, rates by layer, repeatability."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from configs import UserError, read
from finetune.config import FinetuneConfig
from finetune.data.examples import DataSplit, Examples
from finetune.encoders.published import load_published
from finetune.evaluation.metrics import Metric
from finetune.evaluation.results import Parameters, TrialResult
from finetune.training.classification import EncodedExamples, measure, predict
from finetune.training.classifier import Classifier
from finetune.training.trainable import Layers
from finetune.trial import Trial, make_task, run_trial
from mlm.distributed.threads import POSITIONS_WORTH_A_THREAD
from mlm.training.budget import TrainingProgress
from mlm.training.loop import Observer, StepMetrics
from mlm.training.optim import AdamW, ScheduleFreeAdamW
from tests.finetune import samples, tiny_published


class Recorder(Observer):
    """Keeps the events of a trial."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.validations: list[tuple[int, dict[str, float]]] = []

    def log(self, progress: TrainingProgress, metrics: StepMetrics) -> None:
        self.steps.append(progress.step)

    def evaluated(self, progress: TrainingProgress, metrics: Mapping[str, float], model: nn.Module) -> None:
        if metrics:
            self.validations.append((progress.step, dict(metrics)))

    def validation(self, metric: str) -> list[float]:
        return [values[metric] for _, values in self.validations]


@dataclass(frozen=True)
class Outcome:
    """The result of a trial and its classifier."""

    result: TrialResult
    classifier: Classifier

    @property
    def test(self) -> dict[Metric, float | None]:
        return self.result.scores.test.measured()

    @property
    def validation(self) -> dict[Metric, float | None] | None:
        scores = self.result.scores.validation
        return None if scores is None else scores.measured()


def recipe_of(*overrides: str) -> FinetuneConfig:
    tiny = ("head.filters=5", "head.dropout=0", "train.batch_examples=8", "optim.lr=3e-3", "train.precision=float32")
    return read(FinetuneConfig, None, [*tiny, *overrides])


def trial(run: Path, *overrides: str, split: DataSplit | None = None, seed: int = 0) -> tuple[Outcome, Recorder]:
    recorder = Recorder()
    settings = Trial(recipe_of(*overrides), split or samples.split(), seed, num_classes=2)
    outcome = Outcome(*run_trial(settings, samples.encoder(run), samples.CPU, [recorder]))
    return outcome, recorder


def weights_hash(outcome: Outcome) -> str:
    state = outcome.classifier.state_dict()
    return hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state))).hexdigest()


def random_labels(split: DataSplit) -> DataSplit:
    """Return the split with labels that say nothing, on which validation cannot go on getting better."""
    rng = np.random.default_rng(0)
    parts = (
        Examples(part.texts, rng.integers(0, 2, len(part))) for part in (split.train, split.validation, split.test)
    )
    train, validation, test = parts
    return DataSplit(train, validation, test)


def test_balanced_weights_give_each_class_the_same_share(run: Path) -> None:
    labels = np.array([0] * 6 + [1] * 2 + [2] * 4)
    split = samples.split()
    split = replace(split, train=Examples(split.train.texts[:12], labels))
    weights_C = {}
    for kind in ("balanced", "none"):
        settings = Trial(recipe_of(f"train.class_weights={kind}"), split, 0, num_classes=3)
        weights_C[kind] = make_task(settings, samples.encoder(run), samples.CPU).class_weights_C.numpy()
    assert weights_C["none"].tolist() == [1, 1, 1]
    assert weights_C["balanced"].tolist() == pytest.approx([12 / 18, 2.0, 1.0])
    assert weights_C["balanced"][labels].mean() == pytest.approx(1.0)


def test_it_learns_and_tells_what_it_learned(run: Path) -> None:
    outcome, taken = trial(run, "train.epochs=12")
    assert outcome.test["accuracy"] == 1.0
    assert taken.validations[0][0] == 0
    assert taken.steps[-1] == 60
    assert outcome.result.skipped == 0
    assert outcome.result.truncated == 0
    parameters = sum(parameter.numel() for parameter in outcome.classifier.parameters())
    assert outcome.result.parameters == Parameters(all=parameters, trained=parameters)


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_the_weights_that_validated_best_are_restored(metric: Metric, run: Path) -> None:
    split = random_labels(samples.split(validation=40))
    outcome, taken = trial(run, "train.epochs=10", f"train.early_stopping.metric={metric}", split=split)
    _, *values = taken.validation(metric)  # what is not trained yet is no candidate
    best = min(values) if metric == "loss" else max(values)
    assert outcome.validation is not None
    assert outcome.validation[metric] == pytest.approx(best, rel=1e-6)
    assert values[-1] != best  # so that the last weights would not have done
    assert outcome.result.scores.epochs == values.index(best) + 1


def test_the_restored_weights_are_those_of_their_step_by_hash(run: Path) -> None:
    """A constant rate, so that a training of fewer epochs is the beginning of a longer one."""
    whole = samples.split(validation=40)
    # A quarter of the validation labels are wrong: the surer the model gets, the more they cost.
    wrong = np.where(np.arange(40) % 4 == 0, 1 - whole.validation.labels, whole.validation.labels)
    split = DataSplit(whole.train, Examples(whole.validation.texts, wrong), whole.test)
    constant = ("schedule.kind=constant", "schedule.warmup=0", "train.early_stopping.metric=loss")
    outcome, taken = trial(run, "train.epochs=8", *constant, split=split)
    best = int(np.argmin(taken.validation("loss")))
    assert 0 < best < 8
    shorter, _ = trial(run, f"train.epochs={best}", *constant, split=split)
    assert weights_hash(shorter) == weights_hash(outcome)
    # Where no validation part is held back, the last weights are kept, and nothing is evaluated.
    unvalidated = replace(split, validation=split.validation.take([]))
    last, taken = trial(run, f"train.epochs={best}", *constant, split=unvalidated)
    assert weights_hash(last) == weights_hash(outcome)
    assert last.test == outcome.test
    assert (last.validation, last.result.scores.epochs, taken.validation("loss")) == (None, best, [])


def test_patience_ends_training_and_nothing_is_trained_after(run: Path) -> None:
    split = random_labels(samples.split(validation=40))
    overrides = ("train.epochs=20", "train.early_stopping.metric=loss")
    _, whole = trial(run, *overrides, split=split)
    _, taken = trial(run, *overrides, "train.early_stopping.patience=3", split=split)
    values = taken.validation("loss")
    best = values.index(min(values[1:]))
    assert len(values) == best + 1 + 3
    assert values == whole.validation("loss")[: len(values)]
    assert max(taken.steps) == 5 * (best + 3)


def test_evaluations_within_an_epoch_choose_the_weights_and_end_training(run: Path) -> None:
    overrides = ("train.epochs=20", "train.early_stopping.metric=loss", "train.early_stopping.patience=3")
    split = random_labels(samples.split(validation=40))
    outcome, taken = trial(run, *overrides, "train.evaluations_per_epoch=2", split=split)
    values = taken.validation("loss")
    best = values.index(min(values[1:]))
    assert len(values) == best + 1 + 3
    assert [step for step, _ in taken.validations] == list(range(0, 3 * len(values), 3))  # an epoch has five
    assert outcome.result.scores.epochs == 3 * best / 5


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(run: Path) -> None:
    overrides = ("train.epochs=2", "head.dropout=0.5", "augment.drop=0.2")
    first, second, other = (trial(run, *overrides, seed=seed)[0] for seed in (0, 0, 1))
    assert weights_hash(first) == weights_hash(second) != weights_hash(other)
    assert np.array_equal(first.result.probabilities_NC, second.result.probabilities_NC)


@pytest.fixture
def cores() -> Iterator[None]:
    """Let torch divide its work among two threads, however many cores there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("cores")
def test_long_batches_are_trained_on_threads_to_the_same_bits_again(run: Path, tmp_path: Path) -> None:
    overrides = ("train.epochs=2", "train.batch_examples=128", "head.dropout=0.5")
    settings = Trial(recipe_of(*overrides), samples.split(train=200), 0, num_classes=2)
    own = make_task(settings, samples.encoder(run, dropout=0.1), samples.CPU)
    assert 128 * own.train.lengths.mean() > 2 * POSITIONS_WORTH_A_THREAD
    assert (own.threads, own.micro_batch_examples) == (2, 64)
    published = load_published(str(tiny_published.save(tmp_path / "bert", "bert")), None, random=False, seed=0)
    left = make_task(settings, published, samples.CPU)  # transformers' dropout has one source of random numbers
    assert (left.threads, left.micro_batch_examples) == (1, 128)
    first, second = (
        Outcome(*run_trial(settings, samples.encoder(run, dropout=0.1), samples.CPU, [])) for _ in range(2)
    )
    assert weights_hash(first) == weights_hash(second)
    assert np.array_equal(first.result.probabilities_NC, second.result.probabilities_NC)


def test_schedule_free_evaluates_and_keeps_its_average(run: Path) -> None:
    overrides = ("optim.kind=schedule_free", "schedule.kind=constant", "train.epochs=6")
    outcome, taken = trial(run, *overrides)
    assert isinstance(recipe_of(*overrides).optim, ScheduleFreeAdamW)
    assert outcome.validation is not None
    assert outcome.validation["accuracy"] == max(taken.validation("accuracy")) > 0.9


def test_what_is_reported_is_what_the_kept_weights_predict(run: Path) -> None:
    split = samples.split()
    outcome, _ = trial(run, "train.epochs=1", split=split)
    encoder = outcome.classifier.encoder
    test = EncodedExamples(split.test, encoder.tokenize(split.test.texts, samples.LONGEST))
    chances = predict(outcome.classifier, test.tokens, encoder.pad_id, samples.CPU)
    assert np.array_equal(chances, outcome.result.probabilities_NC)
    assert measure(split.test.labels, chances) == outcome.test


def test_long_texts_are_counted(run: Path) -> None:
    outcome, _ = trial(run, "train.epochs=1", "encoder.longest=8")
    assert outcome.result.truncated == 72


def test_rates_fall_layer_by_layer_and_the_head_has_its_own(run: Path) -> None:
    outcome, _ = trial(run, "train.epochs=1")
    model = outcome.classifier
    factor = Layers(layer_decay=0.5, head_factor=10.0).prepare(model)
    expected = {"head.": 10.0, "blocks.1": 1.0, "final_norm": 1.0, "blocks.0": 0.5, "embeddings": 0.25}
    for name, _ in model.named_parameters():
        (wanted,) = {value for part, value in expected.items() if part in name}
        assert factor(name) == wanted, name
    optimizer = AdamW(lr=0.1, weight_decay=0.3).build(model, factor)
    by_parameter: dict[int, dict[str, Any]] = {
        id(p): group for part in optimizer.parts for group in part.param_groups for p in group["params"]
    }
    assert len(by_parameter) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        group = by_parameter[id(parameter)]
        assert group["peak_lr"] == pytest.approx(0.1 * factor(name))
        assert group["weight_decay"] == (0.3 if parameter.ndim >= 2 else 0.0)


@pytest.mark.parametrize(("layers", "trained"), [(0, "head."), (1, "blocks.1"), (2, "blocks.0")])
def test_only_the_last_layers_and_the_head_change(layers: int, trained: str, run: Path) -> None:
    before = samples.encoder(run).state_dict()
    outcome, _ = trial(run, "train.epochs=1", f"trainable.layers={layers}", "optim.weight_decay=0.1")
    after = outcome.classifier.encoder.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    allowed = {0: (), 1: ("blocks.1", "final_norm"), 2: ("blocks", "final_norm")}[layers]
    assert changed == {name for name in after if any(part in name for part in allowed)}
    assert bool(changed) == (layers > 0)


def test_more_layers_than_there_are_is_a_mistake(run: Path) -> None:
    with pytest.raises(UserError, match=r"trainable\.layers=3.*2 layers"):
        trial(run, "trainable.layers=3")
