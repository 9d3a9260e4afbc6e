"""A fine-tuned model on disk: weights, encoder, head and the cleaning of its texts, in one folder that stands alone."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field, ValidationError
from torch import nn

from configs import Config, UserError, dump, read
from configs.files import PARTIAL
from finetune import encoders
from finetune.config import FinetuneConfig
from finetune.data.cleaning import RowReader
from finetune.encoders import MODEL_FOLDER
from finetune.encoders.encoder import TextEncoder
from finetune.heads import network_of
from finetune.training.classification import predict
from finetune.training.classifier import Classifier
from mlm.checkpoint import checkpoint, weights
from mlm.checkpoint.manifest import seal, verify
from mlm.distributed.device import ComputePrecision
from mlm.distributed.world import World
from mlm.tracking import run_directory

DESCRIPTION, ENCODER = "model.json", "encoder"


class Description(Config):
    """The summary of a model in model.json."""

    head: str
    encoder: encoders.EncoderKind
    classes: tuple[str, ...] = Field(min_length=1)
    """Names of the classes, by index; a single one is the name of a number."""
    precision: ComputePrecision = "float32"
    """Precision of training and evaluation; older models lack it, and float32 suits them."""
    most_frequent: str | None = None
    """The most frequent class of the training data, or the mean number; older models lack it."""


@dataclass(frozen=True)
class Prediction:
    """The prediction for a text."""

    probabilities: Sequence[float]
    """Probability of each class, or the number; empty for a text that is empty after cleaning."""
    truncated: bool


@dataclass(frozen=True)
class SavedModel:
    """A fine-tuned model, ready to be used and to be saved."""

    classifier: Classifier
    """In evaluation mode."""
    config: FinetuneConfig
    class_names: tuple[str, ...]
    """Names of the classes, by index; a single one is the name of a number."""
    precision: ComputePrecision
    most_frequent: str | None = None
    """The most frequent class of the training data, or the mean number; None for an older model, which lacks it."""

    @property
    def is_of_numbers(self) -> bool:
        """True if it predicts a number, not a class."""
        return len(self.class_names) == 1

    @property
    def reader(self) -> RowReader:
        """The reader of the tables that it classifies."""
        return self.config.data.reader

    @property
    def longest(self) -> int:
        """The largest number of tokens of a text or pair, with special ones."""
        return min(self.config.encoder.longest, self.classifier.encoder.longest)

    def classify(self, rows: Sequence[Mapping[str, str]], world: World) -> list[Prediction]:
        """Return the prediction for each row of a table, on the world's device; texts are cleaned as in training."""
        classifier = self.classifier.to(world.device)
        texts = [self.reader.texts(row) for row in rows]
        return classified(classifier, classifier.encoder, texts, self.longest, world)

    def save(self, run: Path) -> None:
        """Write the model into a run's directory."""
        partial = run / f"{MODEL_FOLDER}{PARTIAL}"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            self._write(partial)
            seal(partial, run / MODEL_FOLDER, 0)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _write(self, folder: Path) -> None:
        (folder / ENCODER).mkdir(parents=True)
        weights.write(folder / checkpoint.WEIGHTS, weights.host_state_dict(self.classifier))
        self.classifier.encoder.save(folder / ENCODER)
        (folder / checkpoint.CONFIG).write_text(dump(self.config), encoding="utf-8")
        description = Description(
            head=self.config.head.kind,
            encoder="hub" if self.config.encoder.run is None else "run",
            classes=self.class_names,
            precision=self.precision,
            most_frequent=self.most_frequent,
        )
        (folder / DESCRIPTION).write_text(description.model_dump_json(indent=1), encoding="utf-8")


def classified(
    model: nn.Module, encoder: TextEncoder, texts: Sequence[tuple[str, ...]], longest: int, world: World
) -> list[Prediction]:
    """Return the prediction of `model` for each cleaned text or pair, as `encoder` cuts it into tokens."""
    whole = [text for text in texts if all(text)]
    tokens = encoder.tokenize(whole, longest)
    probabilities_NC = predict(model, tokens, encoder.pad_id, world).tolist() if whole else []
    found = iter(Prediction(row, one.truncated) for row, one in zip(probabilities_NC, tokens, strict=True))
    return [next(found) if all(text) else Prediction((), truncated=False) for text in texts]


def load(run: Path, device: torch.device) -> SavedModel:
    """Load the model of a fine-tuning run; a UserError if there is none, or it is damaged."""
    folder = run / MODEL_FOLDER
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
        raise UserError(f"{folder / DESCRIPTION} is missing or damaged ({type(error).__name__})") from error
    config = read(FinetuneConfig, folder / checkpoint.CONFIG)
    encoder = encoders.restore_encoder(description.encoder, folder / ENCODER)
    classifier = Classifier(encoder, network_of(config.head, encoder, len(description.classes)))
    checkpoint.load_weights(folder, classifier)
    described = description.classes, description.precision, description.most_frequent
    return SavedModel(classifier.to(device).eval(), config, *described)


def newest(runs: Path) -> Path:
    """Return the fine-tuning run that finished last; a UserError if there is none."""
    tuned = run_directory.newest_first(runs, run_directory.FINE_TUNING)
    found = [
        path for path in tuned if checkpoint.is_whole(path / MODEL_FOLDER) and (path / run_directory.RESULTS).is_file()
    ]
    if not found:
        raise UserError(f"there is no finished fine-tuning run in {runs}: train one by python -m finetune.cnn_head")
    return max(found, key=lambda path: (path / run_directory.RESULTS).stat().st_mtime_ns)


def _why_none(run: Path) -> str:
    if not run.is_dir():
        return f"no such run: {run} (name the run first, then the texts)"
    if checkpoint.completed(run):
        return f"{run} is a pretraining run: train a classifier on it by python -m finetune.cnn_head encoder.run={run}"
    if not (run / checkpoint.CONFIG).is_file():
        return f"{run} is no run: name the directory of a run, such as runs/x"
    return f"{run} has no fine-tuned model: its training did not finish: start it again"
