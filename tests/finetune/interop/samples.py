"""Fine-tuned models of every kind of encoder, without training: their heads are drawn at random."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from finetune.config import FinetuneConfig
from finetune.encoders.encoder import TextEncoder
from finetune.encoders.run import RunEncoder
from finetune.saved_model import SavedModel
from finetune.training.classifier import Classifier
from mlm.model.encoder import EncoderConfig, LearnedPositions, SinusoidalPositions
from mlm.model.heads import ModelConfig
from tests.finetune import samples, tiny_published

SIZES: Mapping[str, Any] = {"width": 16, "heads": 2, "feedforward_width": 24, "layers": 2}
SHAPES: Mapping[str, EncoderConfig] = {
    "like_bert": EncoderConfig(**SIZES, norm="post", positions=LearnedPositions(), activation="gelu"),
    "like_modernbert": EncoderConfig(**SIZES, gated=True, biases=False, activation="gelu"),
    "like_none": EncoderConfig(**SIZES, norm="post", positions=SinusoidalPositions(), embedding_norm=False),
}
"""Encoders of runs, by the architecture of transformers that has an exact counterpart."""


def encoder(folder: Path, kind: str) -> TextEncoder:
    """Return a key of `SHAPES` as the encoder of a run, or one of `tiny_published.KINDS`."""
    if kind in SHAPES:
        made = samples.make_run(folder, name=kind, model=ModelConfig(encoder=SHAPES[kind]), cls_sep=kind != "like_none")
        return samples.encoder(made)
    return tiny_published.load(tiny_published.save(folder / kind, kind))


def save(
    run: Path, encoder: TextEncoder, head: Mapping[str, Any], classes: int = 3, size: float = 0.5, **data: Any
) -> SavedModel:
    """Save a model with a head of weights of the given `size` as that of a run; `data` are settings of the data."""
    source = {"run": "x"} if isinstance(encoder, RunEncoder) else {"hub": "x"}
    config = FinetuneConfig.model_validate(
        {"encoder": source, "head": head, "data": {"kind": "labelled", "train": "gone.csv", **data}}
    )
    torch.manual_seed(0)
    network = config.head.build(encoder, classes)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=size)
    names = tuple(f"class {number}" for number in range(classes))
    model = SavedModel(Classifier(encoder, network).eval(), config, names, "float32")
    run.mkdir()
    model.save(run)
    return model
