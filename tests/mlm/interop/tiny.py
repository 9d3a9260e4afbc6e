"""Published models of every architecture, tiny and randomly initialized, saved by transformers with a tokenizer."""

from pathlib import Path
from typing import Any

import transformers

from mlm.benchmark import parity
from tests.tokenizer.published import published

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 66,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-6,
}
MODERN = {**SIZES, "norm_eps": 1e-4, "local_attention": 8}
"""Sizes of ModernBERT, whose window is shorter than the sentences."""
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertForMaskedLM", "bert", SIZES),
    "bert pretrained": ("BertForPreTraining", "bert", SIZES),
    "minilm": ("BertModel", "bert", SIZES),
    "classifier": ("BertForSequenceClassification", "bert", SIZES),
    "electra classifier": ("ElectraForSequenceClassification", "bert", {**SIZES, "embedding_size": 8}),
    "roberta classifier": ("RobertaForSequenceClassification", "roberta", {**SIZES, "type_vocab_size": 1}),
    "roberta": ("RobertaForMaskedLM", "roberta", {**SIZES, "type_vocab_size": 1}),
    "xlm-roberta": ("XLMRobertaForMaskedLM", "xlm_roberta", {**SIZES, "type_vocab_size": 1}),
    "camembert": ("CamembertForMaskedLM", "xlm_roberta", {**SIZES, "type_vocab_size": 1}),
    "electra generator": ("ElectraForMaskedLM", "bert", {**SIZES, "embedding_size": 8}),
    "electra discriminator": ("ElectraForPreTraining", "bert_cased", {**SIZES, "embedding_size": 8}),
    "electra base": ("ElectraModel", "bert", {**SIZES, "embedding_size": 16}),
    "distilbert": (
        "DistilBertForMaskedLM",
        "bert",
        {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 64},
    ),
    "modernbert": ("ModernBertForMaskedLM", "modernbert", MODERN),
    "modernbert trunk": ("ModernBertModel", "modernbert", MODERN),
    "modernbert classifier": ("ModernBertForSequenceClassification", "modernbert", MODERN),
    "modernbert without a bias": ("ModernBertForMaskedLM", "modernbert", {**MODERN, "decoder_bias": False}),
    "modernbert classifier without a bias": (
        "ModernBertForTokenClassification",
        "modernbert",
        {**MODERN, "decoder_bias": False},
    ),
}
"""By name: the class in transformers, the kind of tokenizer, and the sizes."""
HEADLESS = [kind for kind, (name, *_) in KINDS.items() if "MaskedLM" not in name and kind != "bert pretrained"]


def save(folder: Path, kind: str, *, shard_size: str = "5GB", rows: int = 0, **settings: Any) -> Path:
    """Save a model of `kind` and its tokenizer; its embedding has so many rows more than the tokenizer has tokens."""
    name, tokenizer_kind, sizes = KINDS[kind]
    backend = published(tokenizer_kind)
    marks = (
        ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
        if "rob" in tokenizer_kind
        else ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")
    )
    roles = ("cls_token", "pad_token", "sep_token", "unk_token", "mask_token")
    wrap: Any = transformers.PreTrainedTokenizerFast
    words = wrap(tokenizer_object=backend, **dict(zip(roles, marks, strict=True)))
    cls, pad, sep, *_ = (backend.token_to_id(mark) for mark in marks)
    given = sizes | {"vocab_size": len(words) + rows, "pad_token_id": pad, "bos_token_id": cls, "eos_token_id": sep}
    if kind.startswith("modernbert"):
        given |= {"cls_token_id": cls, "sep_token_id": sep}
    return parity.save_random(folder, name, given | settings, words, shard_size=shard_size)
