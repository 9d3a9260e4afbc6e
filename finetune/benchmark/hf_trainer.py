"""The reference: the BERT classifier of transformers, and its batches."""

import copy
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from finetune.data.examples import Examples
from finetune.training.classifier import Classifier
from mlm.benchmark.hf_trainer import Collate

if TYPE_CHECKING:
    import datasets
    from transformers import BertForSequenceClassification, PreTrainedTokenizerBase

Padding = Literal["fixed", "batch"]
"""Padding of each example to one fixed length when it is tokenized, or to the longest of its batch."""


class FirstState(nn.Module):
    """A replacement of BERT's pooler that returns the unchanged state of [CLS]."""

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """Return the first position's state, (B, D)."""
        return hidden_BLD[:, 0]


def classifier(ours: Classifier, bert: nn.Module, classes: int) -> "BertForSequenceClassification":
    """Return transformers' classifier with a copy of our weights; `bert` is the model inside the encoder of `ours`."""
    from transformers import BertForSequenceClassification

    config: Any = copy.deepcopy(bert.config)
    config.num_labels = classes
    theirs = BertForSequenceClassification(config)
    theirs.bert.pooler = FirstState()  # type: ignore[assignment]
    theirs.bert.load_state_dict(bert.state_dict())
    theirs.classifier.load_state_dict(ours.head.output.state_dict())  # type: ignore[union-attr]
    return theirs


def dataset(
    tokenizer: "PreTrainedTokenizerBase", labelled: Examples, longest: int, padding: Padding
) -> "tuple[Collate, datasets.Dataset]":
    """Return texts as in the library's tutorial, tokenized beforehand to at most `longest`, and their collator."""
    import datasets
    import transformers

    columns = [list(column) for column in zip(*labelled.texts, strict=True)]
    pad = "max_length" if padding == "fixed" else False
    rows = tokenizer(*columns, truncation=True, max_length=longest, padding=pad, return_token_type_ids=True)
    collate: Collate = transformers.default_data_collator
    if padding == "batch":
        collate = transformers.DataCollatorWithPadding(tokenizer)
    return collate, datasets.Dataset.from_dict({**rows, "labels": labelled.labels.tolist()})
