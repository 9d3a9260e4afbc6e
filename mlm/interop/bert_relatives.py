"""BERT's relatives in transformers, whose layers are BERT's: RoBERTa, XLM-R, CamemBERT; ELECTRA; DistilBERT."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from mlm.interop import bert
from mlm.interop.architecture import Architecture, check, model_config, our_activation
from mlm.interop.renaming import Names
from mlm.model.encoder import LearnedPositions
from mlm.model.heads import ModelConfig

if TYPE_CHECKING:
    from transformers import DistilBertConfig, ElectraConfig, RobertaConfig


def _renamed(parts: Mapping[str, str]) -> Names:
    """Return BERT's names with parts of them replaced, in order."""

    def name(theirs: str) -> str:
        for old, new in parts.items():
            theirs = theirs.replace(old, new)
        return theirs

    return {
        own: name(theirs) if isinstance(theirs, str) else tuple(map(name, theirs)) for own, theirs in bert.NAMES.items()
    }


def _roberta_config(theirs: "RobertaConfig") -> ModelConfig:
    check(theirs, {"pad_token_id": range(theirs.vocab_size)})
    return bert.our_config(theirs)  # type: ignore[arg-type]


def _from_first_position(tensors: Mapping[str, Tensor], theirs: "RobertaConfig") -> dict[str, Tensor]:
    """Return the tensors without the positions up to the padding's, from which RoBERTa counts."""
    assert theirs.pad_token_id is not None
    return bert.with_types_in_positions(tensors, "roberta.", theirs.pad_token_id + 1)


ROBERTA = Architecture(
    trunk="roberta.",
    names=_renamed(
        {
            "bert.": "roberta.",
            "cls.predictions.transform.dense": "lm_head.dense",
            "cls.predictions.transform.LayerNorm": "lm_head.layer_norm",
            "cls.predictions.bias": "lm_head.bias",
        }
    ),
    our_config=_roberta_config,
    dropouts=bert.ARCHITECTURE.dropouts,
    prepared=_from_first_position,
    tied={
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    },
    unused=bert.ARCHITECTURE.unused,
    head_activation=lambda _: "gelu",
)


def _electra_config(theirs: "ElectraConfig") -> ModelConfig:
    shape = bert.our_config(theirs)  # type: ignore[arg-type]
    if theirs.embedding_size == theirs.hidden_size:
        return shape
    return model_config(**dict(shape.encoder) | {"embedding_width": theirs.embedding_size})


ELECTRA = Architecture(
    trunk="electra.",
    names={
        **_renamed(
            {
                "bert.": "electra.",
                "cls.predictions.transform.dense": "generator_predictions.dense",
                "cls.predictions.transform.LayerNorm": "generator_predictions.LayerNorm",
                "cls.predictions.bias": "generator_lm_head.bias",
            }
        ),
        "encoder.embeddings.projection": "electra.embeddings_project",
    },
    our_config=_electra_config,
    dropouts=bert.ARCHITECTURE.dropouts,
    prepared=lambda tensors, _: bert.with_types_in_positions(tensors, "electra."),
    tied={"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"},
    unused=bert.ARCHITECTURE.unused,
    head_activation=lambda _: "gelu",
)


def _distilbert_config(theirs: "DistilBertConfig") -> ModelConfig:
    check(theirs, {"is_decoder": [False]})
    return model_config(
        width=theirs.dim,
        heads=theirs.n_heads,
        feedforward_width=theirs.hidden_dim,
        layers=theirs.n_layers,
        norm="post",
        norm_epsilon=1e-12,  # its code has no setting for it
        activation=our_activation(theirs, "activation"),
        positions=LearnedPositions(),
        dropout=theirs.dropout,
    )


DISTILBERT = Architecture(
    trunk="distilbert.",
    names=_renamed(
        {
            "bert.encoder.layer": "distilbert.transformer.layer",
            "bert.embeddings": "distilbert.embeddings",
            "attention.self.query": "attention.q_lin",
            "attention.self.key": "attention.k_lin",
            "attention.self.value": "attention.v_lin",
            "attention.output.dense": "attention.out_lin",
            "attention.output.LayerNorm": "sa_layer_norm",
            "intermediate.dense": "ffn.lin1",
            "output.dense": "ffn.lin2",
            "*.output.LayerNorm": "*.output_layer_norm",
            "cls.predictions.transform.dense": "vocab_transform",
            "cls.predictions.transform.LayerNorm": "vocab_layer_norm",
            "cls.predictions.bias": "vocab_projector.bias",
        }
    ),
    our_config=_distilbert_config,
    dropouts=("dropout", "attention_dropout"),
    prepared=lambda tensors, _: dict(tensors),
    tied={"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
    unused=("position_ids",),
)
