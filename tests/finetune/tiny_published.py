"""Published encoders of every architecture, tiny and randomly initialized, saved to disk with a tokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn

from finetune.encoders.encoder import TextEncoder
from finetune.encoders.published import PublishedEncoder, load_published
from mlm.benchmark import parity

WORDS = (
    "and",
    "is",
    "was",
    "the",
    "a",
    "fire",
    "flood",
    "burns",
    "runs",
    "over",
    "in",
    "city",
    "forest",
    "man",
    "dog",
    "red",
    "old",
    "house",
)
TEXTS = ("the fire burns in the old forest and the city is red", "a dog runs", "the man is in the house")
PAIRS = (("a dog runs", "the man is old"), ("the fire burns over the city", "fire"))
LONGEST = 24
SIZES = {"max_position_embeddings": LONGEST, "intermediate_size": 32}


@dataclass(frozen=True)
class Marks:
    """The special tokens of a family, and where they stand."""

    pad: str
    cls: str
    sep: str
    unknown: str
    mask: str
    single: str
    pair: str


BERTS = Marks("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
ROBERTAS = Marks("<pad>", "<s>", "</s>", "<unk>", "<mask>", "<s> $A </s>", "<s> $A </s> </s> $B </s>")
XLNETS = Marks("<pad>", "<cls>", "<sep>", "<unk>", "<mask>", "$A <sep> <cls>:2", "$A:0 <sep>:0 $B:1 <sep>:1 <cls>:2")


@dataclass(frozen=True)
class Kind:
    """An architecture: its class in transformers, its tokenizer's marks, and what is to come out."""

    model: str
    marks: Marks
    layers: int = 2
    """Levels of the layers."""
    longest: int = LONGEST
    typed: bool = True
    """True if the texts of a pair are told apart."""
    settings: Any = None
    usual: tuple[str, ...] = ("max_position_embeddings", "intermediate_size")
    """The usual names for sizes that it knows."""


KINDS = {
    "bert": Kind("BertModel", BERTS),
    "bert_classifier": Kind("BertForSequenceClassification", BERTS),
    "roberta": Kind("RobertaModel", ROBERTAS, longest=LONGEST - 2, typed=False),
    "xlm_roberta": Kind("XLMRobertaModel", ROBERTAS, longest=LONGEST - 2, typed=False),
    "ernie": Kind("ErnieModel", BERTS, settings={"use_task_id": True}),
    "albert": Kind("AlbertModel", BERTS, layers=1, settings={"embedding_size": 8}),
    "xlnet": Kind("XLNetModel", XLNETS, longest=8192, settings={"d_inner": 32, "d_head": 8}, usual=()),
    "electra": Kind("ElectraModel", BERTS, settings={"embedding_size": 8}),
    "modernbert": Kind("ModernBertModel", BERTS, typed=False, settings={"local_attention": 4}),
    "distilbert": Kind(
        "DistilBertModel",
        BERTS,
        typed=False,
        settings={"hidden_dim": 32},
        usual=("max_position_embeddings",),
    ),
    "deberta": Kind(
        "DebertaV2Model",
        BERTS,
        typed=False,
        settings={"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False},
    ),
}


def tokenizer(marks: Marks) -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer of words with a family's special tokens; RoBERTa's pad is 1, as in the published ones."""
    special = [marks.cls, marks.pad, marks.sep, marks.unknown, marks.mask]
    if marks is BERTS:
        special[:2] = special[1::-1]
    vocabulary = {token: index for index, token in enumerate([*special, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=marks.unknown))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single=marks.single, pair=marks.pair, special_tokens=[(token, vocabulary[token]) for token in special[:3]]
    )
    build: Any = transformers.PreTrainedTokenizerFast
    wrapped: transformers.PreTrainedTokenizerFast = build(
        tokenizer_object=backend,
        pad_token=marks.pad,
        cls_token=marks.cls,
        sep_token=marks.sep,
        unk_token=marks.unknown,
        mask_token=marks.mask,
    )
    return wrapped


def save(folder: Path, name: str, model: str | None = None) -> Path:
    """Save a tiny model of the kind `name` with its tokenizer; `model` is another class with the same trunk."""
    kind = KINDS[name]
    words = tokenizer(kind.marks)
    settings = {
        "vocab_size": len(words),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "pad_token_id": words.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": None,
        **({"type_vocab_size": 1} if kind.marks is ROBERTAS else {}),
        **{name: SIZES[name] for name in kind.usual},
        **(kind.settings or {}),
    }
    return parity.save_random(folder, model or kind.model, settings, words)


def rows(encoder: TextEncoder, texts: Sequence[tuple[str, ...]], length: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids, what is real, and types of a batch, padded on the right to `length` or the longest."""
    tokens = encoder.tokenize(texts, LONGEST)
    length = max(length, *(len(row.ids) for row in tokens), 0)
    ids = [[*row.ids, *[encoder.pad_id] * (length - len(row.ids))] for row in tokens]
    types = [[*row.types, *[0] * (length - len(row.types))] for row in tokens]
    real = [[position < len(row.ids) for position in range(length)] for row in tokens]
    return torch.tensor(ids), torch.tensor(real), torch.tensor(types)


def weights(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of all weights."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal(some: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    """Return whether the weights are the same, bit for bit."""
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)


def load(folder: Path) -> PublishedEncoder:
    """Load a folder with its own weights."""
    return load_published(str(folder), None, random=False, seed=0)
