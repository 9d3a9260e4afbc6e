"""A fine-tuning run: every split with every seed, beside its control and its baselines, and what is left on disk."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs import UserError, dump
from finetune import encoders, saved_model
from finetune.config import EncoderChoice, FinetuneConfig
from finetune.data import augment_contextual
from finetune.data.augment import Variants, require_mask
from finetune.data.examples import Dataset, Split
from finetune.evaluation import baselines, report, results
from finetune.evaluation.report import Judged
from finetune.records import TrialLogger
from finetune.training.classifier import Classifier, count
from finetune.trial import Outcome, run_trial
from mlm.checkpoint import checkpoint, weights
from mlm.distributed.world import World, init_world
from mlm.tracking import run_directory


@dataclass(frozen=True)
class Setup:
    """What all trials of a run share."""

    recipe: FinetuneConfig
    dataset: Dataset
    splits: list[Split]
    world: World
    path: Path
    """The run's directory."""
    records: TrialLogger | None
    """Where metrics are taken down; None on the ranks that do not lead."""

    def say(self, line: str) -> None:
        """Tell the user how things go, once for all ranks."""
        if self.world.is_main:
            print(line, file=sys.stderr)


def start(recipe: FinetuneConfig) -> str:
    """Run a recipe from its data to its results; return what there is to read at the end, on the first rank.

    Raises:
        UserError: encoder, data or a setting cannot be used.

    """
    choice = encoders.resolve(recipe.encoder, Path(recipe.runs))
    recipe = recipe.model_copy(update={"encoder": choice, "data": recipe.data.pinned()})
    world = init_world().with_precision(recipe.train.precision)
    start_weights = _check_fit(recipe, choice, world)
    dataset = recipe.data.load(encoders.corpus_of(choice))
    splits = recipe.splits.splits(dataset)
    _check_early_stopping(recipe, dataset, splits)
    name = recipe.name or recipe.data.title()
    path = Path(
        world.from_main("making the run's directory", lambda: str(run_directory.create(Path(recipe.runs), name)))
    )
    with ExitStack() as opened:
        opened.enter_context(world.watched())
        records = None
        if world.is_main:
            opened.enter_context(run_directory.lock(path))
            records = opened.enter_context(TrialLogger(path))
            (path / checkpoint.CONFIG).write_text(dump(recipe), encoding="utf-8")
            started_from = choice.model_dump(include={"run", "hub", "revision"}) | {"weights_sha256": start_weights}
            about = run_directory.environment(world) | {"started_from": started_from}
            run_directory.write_json(path / run_directory.ENVIRONMENT, about)
        setup = Setup(recipe, dataset, splits, world, path, records)
        setup.say(report.opening(path, recipe, dataset, splits, world))
        ours = _follow(setup, choice, keep=True)
        control = _follow(setup, choice.model_copy(update={"random": True}), keep=False) if recipe.control else []
        if not world.is_main:
            return ""
        found = _results(recipe, dataset, splits, ours, control)
        found.write(path)
        return report.write(path, found, ours)


def _check_fit(recipe: FinetuneConfig, choice: EncoderChoice, world: World) -> str:
    """Tell what does not fit before data is read and a run made; return the SHA-256 of the encoder's weights."""
    encoder = encoders.open_encoder(choice, seed=0)
    sha256 = weights.sha256(weights.of(encoder))
    require_mask(recipe.augment, encoder.mask_text)
    if recipe.augment.replace:
        encoders.open_predictor(choice, world)
    recipe.trainable.prepare(Classifier(encoder, recipe.head.build(encoder, classes=2)))
    return sha256


def _check_early_stopping(recipe: FinetuneConfig, dataset: Dataset, splits: list[Split]) -> None:
    rule = recipe.train.early_stopping
    if rule.patience is not None and not len(splits[0].validation):
        raise UserError(
            f"train.early_stopping.patience={rule.patience} waits for a better validation part, and splits.validation=0"
            " holds none back: leave out the one or the other"
        )
    if rule.metric == "roc_auc":
        for split in splits:
            for name, part in (("validation", split.validation), ("test", split.test)):
                if len(part) and len(np.unique(part.labels)) < len(dataset.classes):
                    raise UserError(
                        f"train.early_stopping.metric=roc_auc: a class is missing in the {name} part: choose another"
                        " metric, or split otherwise"
                    )


def _follow(setup: Setup, choice: EncoderChoice, *, keep: bool) -> list[Judged]:
    """Train on every split with every seed; keep on disk the model that validates best, or none."""
    recipe, rule = setup.recipe, setup.recipe.train.early_stopping.metric
    finished: list[Judged] = []
    best = -np.inf
    for split, seed, outcome in _outcomes(setup, choice, control=not keep):
        trial = results.Trial.model_validate(
            {
                "fold": split.fold,
                "seed": seed,
                "validation": outcome.validation,
                "test": outcome.test,
                "epochs": outcome.epochs,
                "seconds": outcome.seconds,
                "weights_sha256": weights.sha256(weights.of(outcome.classifier)),
            }
        )
        if keep and outcome.best > best:
            if setup.world.is_main:
                saved_model.save(setup.path, outcome.classifier, recipe, setup.dataset.classes, setup.world.precision)
            best = outcome.best
        parameters = results.Parameters(all=count(outcome.classifier.parameters()), trained=outcome.trained)
        finished.append(Judged(trial, split, outcome.probabilities_NC, parameters, outcome.truncated, outcome.skipped))
        setup.say(report.trial_line(trial, rule, len(setup.splits), control=not keep))
    return finished


def _outcomes(setup: Setup, choice: EncoderChoice, *, control: bool) -> Iterator[tuple[Split, int, Outcome]]:
    recipe, world, classes = setup.recipe, setup.world, len(setup.dataset.classes)
    for split in setup.splits:
        variants = _variants(setup, choice, split)
        for seed in recipe.train.seeds:
            encoder = encoders.open_encoder(choice, seed)
            records = setup.records
            taken_down = records.of_trial(split.fold, seed, control=control) if records else nullcontext(_unrecorded)
            with taken_down as record:
                outcome = run_trial(recipe, encoder, classes, split, seed, world, variants, record)
            yield split, seed, outcome


def _unrecorded(side: str, step: int, epoch: float, values: Mapping[str, float]) -> None:
    """Leave it to the first rank."""


def _variants(setup: Setup, choice: EncoderChoice, split: Split) -> Variants:
    """Return the training texts with words replaced by the encoder's guesses; none for the control, which has none."""
    augment = setup.recipe.augment
    if not augment.replace or choice.random:
        return []
    predictor = encoders.open_predictor(choice, setup.world)
    return augment_contextual.variants(split.train.texts, predictor, augment.replace, augment.variants, seed=split.fold)


def _results(
    recipe: FinetuneConfig, dataset: Dataset, splits: list[Split], ours: list[Judged], control: list[Judged]
) -> results.Results:
    classes, first = len(dataset.classes), splits[0]
    about = results.About(
        name=recipe.name or recipe.data.title(),
        head=recipe.head.kind,
        classes=dataset.classes,
        metric=recipe.train.early_stopping.metric,
        parameters=ours[0].parameters,
        data=results.Data(
            train=len(first.train),
            validation=len(first.validation),
            test=len(first.test),
            counts=dict(dataset.counts) | {"texts cut to the encoder's length": max(one.truncated for one in ours)},
        ),
    )
    return results.build(
        about,
        [one.trial for one in ours],
        majority=[baselines.majority(split, classes) for split in splits],
        tfidf=[baselines.bag_of_words(split, classes) for split in splits],
        control=[one.trial for one in control],
    )
