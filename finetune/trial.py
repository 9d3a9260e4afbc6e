"""A trial: a classifier trained on one split with one seed, and its best weights judged on the test examples."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from finetune.config import EarlyStopping, FinetuneConfig
from finetune.data.augment import Variants
from finetune.data.examples import DataSplit
from finetune.encoders.encoder import TextEncoder
from finetune.evaluation.metrics import CLASS_METRICS, NUMBER_METRICS, deviation_of, goodness
from finetune.evaluation.results import Parameters, Scores, TrialResult, TrialScores
from finetune.heads import NumberHead, network_of
from finetune.training.classification import Classification, EncodedExamples, measure, predict
from finetune.training.classifier import Classifier, count
from mlm.checkpoint import weights
from mlm.checkpoint.interrupt import StopRequest
from mlm.distributed.threads import threads_for
from mlm.distributed.world import World
from mlm.tracking.metrics_file import MetricsFile
from mlm.tracking.trackers import Tracked, Trackers
from mlm.training.budget import Epochs, StepSize, TrainingProgress
from mlm.training.loop import Intervals, LoopSettings, Observer, StepMetrics, train

LOGS_PER_EPOCH = 10


@dataclass(frozen=True)
class Trial:
    """The settings and the data of a trial."""

    config: FinetuneConfig
    split: DataSplit
    seed: int
    """Seed of the head's initial weights, the order of the examples, dropout, and augmentation without context."""
    num_classes: int
    """1 if a number is predicted."""
    is_control: bool = False
    """True if the encoder is the randomly initialized one."""
    variants: Variants = ()

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps of an epoch; the last step may be short."""
        return -(-len(self.split.train) // self.config.train.batch_examples)

    @property
    def name(self) -> str:
        """The name in metrics.jsonl, of the folder for TensorBoard, and in other trackers."""
        return f"{'random-' if self.is_control else ''}fold{self.split.fold}-seed{self.seed}"


class TrialLogger(Observer):
    """Logs a trial to metrics.jsonl and the run's trackers; used on rank 0 only, as a context that closes them."""

    def __init__(self, run: Path, trial: Trial) -> None:
        self.trial, self._step = trial, 0
        self._file = MetricsFile(run)
        self._trackers = Trackers(trial.config.tracking, Tracked(run, trial.config.model_dump(mode="json"), trial.name))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._file.close()
        self._trackers.close(finished=kind is None)

    def log(self, progress: TrainingProgress, metrics: StepMetrics) -> None:
        """Log the means over the training examples since the last record."""
        means = {"accuracy" if name == "correct" else name: metrics.mean(name) for name in metrics.sums}
        self._write("train", progress, means)

    def evaluated(self, progress: TrainingProgress, metrics: Mapping[str, float], model: nn.Module) -> None:
        """Log the validation metrics, if there are any; those that cannot be measured are null."""
        if metrics:
            names = NUMBER_METRICS if self.trial.num_classes == 1 else CLASS_METRICS
            self._write("validation", progress, {name: metrics.get(name) for name in names})

    def conclude(self, result: TrialResult) -> None:
        """Show the scores of the best weights by the trackers."""
        self._trackers.conclude(result.scores.model_dump(mode="json", exclude_unset=True), self._step)

    def _write(self, side: str, progress: TrainingProgress, values: Mapping[str, float | None]) -> None:
        trial = self.trial
        record = {"trial": trial.name, "fold": trial.split.fold, "seed": trial.seed, "control": trial.is_control}
        record |= {"side": side, "step": progress.step, "epoch": progress.step / trial.steps_per_epoch}
        self._file.write({**record, **values})
        self._trackers.log(side, values, progress.step)
        self._step = progress.step


class BestWeights(Observer):
    """Keeps the weights that validate best, and tells when patience is exhausted."""

    def __init__(self, rule: EarlyStopping) -> None:
        self.rule = rule
        self.weights: dict[str, Tensor] = {}
        self.goodness, self.step = -math.inf, 0
        self.without_better = 0
        self.skipped = 0

    def log(self, progress: TrainingProgress, metrics: StepMetrics) -> None:
        """Count skipped updates."""
        self.skipped += len(metrics.skipped)

    def evaluated(self, progress: TrainingProgress, metrics: Mapping[str, float], model: nn.Module) -> None:
        """Keep the weights if they are the best so far; without validation examples the latest are the best."""
        if progress.step == 0:
            return  # an untrained head is no candidate
        value: float = progress.step
        if metrics:  # a metric that these predictions leave undefined is worse than any
            measured = metrics.get(self.rule.metric)
            value = -math.inf if measured is None else goodness(self.rule.metric, measured)
        if value > self.goodness or not self.weights:
            self.goodness, self.step, self.without_better = value, progress.step, 0
            self.weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        else:
            self.without_better += 1

    def is_exhausted(self) -> bool:
        """Return whether as many evaluations as `patience` allows went by without better weights."""
        return self.rule.patience is not None and self.without_better >= self.rule.patience


def run_trial(
    trial: Trial, encoder: TextEncoder, world: World, observers: Sequence[Observer], stop: Callable[[], int] = lambda: 0
) -> tuple[TrialResult, Classifier]:
    """Train a fresh head on `encoder`, in place; return the result and the classifier with its best weights.

    A UserError if a setting does not fit the encoder, or training diverged. A KeyboardInterrupt of the largest number
    on all ranks, after the step, if `stop` returned one other than 0 on any of them.
    """
    config = trial.config
    torch.manual_seed(trial.seed)
    classifier = Classifier(encoder, network_of(config.head, encoder, trial.num_classes)).to(world.device)
    if isinstance(classifier.head, NumberHead):
        classifier.head.scale_to(trial.split.train.labels)
    rate_factor = config.trainable.prepare(classifier)
    task, steps_per_epoch = make_task(trial, encoder, world), trial.steps_per_epoch
    best, request = BestWeights(config.train.early_stopping), StopRequest(stop)
    length = Epochs(epochs=config.train.epochs).training_length(StepSize(steps_per_epoch))
    intervals = Intervals(
        log_steps=max(steps_per_epoch // LOGS_PER_EPOCH, 1),
        evaluate_steps=-(-steps_per_epoch // config.train.evaluations_per_epoch),
        checkpoint_steps=length.steps or steps_per_epoch,
    )
    optimizer, clip_norm = config.optim.build(classifier, rate_factor), config.train.clip_norm
    end = train(
        classifier,
        task,
        LoopSettings(optimizer, config.schedule, length, intervals, clip_norm, seed=trial.seed, threads=task.threads),
        world,
        [best, *observers],
        start=TrainingProgress(),
        stop=lambda: request.is_made() or best.is_exhausted(),
    )
    request.is_made()  # a signal may have come after the last step's question
    if stopped_by := world.max(request.number):
        raise KeyboardInterrupt(stopped_by)
    trained = count(parameter for parameter in classifier.parameters() if parameter.requires_grad)
    classifier.load_state_dict(best.weights)
    config.trainable.finish(classifier)
    return _judge(trial, classifier.eval(), task, best, trained=trained, seconds=end.seconds), classifier


def _judge(
    trial: Trial, classifier: Classifier, task: Classification, best: BestWeights, *, trained: int, seconds: float
) -> TrialResult:
    """Measure the classifier on the validation and the test examples."""
    encoder, split = classifier.encoder, trial.split
    test = EncodedExamples.of(split.test, encoder, task.longest)
    validation_NC, test_NC = (
        predict(classifier, part.tokens, encoder.pad_id, task.world, task.threads) for part in (task.validation, test)
    )
    scale = deviation_of(split.train.labels)
    validated = measure(split.validation.labels, validation_NC, scale) if len(split.validation) else None
    scores = TrialScores(
        fold=split.fold,
        seed=trial.seed,
        validation=None if validated is None else Scores[float].model_validate(validated),
        test=Scores[float].model_validate(measure(split.test.labels, test_NC, scale)),
        epochs=best.step / trial.steps_per_epoch,
        seconds=seconds,
        weights_sha256=weights.sha256(weights.host_state_dict(classifier)),
        test_sha256=split.test.sha256,
    )
    parameters = Parameters(all=count(classifier.parameters()), trained=trained)
    truncated = sum(tokens.truncated for part in (task.train, task.validation, test) for tokens in part.tokens)
    return TrialResult(scores, split.test, test_NC, parameters, truncated, best.skipped, best.goodness)


def make_task(trial: Trial, encoder: TextEncoder, world: World) -> Classification:
    """Return the trial's data and settings as a task of the training loop."""
    from sklearn.utils.class_weight import compute_class_weight  # takes a second

    config, split = trial.config, trial.split
    settings, longest = config.train, min(config.encoder.longest, encoder.longest)
    balance = None if settings.class_weights == "none" else settings.class_weights
    weights_C = np.array([1 / deviation_of(split.train.labels)])
    if trial.num_classes > 1:
        weights_C = compute_class_weight(balance, classes=np.arange(trial.num_classes), y=split.train.labels)
    train_examples = EncodedExamples.of(split.train, encoder, longest)
    micro = min(settings.micro_batch_examples or settings.batch_examples, settings.batch_examples)
    threads = 1
    if encoder.trains_on_threads:
        together = min(micro, len(split.train))
        threads = threads_for(world, together, round(together * float(train_examples.lengths.mean())))
    return Classification(
        train=train_examples,
        validation=EncodedExamples.of(split.validation, encoder, longest),
        world=world,
        seed=trial.seed,
        encoder=encoder,
        longest=longest,
        batch_examples=settings.batch_examples,
        micro_batch_examples=-(-micro // threads),
        class_weights_C=torch.tensor(weights_C, dtype=torch.float32, device=world.device),
        label_smoothing=settings.label_smoothing,
        augmentation=config.augment,
        variants=trial.variants,
        threads=threads,
    )
