"""A fine-tuned model on disk: weights, encoder, head and how its texts are cleaned, in one folder that stands alone."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field, ValidationError

from configs import Config, UserError, dump, read
from finetune import encoders, heads
from finetune.config import FinetuneConfig
from finetune.encoders import MODEL
from finetune.training.classifier import Classifier
from mlm.checkpoint import checkpoint, weights
from mlm.checkpoint.manifest import MANIFEST, seal, verify
from mlm.distributed.device import ComputePrecision

DESCRIPTION, ENCODER = "model.json", "encoder"


class Description(Config):
    """What has to be known before the recipe can be read."""

    head: str
    """Kind of head."""
    encoder: encoders.Kind
    """Kind of encoder."""
    classes: tuple[str, ...] = Field(min_length=2)
    """Names of the classes, by index."""
    precision: ComputePrecision = "float32"
    """What it was trained and judged in; float32 does for models that do not tell."""


@dataclass(frozen=True)
class Saved:
    """A fine-tuned model, ready to be used."""

    classifier: Classifier
    """In evaluation mode."""
    recipe: FinetuneConfig
    classes: tuple[str, ...]
    """Names of the classes, by index."""
    precision: ComputePrecision
    """What it was trained and judged in."""


def save(
    run: Path, classifier: Classifier, recipe: FinetuneConfig, classes: tuple[str, ...], precision: ComputePrecision
) -> None:
    """Write the model into the run's folder.

    Raises:
        OSError: the disk is full or not writable.

    """
    partial = run / f"{MODEL}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    (partial / ENCODER).mkdir(parents=True)
    weights.write(partial / checkpoint.WEIGHTS, weights.of(classifier))
    classifier.encoder.save(partial / ENCODER)
    (partial / checkpoint.CONFIG).write_text(dump(recipe), encoding="utf-8")
    kind = encoders.kind_of(recipe.encoder)
    description = Description(head=recipe.head.kind, encoder=kind, classes=classes, precision=precision)
    (partial / DESCRIPTION).write_text(description.model_dump_json(indent=1), encoding="utf-8")
    seal(partial, run / MODEL, 0)


def load(run: Path, device: torch.device) -> Saved:
    """Load the model of a fine-tuning run.

    Raises:
        UserError: there is none, it is damaged, or its parts do not fit each other.

    """
    folder = run / MODEL
    if not folder.is_dir():
        raise UserError(_why_none(run))
    known = verify(folder, (checkpoint.WEIGHTS, checkpoint.CONFIG, DESCRIPTION)).files
    inside = [path.relative_to(folder).as_posix() for path in (folder / ENCODER).rglob("*") if path.is_file()]
    if added := [name for name in inside if name not in known]:
        raise UserError(f"{folder / added[0]} was added to the model: remove it")
    verify(folder, [name for name in known if name.startswith(f"{ENCODER}/") and ".." not in name])
    try:
        description = Description.model_validate_json((folder / DESCRIPTION).read_bytes(), strict=False)
    except (OSError, ValidationError) as error:
        raise UserError(f"{folder / DESCRIPTION} is missing or damaged ({type(error).__name__})") from None
    recipe = read(heads.recipe_of(description.head), folder / checkpoint.CONFIG)
    encoder = encoders.RESTORE[description.encoder](folder / ENCODER)
    classifier = Classifier(encoder, recipe.head.build(encoder, len(description.classes)))
    checkpoint.load_weights(folder, classifier)
    return Saved(classifier.to(device).eval(), recipe, description.classes, description.precision)


def newest(runs: Path) -> Path:
    """Return the fine-tuning run that was finished last.

    Raises:
        UserError: there is none.

    """
    found = [path.parents[1] for path in runs.glob(f"*/{MODEL}/{MANIFEST}")]
    if not found:
        raise UserError(f"there is no fine-tuned model in {runs}: make one by python -m finetune.cnn_head")
    return max(found, key=lambda path: (path / MODEL / MANIFEST).stat().st_mtime_ns)


def _why_none(run: Path) -> str:
    if not run.is_dir():
        return f"no such run: {run} (the run is named first, then the texts)"
    if checkpoint.finished(run):
        return f"{run} is a pretraining run: make a classifier of it by python -m finetune.cnn_head encoder.run={run}"
    if not (run / checkpoint.CONFIG).is_file():
        return f"{run} is no run: name the directory of one, such as runs/x"
    return f"{run} has no fine-tuned model: its training was not finished; start it again"
