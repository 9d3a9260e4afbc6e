"""The competition: a BERT classifier as transformers has it, trained and asked by the library's own Trainer."""

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
"""Every example padded to the same length when it is tokenised, or to the longest of its batch when that is made."""


class FirstState(nn.Module):
    """Hands on the state of [CLS] as it is, in place of BERT's pooler."""

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """Return the first position's state, (B, D)."""
        return hidden_BLD[:, 0]


def check_type(encoder: PublishedEncoder) -> None:
    """Check that transformers' classifier of this encoder can be made the same model as ours.

    Raises:
        UserError: it cannot.

    """
    found = encoder.model.config.model_type
    if found != "bert":
        raise UserError(
            f"the encoder's type is {found!r}, and its classifier has another head: take one of type 'bert'"
        )


def classifier(ours: Classifier, encoder: PublishedEncoder, classes: int) -> "BertForSequenceClassification":
    """Return transformers' classifier with a copy of our weights.

    The pooler's dense layer, which our head does not have, is left out, so that both compute the same.

    Args:
        ours: a linear head on the state of [CLS].
        encoder: the encoder inside it.
        classes: number of classes.

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
    """Return labelled texts as the library's tutorial makes them: tokenised beforehand, cut to `longest`."""
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
    """Return what makes a batch of examples."""
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
    """Train by the Trainer's own loop and defaults until `after_step`, told the examples seen so far, says so."""
    seen = 0

    def count(module: nn.Module, inputs: tuple[object, ...], named: Mapping[str, Any]) -> None:
        nonlocal seen
        seen += len(named["labels"])

    hook = model.register_forward_pre_hook(count, with_kwargs=True)  # the Trainer fetches batches before it needs them
    with hook:
        hf_trainer.train(
            model,
            examples,
            collate,
            batch_examples,
            bfloat16=bfloat16,
            after_step=lambda _tokens: after_step(seen),
        )


def predictor(
    model: "BertForSequenceClassification", collate: hf_trainer.Collate, batch_examples: int
) -> "Callable[[datasets.Dataset], object]":
    """Return the Trainer's `predict`."""
    import transformers

    folder = tempfile.gettempdir()  # in which it writes nothing
    settings = transformers.TrainingArguments(
        folder,
        per_device_eval_batch_size=batch_examples,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        disable_tqdm=True,
    )
    return transformers.Trainer(model, settings, collate).predict
