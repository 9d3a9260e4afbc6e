"""The reference: the BERT classifier of transformers, trained and used for prediction by the library's Trainer."""

import copy
import tempfile
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from configs import UserError
from finetune.data.examples import Examples
from finetune.encoders.published import PublishedEncoder
from finetune.training.classifier import Classifier
from mlm.benchmark import hf_trainer

if TYPE_CHECKING:
    import datasets
    from transformers import BertForSequenceClassification, PreTrainedTokenizerBase

Padding = Literal["fixed", "batch"]
"""Padding of each example to one fixed length when it is tokenised, or to the longest of its batch."""


class FirstState(nn.Module):
    """A replacement of BERT's pooler that returns the unchanged state of [CLS]."""

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """Return the first position's state, (B, D)."""
        return hidden_BLD[:, 0]


def check_type(encoder: PublishedEncoder) -> None:
    """Check that transformers' classifier of this encoder can be the same model as ours.

    Raises:
        UserError: it cannot.
    """
    found = encoder.model.config.model_type
    if found != "bert":
        raise UserError(
            f"the encoder's type is {found!r}, and its classifier has another head: take one of type 'bert'"
        )


def classifier(ours: Classifier, encoder: PublishedEncoder, classes: int) -> "BertForSequenceClassification":
    """Return transformers' classifier with a copy of our weights, without the dense layer of its pooler.

    The head of `ours` is a linear layer on the state of [CLS]; `encoder` is the encoder inside `ours`.
    """
    from transformers import BertForSequenceClassification

    config: Any = copy.deepcopy(encoder.model.config)
    config.num_labels = classes
    theirs = BertForSequenceClassification(config)
    theirs.bert.pooler = FirstState()  # type: ignore[assignment]
    theirs.bert.load_state_dict(encoder.model.state_dict())
    theirs.classifier.load_state_dict(ours.head.output.state_dict())  # type: ignore[union-attr]
    return theirs


def dataset(
    tokenizer: "PreTrainedTokenizerBase", examples: Examples, longest: int, padding: Padding
) -> "datasets.Dataset":
    """Return labelled texts in the form of the library's tutorial: tokenised beforehand, truncated to `longest`."""
    import datasets

    columns = [list(column) for column in zip(*examples.texts, strict=True)]
    rows = tokenizer(
        *columns,
        truncation=True,
        max_length=longest,
        padding="max_length" if padding == "fixed" else False,
        return_token_type_ids=True,
    )
    return datasets.Dataset.from_dict({**rows, "labels": examples.labels.tolist()})


def collator(tokenizer: "PreTrainedTokenizerBase", padding: Padding) -> hf_trainer.Collate:
    """Return a function that makes a batch of examples."""
    import transformers

    if padding == "batch":
        return transformers.DataCollatorWithPadding(tokenizer)
    collate: hf_trainer.Collate = transformers.default_data_collator
    return collate


def train(
    model: "BertForSequenceClassification",
    examples: "datasets.Dataset",
    collate: hf_trainer.Collate,
    batch_examples: int,
    *,
    bfloat16: bool,
    after_step: Callable[[int], bool],
) -> None:
    """Train by the Trainer's loop until `after_step`, called with the examples trained so far, returns true."""
    seen = 0

    def count(module: nn.Module, inputs: tuple[object, ...], named: Mapping[str, Any]) -> None:
        nonlocal seen
        seen += len(named["labels"])

    def stop(tokens: int) -> bool:
        return after_step(seen)

    # Examples are counted in the forward pass, because the Trainer fetches batches before it needs them.
    with model.register_forward_pre_hook(count, with_kwargs=True):
        hf_trainer.train(model, examples, collate, batch_examples, bfloat16=bfloat16, after_step=stop)


def predictor(
    model: "BertForSequenceClassification", collate: hf_trainer.Collate, batch_examples: int
) -> "Callable[[datasets.Dataset], object]":
    """Return the Trainer's `predict`."""
    import transformers

    folder = tempfile.gettempdir()  # a required argument; prediction writes nothing
    settings = transformers.TrainingArguments(
        folder,
        per_device_eval_batch_size=batch_examples,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        disable_tqdm=True,
    )
    return transformers.Trainer(model, settings, collate).predict
