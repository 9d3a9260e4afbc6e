"""One trial: a classifier trained on one split with one seed, its best weights judged on the test part."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from finetune.config import EarlyStopping, FinetuneConfig
from finetune.data.augment import Variants
from finetune.data.examples import Split
from finetune.encoders.encoder import TextEncoder
from finetune.evaluation import metrics
from finetune.training.classification import Classification, Encoded, class_weights, measure, predict
from finetune.training.classifier import Classifier, count
from mlm.distributed.world import World
from mlm.tracking.progress_bar import ProgressBar
from mlm.training import interrupt
from mlm.training.budget import Epochs, TrainingLength, TrainingProgress
from mlm.training.loop import Frequencies, LoggedMetrics, LoopSettings, train
from mlm.training.optim import Optimizer, RateFactor

LOGS_PER_EPOCH = 10

Record = Callable[[str, int, float, Mapping[str, float]], None]
"""Takes down metrics: the side they are of, the step, the epoch, their values."""


class BestWeights:
    """Takes down what the loop reports, keeps the best weights, and says when there is no hope of better ones."""

    def __init__(self, rule: EarlyStopping, steps_per_epoch: int, record: Record, progress_bar: ProgressBar) -> None:
        self.rule, self.steps_per_epoch, self.record, self.progress_bar = rule, steps_per_epoch, record, progress_bar
        self.best: dict[str, Tensor] = {}
        self.best_value, self.best_step = -math.inf, 0
        self.without_better = 0
        self.last: Mapping[str, float] = {}
        self.skipped = 0

    def log(self, progress: TrainingProgress, metrics: LoggedMetrics) -> None:
        """Take down the training loss since the last record."""
        targets = max(metrics.targets, 1)
        loss = metrics.sums["loss"] / targets
        self.skipped += len(metrics.skipped)
        self._take("train", progress, {"loss": loss, "accuracy": metrics.sums["correct"] / targets})
        self.progress_bar.show(progress, loss, metrics.tokens / metrics.seconds, self.last.get("loss"))

    def evaluated(self, progress: TrainingProgress, found: Mapping[str, float], model: nn.Module) -> None:
        """Take down the validation metrics, and keep the weights if they are the best yet."""
        self.last = found
        if found:
            self._take("validation", progress, found)
        if progress.step == 0:
            return  # an untrained head is no candidate
        # Without a validation part the latest weights are the best.
        value = metrics.METRICS[self.rule.metric] * found[self.rule.metric] if found else progress.step
        if value > self.best_value:
            self.best_value, self.best_step, self.without_better = value, progress.step, 0
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        else:
            self.without_better += 1

    def hopeless(self) -> bool:
        """Tell whether the patience is at an end."""
        return self.rule.patience is not None and self.without_better >= self.rule.patience

    def checkpoint(self, progress: TrainingProgress, model: nn.Module, optimizer: Optimizer) -> None:
        """Keep nothing more: what is worth keeping was kept when it was evaluated."""

    def _take(self, side: str, progress: TrainingProgress, values: Mapping[str, float]) -> None:
        self.record(side, progress.step, progress.step / self.steps_per_epoch, values)


@dataclass(frozen=True)
class Outcome:
    """What a trial came to."""

    classifier: Classifier
    """With its best weights."""
    validation: Mapping[str, float | None] | None
    """None where the split has no validation part."""
    test: Mapping[str, float | None]
    probabilities_NC: NDArray[np.float64]
    """Of the test part's examples."""
    trained: int
    """Number of parameters that were trained."""
    epochs: float
    """Epochs after which the best weights were reached."""
    seconds: float
    """Time spent in training steps."""
    truncated: int
    """Examples that were longer than the encoder reads."""
    best: float
    """The metric of early stopping on the validation part; the larger, the better. Without one, the steps."""
    skipped: int
    """Updates left out because loss or gradient was not finite."""


def run_trial(
    recipe: FinetuneConfig,
    encoder: TextEncoder,
    classes: int,
    split: Split,
    seed: int,
    world: World,
    variants: Variants,
    record: Record,
) -> Outcome:
    """Train a fresh head on `encoder`, and the encoder with it, which is changed in place.

    Args:
        recipe: the settings.
        encoder: with the weights to start from.
        classes: number of classes.
        split: the examples.
        seed: of the head's initial weights, the order of the examples, what augmentation draws, and dropout.
        world: device and precision.
        variants: of each training example, its texts with words replaced; empty where none are.
        record: where metrics are taken down.

    """
    torch.manual_seed(seed)
    classifier = Classifier(encoder, recipe.head.build(encoder, classes)).to(world.device)
    rate_factor = recipe.trainable.prepare(classifier)
    task = _task(recipe, encoder, classes, split, seed, world, variants)
    steps = task.steps_per_epoch
    length = Epochs(epochs=recipe.train.epochs).length(0.0, steps)
    watcher = BestWeights(
        recipe.train.early_stopping, steps, record, ProgressBar(length, TrainingProgress(), silent=not world.is_main)
    )
    end = _fit(recipe, classifier, task, rate_factor, length, watcher)
    trained = count(parameter for parameter in classifier.parameters() if parameter.requires_grad)
    classifier.load_state_dict(watcher.best)
    recipe.trainable.finish(classifier)
    classifier.eval()
    test = Encoded.of(split.test, encoder, task.longest)
    validation_NC, test_NC = (predict(classifier, p.tokens, encoder.pad_id, world) for p in (task.validation, test))
    validation = measure(split.validation.labels, validation_NC) if len(split.validation) else None
    return Outcome(
        classifier,
        validation=validation,
        test=measure(split.test.labels, test_NC),
        probabilities_NC=test_NC,
        trained=trained,
        epochs=watcher.best_step / steps,
        seconds=end.seconds,
        truncated=sum(tokens.truncated for part in (task.train, task.validation, test) for tokens in part.tokens),
        skipped=watcher.skipped,
        best=watcher.best_value,
    )


def _fit(
    recipe: FinetuneConfig,
    classifier: Classifier,
    task: Classification,
    rate_factor: RateFactor,
    length: TrainingLength,
    watcher: BestWeights,
) -> TrainingProgress:
    """Train until the plan or the watcher's patience is at an end; Ctrl-C ends the command after the step."""
    settings, steps = recipe.train, task.steps_per_epoch
    with interrupt.noted("finishing the step") as stopped:
        end = train(
            classifier,
            task,
            LoopSettings(
                recipe.optim.build(classifier, rate_factor),
                recipe.schedule,
                length,
                intervals=Frequencies(
                    log_steps=max(steps // LOGS_PER_EPOCH, 1),
                    evaluate_steps=-(-steps // settings.evaluations_per_epoch),
                    checkpoint_steps=length.steps or steps,
                ),
                clip_norm=settings.clip_norm,
                seed=task.seed,
            ),
            task.world,
            watcher,
            start=TrainingProgress(),
            stop=lambda: watcher.hopeless() or bool(stopped),
        )
    watcher.progress_bar.close()
    if task.world.max(len(stopped)):
        raise KeyboardInterrupt
    return end


def _task(
    recipe: FinetuneConfig,
    encoder: TextEncoder,
    classes: int,
    split: Split,
    seed: int,
    world: World,
    variants: Variants,
) -> Classification:
    settings, longest = recipe.train, min(recipe.encoder.longest, encoder.longest)
    weights_C = class_weights(split.train.labels, classes) if settings.class_weights == "balanced" else np.ones(classes)
    return Classification(
        train=Encoded.of(split.train, encoder, longest),
        validation=Encoded.of(split.validation, encoder, longest),
        world=world,
        seed=seed,
        encoder=encoder,
        longest=longest,
        batch_examples=settings.batch_examples,
        micro_batch_examples=settings.micro_batch_examples or settings.batch_examples,
        class_weights_C=torch.tensor(weights_C, dtype=torch.float32, device=world.device),
        label_smoothing=settings.label_smoothing,
        augmentation=recipe.augment,
        variants=variants,
    )
