"""Models of this project's runs: masked language models, and classifiers on encoders of either kind."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from configs import UserError
from finetune import saved_model
from finetune.data.augment import MASKED
from finetune.demo import exported
from finetune.demo.words import Reading, owner, reading, with_masks
from finetune.encoders.published import PublishedEncoder
from finetune.encoders.run import RunEncoder
from finetune.saved_model import Prediction, SavedModel
from mlm.checkpoint import checkpoint
from mlm.data.batches import Batch
from mlm.distributed.device import with_recorded_precision
from mlm.distributed.world import World
from mlm.evaluation.attention_weights import attention_weights
from mlm.evaluation.fill_blanks import Guess, guess, one_row
from mlm.model.encoder import Encoder
from mlm.model.heads import MaskedLanguageModel
from tokenizer.special_tokens import SpecialTokens
from tokenizer.vocabulary import encode_parts


def read(tokenizer: Tokenizer, texts: Sequence[str], hidden: Sequence[int]) -> Reading:
    """Return the tokens of a text or pair as in training: each hidden word is one mask, with the space before it."""
    special = SpecialTokens.of(tokenizer)
    masked, words_of_texts, labels = with_masks(texts, hidden, MASKED)
    ids, owners, first = list[int](), list[int | str](), 0
    for text, words, parts in zip(masked, words_of_texts, encode_parts(tokenizer, masked, MASKED), strict=True):
        if first:
            ids += special.between
            owners += [str(tokenizer.id_to_token(token)) for token in special.between]
        begin = 0
        for part, encoding in zip(text.split(MASKED), parts, strict=True):
            if begin:
                ids.append(special.mask)
                owners.append(first + owner(words, begin - len(MASKED)))
            ids += encoding.ids
            owners += [first + owner(words, begin + start) for start, _ in encoding.offsets]
            begin += len(part) + len(MASKED)
        first += len(words)
    framed = special.framed(ids)
    if len(framed) > len(ids):
        owners = [str(tokenizer.id_to_token(framed[0])), *owners, str(tokenizer.id_to_token(framed[-1]))]
    return reading(framed, owners, labels)


def _row(tokenizer: Tokenizer, read: Reading) -> Batch:
    return one_row(read.ids, SpecialTokens.of(tokenizer).mask)


def _weights(encoder: Encoder, batch: Batch, world: World) -> list[Tensor]:
    found = attention_weights(encoder, batch.to(world.device))
    return [weights_BHLL[0].float().cpu() for weights_BHLL in found]


class RunLanguageModel:
    """The masked language model of a pretraining run."""

    def __init__(self, model: MaskedLanguageModel, tokenizer: Tokenizer, longest: int, world: World) -> None:
        self._model, self._tokenizer, self.longest, self._world = model, tokenizer, longest, world
        self.mask = str(tokenizer.id_to_token(SpecialTokens.of(tokenizer).mask))

    def read(self, texts: Sequence[str], hidden: Sequence[int] = ()) -> Reading:
        """Return the tokens."""
        return read(self._tokenizer, texts, hidden)

    def weights(self, read: Reading) -> Sequence[Tensor]:
        """Return the attention weights of each layer, (H, L, L)."""
        return _weights(self._model.encoder, _row(self._tokenizer, read), self._world)

    def guess(self, read: Reading, top: int) -> list[list[Guess]]:
        """Return the most probable tokens for each [MASK]."""
        return guess(self._model, _row(self._tokenizer, read), self._tokenizer, self._world, top)


class RunClassifier:
    """The classifier of a fine-tuning run."""

    def __init__(self, model: SavedModel, world: World) -> None:
        self._model, self._world = model, with_recorded_precision(world, model.precision)
        self._encoder = model.classifier.to(world.device).encoder
        if isinstance(self._encoder, PublishedEncoder):
            exported.written_out(self._encoder)
        self.longest = model.longest
        self.reader, self.class_names, self.most_frequent = model.reader, model.class_names, model.most_frequent

    def classify(self, rows: Sequence[Mapping[str, str]], world: World) -> list[Prediction]:
        """Return the prediction for each row, in the precision of training."""
        return self._model.classify(rows, self._world)

    def read(self, texts: Sequence[str], hidden: Sequence[int] = ()) -> Reading:
        """Return the tokens."""
        if isinstance(self._encoder, PublishedEncoder):
            return exported.read(self._encoder, texts, hidden)
        assert isinstance(self._encoder, RunEncoder)
        return read(self._encoder.tokenizer, texts, hidden)

    def weights(self, read: Reading) -> Sequence[Tensor]:
        """Return the attention weights of each layer, (H, L, L)."""
        if isinstance(self._encoder, PublishedEncoder):
            return exported.weights(self._encoder, read)
        assert isinstance(self._encoder, RunEncoder)
        return _weights(self._encoder.encoder, _row(self._encoder.tokenizer, read), self._world)


def open_language_model(path: Path, world: World) -> RunLanguageModel:
    """Return the model of a checkpoint, or of a run's newest one."""
    model, tokenizer, config = checkpoint.load_model(checkpoint.resolve(path), world.device)
    return RunLanguageModel(model, tokenizer, config.data.row_length, world)


def open_classifier(run: Path, world: World) -> RunClassifier:
    """Return the classifier of a fine-tuning run; a UserError if its model predicts a number."""
    model = saved_model.load(run, torch.device("cpu"))
    if model.is_of_numbers:
        raise UserError(f"{run} predicts a number, and the page shows classes: name the run of a classifier")
    return RunClassifier(model, world)
