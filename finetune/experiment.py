"""A fine-tuning run: every split with every seed, beside its control and its baselines, and what is left on disk."""

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
from numpy.typing import NDArray

from configs import dump
from finetune import baselines, contextual, encoder_choice, report, results, saved
from finetune.augment import require_mask
from finetune.classifier import Classifier, count
from finetune.examples import Dataset, Split
from finetune.metrics import METRICS
from finetune.recipe import EncoderChoice, FineTuning
from finetune.records import Records
from finetune.trial import Outcome, run_trial
from mlm import checkpoint, run
from mlm.distributed import World, find_world


@dataclass(frozen=True)
class Setup:
    """What all trials of a run share."""

    recipe: FineTuning
    dataset: Dataset
    splits: list[Split]
    world: World
    path: Path
    """The run's directory."""
    records: Records


@dataclass(frozen=True)
class Judged:
    """A finished trial and what it predicted."""

    trial: results.Trial
    split: Split
    probabilities_NC: NDArray[np.float64]
    """Of the test part's examples."""
    parameters: results.Parameters
    truncated: int
    """Examples that were longer than the encoder reads."""
    skipped: int
    """Updates left out because loss or gradient was not finite."""


def start(recipe: FineTuning) -> str:
    """Run a recipe from its data to its results; return what there is to read at the end.

    Raises:
        UserError: encoder, data or a setting cannot be used.

    """
    choice = encoder_choice.resolve(recipe.encoder, Path(recipe.runs))
    recipe = recipe.model_copy(update={"encoder": choice})
    world = find_world(recipe.train.precision)
    encoder = encoder_choice.open_encoder(choice, seed=0)
    require_mask(recipe.augment, encoder.mask_text)
    # What does not fit is told before the data is read and the run made.
    recipe.trainable.prepare(Classifier(encoder, recipe.head.build(encoder, classes=2)))
    dataset = recipe.data.load(encoder_choice.corpus_of(choice))
    splits = recipe.splits.splits(dataset)
    path = run.create(Path(recipe.runs), recipe.name)
    with run.lock(path), Records(path) as records:
        setup = Setup(recipe, dataset, splits, world, path, records)
        (path / checkpoint.RECIPE).write_text(dump(recipe), encoding="utf-8")
        run.write_json(path / "environment.json", run.environment(world.device))
        print(report.opening(path, recipe, dataset, splits, world), file=sys.stderr)
        ours = _follow(setup, choice, keep=True)
        control = _follow(setup, choice.model_copy(update={"random": True}), keep=False) if recipe.control else []
        found = _results(recipe, dataset, splits, ours, control)
        found.write(path)
        return report.write(path, found, ours)


def _follow(setup: Setup, choice: EncoderChoice, *, keep: bool) -> list[Judged]:
    """Train on every split with every seed; keep on disk the model that validates best, or none."""
    recipe, rule = setup.recipe, setup.recipe.train.early_stopping.metric
    finished: list[Judged] = []
    best = -np.inf
    for split, seed, outcome in _outcomes(setup, choice):
        trial = results.Trial.model_validate(
            {
                "fold": split.fold,
                "seed": seed,
                "validation": outcome.validation,
                "test": outcome.test,
                "epochs": outcome.epochs,
                "seconds": outcome.seconds,
                "weights_sha256": weights_sha256(outcome.classifier),
            }
        )
        value = METRICS[rule] * (trial.validation.get(rule) or 0.0)
        if keep and value > best:
            saved.save(setup.path, outcome.classifier, recipe, setup.dataset.classes)
            best = value
        parameters = results.Parameters(all=count(outcome.classifier.parameters()), trained=outcome.trained)
        finished.append(Judged(trial, split, outcome.probabilities_NC, parameters, outcome.truncated, outcome.skipped))
        print(report.trial_line(trial, rule, len(setup.splits), choice.random), file=sys.stderr)
    return finished


def _outcomes(setup: Setup, choice: EncoderChoice) -> Iterator[tuple[Split, int, Outcome]]:
    recipe, world, classes = setup.recipe, setup.world, len(setup.dataset.classes)
    for split in setup.splits:
        variants: list[tuple[tuple[str, ...], ...]] = []
        if recipe.augment.replace:
            predictor = encoder_choice.open_predictor(choice, world)
            variants = contextual.variants(
                split.train.texts, predictor, recipe.augment.replace, recipe.augment.variants, seed=split.fold
            )
        for seed in recipe.train.seeds:
            encoder = encoder_choice.open_encoder(choice, seed)
            with setup.records.of_trial(split.fold, seed, random=choice.random) as record:
                outcome = run_trial(recipe, encoder, classes, split, seed, world, variants, record)
            yield split, seed, outcome


def _results(
    recipe: FineTuning, dataset: Dataset, splits: list[Split], ours: list[Judged], control: list[Judged]
) -> results.Results:
    classes, first = len(dataset.classes), splits[0]
    about = results.About(
        name=recipe.name,
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


def weights_sha256(classifier: Classifier) -> str:
    """Return the SHA-256 of the weights as safetensors hold them."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in classifier.state_dict().items()}
    return hashlib.sha256(safetensors.torch.save(state)).hexdigest()
