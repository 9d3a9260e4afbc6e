"""A tiny pretrained run and labelled texts that the tests of this folder share."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from configs import dump
from finetune.data.examples import DataSplit, Examples
from finetune.encoders.run import RunEncoder
from mlm.checkpoint import checkpoint
from mlm.config import DataConfig, PretrainConfig
from mlm.distributed.world import World
from mlm.model.encoder import EncoderConfig
from mlm.model.heads import MaskedLanguageModel, ModelConfig
from mlm.model.initialize import initialize
from mlm.training.budget import TrainingProgress
from mlm.training.optim import AdamW
from tokenizer import vocabulary
from tokenizer.vocabulary import VocabularyConfig

CPU = World(torch.device("cpu"), torch.float32)
LONGEST = 64
TINY = ModelConfig(encoder=EncoderConfig(width=16, heads=2, feedforward_width=24, layers=2))

SUBJECTS = ("the river", "a storm", "my neighbour", "our street", "the old bridge", "her garden", "this village")
CALM = ("looks lovely today", "makes me smile", "was quiet again", "is full of flowers", "sleeps in the sun")
GRIM = ("is on fire", "was flooded last night", "has been evacuated", "collapsed this morning", "lost all power")


def texts(number: int, seed: int = 0) -> tuple[list[str], list[int]]:
    """Return distinct sentences, and whether each tells of harm; the words tell, but for a tenth of the labels."""
    rng = np.random.default_rng(seed)
    found: dict[str, int] = {}
    while len(found) < number:
        label = int(rng.integers(2))
        end = rng.choice(GRIM if label else CALM)
        text = f"{rng.choice(SUBJECTS)} {end} {' '.join(rng.choice(SUBJECTS, rng.integers(0, 3)))} {len(found)}"
        found[" ".join(text.split())] = label
    return list(found), list(found.values())


def examples(number: int, seed: int = 0) -> Examples:
    sentences, labels = texts(number, seed)
    return Examples(tuple((sentence,) for sentence in sentences), np.array(labels, np.int64))


def split(train: int = 40, validation: int = 16, test: int = 16) -> DataSplit:
    whole = examples(train + validation + test)
    end = train + validation
    return DataSplit(whole.take(range(train)), whole.take(range(train, end)), whole.take(range(end, end + test)))


def write_csv(path: Path, number: int = 60, seed: int = 0) -> Path:
    """Write labelled sentences as a table."""
    sentences, labels = texts(number, seed)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("id", "text", "target"), *zip(range(number), sentences, labels, strict=True)])
    return path


def make_run(folder: Path, *, name: str = "tiny", model: ModelConfig = TINY, **settings: Any) -> Path:
    """Write a pretraining run with a checkpoint of random weights; `settings` are those of the vocabulary."""
    tokenizer = vocabulary.learn(iter(texts(200)[0]), VocabularyConfig(size=300, **settings))
    run = folder / name
    run.mkdir(parents=True)
    (run / checkpoint.TOKENIZER).write_bytes(vocabulary.serialize(tokenizer))
    network = MaskedLanguageModel(model, tokenizer.get_vocab_size(), LONGEST)
    initialize(network, model.encoder, 100)  # no seed that a control is drawn by
    recipe = PretrainConfig(name=name, data=DataConfig(row_length=LONGEST), model=model, evaluation={"words": 0})  # type: ignore[arg-type]
    (run / checkpoint.CONFIG).write_text(dump(recipe))
    folder_of_step = run / "checkpoints" / "step-000000001"
    taken = checkpoint.snapshot(network, AdamW().build(network), TrainingProgress(1))
    checkpoint.save(folder_of_step, taken, recipe, run / checkpoint.TOKENIZER)
    return run


def encoder(run: Path, *, dropout: float | None = None) -> RunEncoder:
    return RunEncoder.load(run, random=False, seed=0, dropout=dropout)


def rows(lengths: Sequence[int], width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random hidden states, and which positions of them are real."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    hidden_BLD = torch.randn(len(lengths), longest, width, generator=generator)
    return hidden_BLD, torch.arange(longest) < torch.tensor(lengths)[:, None]
