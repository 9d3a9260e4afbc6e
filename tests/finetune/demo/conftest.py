"""A tiny model of each kind, and their pages, served."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from finetune.config import FinetuneConfig
from finetune.data.labelled import Labelled
from finetune.demo import page, server
from finetune.demo.models import Classifier, LanguageModel, open_model
from finetune.encoders import EncoderChoice
from finetune.heads.cnn import CnnHead
from finetune.saved_model import SavedModel
from finetune.training import classifier as training
from tests.finetune import samples

CLASSES = ("calm", "grim")


def classifier_run(folder: Path, run: Path, data: Labelled) -> Path:
    """Write the directory of a fine-tuning run with a model of random weights."""
    encoder = samples.encoder(run)
    head = CnnHead(filters=8)
    network = training.Classifier(encoder, head.build(encoder, len(CLASSES))).eval()
    folder.mkdir()
    SavedModel(
        network, FinetuneConfig(encoder=EncoderChoice(run=str(run)), data=data, head=head), CLASSES, "float32"
    ).save(folder)
    return folder


@pytest.fixture(scope="session")
def language_model(run_with_cls: Path) -> LanguageModel:
    model = open_model(run_with_cls, samples.CPU)
    assert isinstance(model, LanguageModel)
    return model


@pytest.fixture(scope="session")
def tuned(tmp_path_factory: pytest.TempPathFactory, run: Path) -> Path:
    return classifier_run(tmp_path_factory.mktemp("tuned") / "tuned", run, Labelled(label="target"))


@pytest.fixture(scope="session")
def classifier(tuned: Path) -> Classifier:
    model = open_model(tuned, samples.CPU)
    assert not isinstance(model, LanguageModel)
    return model


@contextmanager
def served(model: LanguageModel | Classifier, examples: list[list[str]], folder: Path) -> Iterator[str]:
    """Return a context with the address of a model's page."""
    with server.bound(0) as listening, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gradio's own
        content = page.content(model, "tiny", examples)
        application = server.build(model, content, samples.CPU, server.Tables(folder))
        with server.running(application, listening):
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
