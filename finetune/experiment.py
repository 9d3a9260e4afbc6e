"""Fine-tuning as a function: every split with every seed, beside its control and its baselines.

    from finetune.experiment import FinetuneConfig, finetune

    run = finetune(FinetuneConfig(name="mine"))
    run.path, run.results, run.model, run.summary

The function prints nothing and exits nothing; errors are exceptions. Like `mlm.experiment.pretrain` it joins the
processes that torchrun started, or uses the process group that is there already.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from configs import UserError, check_text, dump
from configs.files import write_text
from finetune import encoders
from finetune.config import FinetuneConfig
from finetune.data import augment_contextual
from finetune.data.augment import Variants, require_mask
from finetune.data.class_names import listed
from finetune.data.examples import Dataset, DataSplit
from finetune.data.labelled import in_folder
from finetune.evaluation import baselines, metrics, report, results
from finetune.evaluation.differences import jackknife_error
from finetune.evaluation.metrics import deviation_of
from finetune.evaluation.results import Baselines, ExampleCounts, Results, TrialResult
from finetune.saved_model import SavedModel
from finetune.training.classification import measure
from finetune.training.classifier import Classifier
from finetune.trial import Trial, TrialLogger, run_trial
from mlm.checkpoint import checkpoint, weights
from mlm.distributed.device import precision_of, with_precision
from mlm.distributed.world import World, joined
from mlm.tracking import run_directory
from mlm.tracking.trackers import Tracked, Trackers, check_installed
from mlm.training.loop import Observer
from tokenizer.cleaning import describe_dropped

__all__ = ["FinetuneConfig", "FinetuneRun", "finetune"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinetuneRun:
    """A finished fine-tuning run; the same on every rank but for the summary."""

    path: Path
    results: Results
    model: SavedModel
    """The classifier that validated best, as it is saved in the directory; in the host's memory."""
    summary: str
    """The report as text; empty on ranks other than 0."""


@dataclass(frozen=True)
class _Experiment:
    """The settings and the data that all trials of a run share."""

    config: FinetuneConfig
    dataset: Dataset
    splits: list[DataSplit]
    world: World
    path: Path
    observers: Sequence[Observer]
    stop: Callable[[], int]


def finetune(
    config: FinetuneConfig, observers: Sequence[Observer] = (), *, stop: Callable[[], int] = lambda: 0
) -> FinetuneRun:
    """Fine-tune an encoder and write the run's directory: model, results, report, figures, metrics.jsonl, trackers.

    Nothing is printed; progress is logged by `logging`. The state of torch's random number generators is restored.
    Processes that torchrun has started, or of a process group that exists already, call this together.
    `FinetuneConfig()` fine-tunes the newest pretraining run on bigram shift. `observers`, such as a `ProgressBar`,
    receive the events of each trial's training; the run's own files need none. `stop` is asked after each step; a
    number other than 0, on any rank, stops training.

    Raises:
        UserError: encoder, data or a setting cannot be used, or training diverged; the text is one line.
        KeyboardInterrupt: `stop` has stopped training; its argument is the largest number, on all ranks.
        ConnectionError: another rank is lost.
        OSError: the disk is full or not writable.
    """
    check_installed(config.tracking)
    runs = Path(config.runs)
    choice = encoders.resolve(config.encoder, runs)
    config = config.model_copy(update={"encoder": choice, "data": in_folder(config.data.pinned(), Path())})
    name = config.name or config.data.title()
    with joined(wanted=config.device) as world, ExitStack() as opened:
        opened.enter_context(torch.random.fork_rng([world.device] if world.device.type == "cuda" else []))
        # Ranks may have found another newest encoder, while its run went on.
        check_text(config.model_dump(mode="json"))
        settings = world.from_main("agreeing on the settings", config.model_dump_json)
        config = FinetuneConfig.model_validate_json(settings, strict=False)
        world, choice = with_precision(world, config.train.precision), config.encoder
        encoder_sha256, dataset = _load(config, world)
        splits = config.splits.splits(dataset)
        _check_early_stopping(config, dataset, splits)
        path = Path(world.from_main("making the run's directory", lambda: str(run_directory.create(runs, name))))
        experiment = _Experiment(config, dataset, splits, world, path, observers, stop)
        if world.is_main:
            opened.enter_context(run_directory.lock(path))
            write_text(path / checkpoint.CONFIG, dump(config))
            source = choice.model_dump(include={"run", "hub", "revision"}) | {"weights_sha256": encoder_sha256}
            about = {"kind": run_directory.FINE_TUNING, "started_from": source}
            run_directory.write_json(path / run_directory.ENVIRONMENT, run_directory.environment(world) | about)
            logger.info(_summary(experiment))
        trials, control, model = _run_trials(experiment)
        found = _results(experiment, trials, control)
        text = ""
        if world.is_main:
            found.write(path)
            text = report.write(path, found, trials)
            trackers = Trackers(config.tracking, Tracked(path, config.model_dump(mode="json")))
            picture = report.PREDICTIONS if dataset.is_of_numbers else report.CONFUSION
            trackers.log_picture(Path(picture).stem, path / picture)
            trackers.conclude(found.model_dump(mode="json", exclude_unset=True), step=0)
            trackers.close(finished=True)
        return FinetuneRun(path, found, model, text)


def _load(config: FinetuneConfig, world: World) -> tuple[str, Dataset]:
    """Check settings and encoder, then read the data, before a run is made; return the SHA-256 of the weights too."""
    encoder = encoders.open_encoder(config.encoder, seed=0)
    sha256 = weights.sha256(weights.host_state_dict(encoder))
    require_mask(config.augment, has_mask=encoder.has_mask)
    if config.augment.replace:
        encoders.open_predictor(config.encoder, world)
    config.trainable.prepare(Classifier(encoder, config.head.build(encoder, num_classes=2)))
    return sha256, config.data.load(encoders.corpus_of(config.encoder), encoder.as_read)


def _check_early_stopping(config: FinetuneConfig, dataset: Dataset, splits: list[DataSplit]) -> None:
    rule = config.train.early_stopping
    if rule.patience is not None and not len(splits[0].validation):
        raise UserError(
            f"train.early_stopping.patience={rule.patience} needs a validation part, but splits.validation=0 gives"
            " none: remove one of the two"
        )
    if dataset.is_of_numbers:
        if rule.metric != "loss" and any(len(one.validation) and not np.ptp(one.validation.labels) for one in splits):
            raise UserError(
                f"train.early_stopping.metric={rule.metric}: the numbers of the validation part are all the same:"
                " choose loss, or change splits"
            )
        return
    perfect_CC = np.eye(len(dataset.class_names))
    for split in splits:
        labels_N = split.validation.labels
        # A metric that perfect predictions lack is lacked by all.
        if len(labels_N) and metrics.scores(labels_N, perfect_CC[labels_N]).get(rule.metric, 0.0) is None:
            raise UserError(
                f"train.early_stopping.metric={rule.metric}: a class is missing in the validation part: choose another"
                " metric, or change splits"
            )


def _summary(experiment: _Experiment) -> str:
    """Describe encoder, examples, classes and device."""
    config, dataset, splits = experiment.config, experiment.dataset, experiment.splits
    first = splits[0]
    sizes = f"{len(first.train):,} for training, {len(first.validation):,} for validation, {len(first.test):,} for test"
    folds = f" in each of {len(splits)} folds" if len(splits) > 1 else ""
    encoder = config.encoder.run or config.encoder.hub
    lines = [
        f"run {experiment.path}: {config.head.kind} head on {encoder}, {experiment.world}",
        f"examples: {sizes}{folds}; {'number' if dataset.is_of_numbers else 'classes'}: {listed(dataset.class_names)}",
    ]
    return "\n".join([*lines, *describe_dropped(dataset.counts)])


def _run_trials(experiment: _Experiment) -> tuple[list[TrialResult], list[TrialResult], SavedModel]:
    """Train on every split with every seed, and beside each trial its control, if there is to be one.

    A control has all of its trial but pretraining: its encoder's weights are random. The model that validates best is
    saved, and returned after the trials and the controls.
    """
    config, world, class_names = experiment.config, experiment.world, experiment.dataset.class_names
    labels_N = experiment.dataset.train.labels
    is_number = experiment.dataset.is_of_numbers
    most_frequent = f"{labels_N.mean():.6g}" if is_number else class_names[np.bincount(labels_N).argmax()]
    finished, controls = list[TrialResult](), list[TrialResult]()
    best: SavedModel | None = None
    for split in experiment.splits:
        variants = _variants(experiment, split)
        for seed in config.train.seeds:
            trial = Trial(config, split, seed, len(class_names), variants=variants)
            result, classifier = _run_trial(experiment, trial)
            if best is None or result.goodness > max(one.goodness for one in finished):
                best = SavedModel(classifier, config, class_names, precision_of(world.dtype), most_frequent)
                if world.is_main:
                    best.save(experiment.path)
            finished.append(result)
            if config.control:
                # Without pretraining there are no predictions to replace words by.
                control = replace(trial, is_control=True, variants=())
                controls.append(_run_trial(experiment, control)[0])
    assert best is not None
    return finished, controls, best


def _run_trial(experiment: _Experiment, trial: Trial) -> tuple[TrialResult, Classifier]:
    """Run a trial on a fresh copy of the chosen encoder, or of a random one for a control, and log it.

    The classifier is returned in the host's memory, so that it holds none of the device's while later trials train.
    """
    world, choice = experiment.world, experiment.config.encoder
    encoder = encoders.open_encoder(choice.model_copy(update={"random": choice.random or trial.is_control}), trial.seed)
    with TrialLogger(experiment.path, trial) if world.is_main else nullcontext() as trial_logger:
        observers = [*([trial_logger] if trial_logger else []), *experiment.observers]
        result, classifier = run_trial(trial, encoder, world, observers, experiment.stop)
        if trial_logger:
            trial_logger.conclude(result)
    if world.is_main:
        metric, folds = experiment.config.train.early_stopping.metric, len(experiment.splits)
        logger.info(report.trial_line(result.scores, metric, folds, control=trial.is_control))
    return result, classifier.cpu()


def _variants(experiment: _Experiment, split: DataSplit) -> Variants:
    """Return the training texts with words replaced by the encoder's predictions; empty where none are replaced."""
    augment = experiment.config.augment
    if not augment.replace:
        return ()
    predictor = encoders.open_predictor(experiment.config.encoder, experiment.world)
    return augment_contextual.variants(split.train.texts, predictor, augment.replace, augment.variants, seed=split.fold)


def _results(experiment: _Experiment, trials: list[TrialResult], controls: list[TrialResult]) -> Results:
    config, dataset, first = experiment.config, experiment.dataset, experiment.splits[0]
    scores, metric = [trial.scores for trial in trials], config.train.early_stopping.metric
    to_beat = experiment.world.from_main(
        "scoring the baselines", lambda: _baselines(experiment, trials, controls).model_dump_json(exclude_unset=True)
    )
    validation = [trial.validation.measured() for trial in scores if trial.validation is not None]
    return Results(
        name=config.name or config.data.title(),
        head=config.head.kind,
        classes=dataset.class_names,
        metric=metric,
        parameters=trials[0].parameters,
        data=ExampleCounts(
            train=len(first.train),
            validation=len(first.validation),
            test=len(first.test),
            counts={**dataset.counts, "texts cut to the encoder's length": max(trial.truncated for trial in trials)},
        ),
        validation=results.over_trials(validation) if validation else None,
        test=results.over_trials([trial.test.measured() for trial in scores]),
        seconds=sum(trial.seconds for trial in scores),
        trials=tuple(scores),
        baselines=Baselines.model_validate_json(to_beat),
    )


def _baselines(experiment: _Experiment, trials: list[TrialResult], controls: list[TrialResult]) -> Baselines:
    splits, num_classes = experiment.splits, len(experiment.dataset.class_names)
    scores, metric = [trial.scores for trial in trials], experiment.config.train.early_stopping.metric

    def score(labels_N: NDArray[Any], predictions_NC: NDArray[np.float64]) -> float | None:
        return measure(labels_N, predictions_NC, deviation_of(splits[0].train.labels), only=metric).get(metric)

    def sampling_error(theirs: Sequence[NDArray[np.float64]]) -> float:
        """Return the error by the choice of the test examples where no other folds show it."""
        if len(splits) > 1 or len(trials) < 2:
            return 0.0
        return jackknife_error(splits[0].test.labels, [trial.probabilities_NC for trial in trials], theirs, score)

    majority = [baselines.measured(split, baselines.predict_majority(split, num_classes)) for split in splits]
    predicted = [baselines.predict_tfidf(split, num_classes) for split in splits]
    tfidf = {split.fold: baselines.measured(split, of) for split, of in zip(splits, predicted, strict=True)}
    made = Baselines(
        majority=results.over_trials(majority),
        # A baseline has no cross-entropy, and so no difference by it.
        tfidf=results.compared(scores, tfidf, metric, sampling_error(predicted) if metric in tfidf[0] else 0.0),
    )
    if not controls:
        return made
    error = sampling_error([control.probabilities_NC for control in controls])
    control = results.control_of(scores, [one.scores for one in controls], metric, error)
    return made.model_copy(update={"random_encoder": control})
