"""A linear head as the head of `AutoModelForSequenceClassification`, by an architecture's own layers.

Those heads put a dense layer and an activation f between the pooled state and the classes, where ours has nothing. So
the dense layer computes our scores z twice, as s z and -s z, and the last layer takes (f(s z) - f(-s z)) / (gain s).
This is z itself for ReLU, GELU and the identity. For tanh its relative error is (s z)^2 / 3, below float32's rounding.
ModernBERT also normalizes between the two layers. The rest of the dense layer is then a constant pattern of variance 1
and mean 0, beside which the scores change the norm's divisor by a relative (s z)^2 at most.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from configs import UserError
from configs.extras import require
from finetune.encoders.encoder import TextEncoder
from finetune.encoders.published import PublishedEncoder
from finetune.encoders.run import RunEncoder
from finetune.heads.linear import LinearHead, PooledLinear
from finetune.interop.texts import Probabilities, TextPreparation, preparation, write_tokenizer
from finetune.saved_model import SavedModel
from mlm.checkpoint import weights
from mlm.interop.export import TARGETS, WEIGHTS, architecture_of, model_class, special_ids, trunk
from mlm.interop.hub import CONFIG, read_config, read_tokenizer, read_weights
from mlm.model.heads import ModelConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

SCALE = 2.0**-14
"""The factor s: a power of 2, which changes no digit of the scores."""
ONLY_ONNX = "or export ONNX alone by --format onnx"


@dataclass(frozen=True)
class ClassificationHead:
    """The head of an architecture for the classification of texts."""

    dense: str
    """Name of the layer from the pooled state to its own width."""
    output: str
    """Name of the layer to the classes."""
    gain: float
    """(f(x) - f(-x)) / x of the activation between them, for a small x."""
    norm: str | None = None
    """Name of a layer norm after the activation."""
    pooling: str | None = None
    """Setting of the pooling, by the names that ours have; None if [CLS] is always pooled."""
    settings: Mapping[str, Any] | None = None
    """Settings of the configuration that the head needs."""


_ROBERTA = ClassificationHead("classifier.dense", "classifier.out_proj", gain=2.0)
HEADS: Mapping[str, ClassificationHead] = {
    "bert": ClassificationHead("bert.pooler.dense", "classifier", gain=2.0),
    "ernie": ClassificationHead("ernie.pooler.dense", "classifier", gain=2.0),
    "albert": ClassificationHead("albert.pooler", "classifier", gain=2.0),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "electra": ClassificationHead("classifier.dense", "classifier.out_proj", gain=1.0),
    "distilbert": ClassificationHead("pre_classifier", "classifier", gain=1.0),
    "deberta-v2": ClassificationHead("pooler.dense", "classifier", gain=1.0, settings={"pooler_hidden_act": "gelu"}),
    "modernbert": ClassificationHead(
        "head.dense",
        "classifier",
        gain=2.0,
        norm="head.norm",
        pooling="classifier_pooling",
        settings={"classifier_activation": "linear", "classifier_bias": True},
    ),
}
"""The heads by the `model_type` of their architecture: tanh doubles a small difference, GELU and ReLU keep it."""


def check(model: SavedModel) -> None:
    """Raise a UserError with the reason and the remedy if a model has no exact counterpart in transformers."""
    require("transformers", extra="hub", purpose="classifiers in transformers")
    head, encoder, classes = model.config.head, model.classifier.encoder, len(model.class_names)
    if not isinstance(head, LinearHead):
        raise UserError(f"transformers has no {head.kind} head: train by python -m finetune.linear_head, {ONLY_ONNX}")
    if head.pooling == "max":
        raise UserError(
            f"head.pooling=max: no classifier of transformers pools by the maximum: train with {_pooled(encoder)},"
            f" {ONLY_ONNX}"
        )
    kind = _their_config(encoder).model_type
    if kind not in HEADS:
        raise UserError(
            f"the classifier of {kind} in transformers has no exact counterpart of the linear head: train with an"
            f" encoder of {', '.join(HEADS)}, {ONLY_ONNX}"
        )
    theirs = HEADS[kind]
    if head.pooling == "mean" and theirs.pooling is None:
        raise UserError(
            f"head.pooling=mean: the classifier of {kind} in transformers reads [CLS] alone: train with"
            f" head.pooling=cls, {ONLY_ONNX}"
        )
    pattern = 0 if theirs.norm is None else 2
    if (needed := 2 * classes + pattern) > encoder.width:
        raise UserError(
            f"{classes:,} classes need an encoder of width {needed:,} in transformers, and this one has"
            f" {encoder.width:,}: train with a wider one, {ONLY_ONNX}"
        )


def write(model: SavedModel, folder: Path) -> None:
    """Write the configuration, the weights and the tokenizer into `folder`; `check` has passed."""
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    head, encoder = model.config.head, model.classifier.encoder
    assert isinstance(head, LinearHead)
    config = _their_config(encoder)
    their_head = HEADS[config.model_type]
    config.id2label = dict(enumerate(model.class_names))
    config.label2id = {name: number for number, name in enumerate(model.class_names)}
    config.problem_type = "single_label_classification"
    config.text_preparation = list(preparation(model))
    prepared = TextPreparation(columns=model.reader.columns, cleaning=model.reader.cleaning)
    config.text_preparation_settings = prepared.model_dump(mode="json")
    settings = dict(their_head.settings or {}) | ({their_head.pooling: head.pooling} if their_head.pooling else {})
    for name, value in settings.items():
        setattr(config, name, value)
    theirs = model_class(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, config)(config)
    prefix = theirs.base_model_prefix
    without_head = {f"{prefix}.{name}": tensor for name, tensor in _their_trunk(encoder).items()}
    norm = {name: tensor for name, tensor in theirs.state_dict().items() if name.startswith(f"{their_head.norm}.")}
    head_tensors = _head_tensors(model, their_head, getattr(config, "norm_eps", 0.0))
    theirs.load_state_dict(without_head | norm | head_tensors)  # their fresh norm scales by 1 and shifts by 0
    config.architectures = [type(theirs).__name__]
    config.save_pretrained(folder)
    weights.write(folder / WEIGHTS, theirs.state_dict())
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)  # safetensors lets the owner alone read it
    write_tokenizer(model, folder)


def load(folder: Path, model: SavedModel) -> Probabilities:
    """Return the probabilities of the classes by plain transformers from `folder`."""
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    config = read_config(folder)
    tokenizer = read_tokenizer(folder, config)
    theirs = read_weights(model_class(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, config), folder, config)

    @torch.no_grad()
    def probabilities(texts: Sequence[tuple[str, ...]]) -> Tensor:
        columns = [list(column) for column in zip(*texts, strict=True)]
        plain: dict[str, Any] = {"split_special_tokens": True}  # [SEP] in a text is plain text, as for ours
        inputs = tokenizer(*columns, padding=True, truncation=True, return_tensors="pt", **plain)
        logits_BC: Tensor = theirs(**inputs).logits
        return logits_BC.softmax(dim=-1)

    return probabilities


def _pooled(encoder: TextEncoder) -> str:
    if _their_config(encoder).model_type == "modernbert":
        return "head.pooling=mean"
    return "head.pooling=cls"


def _their_config(encoder: TextEncoder) -> "PreTrainedConfig":
    """Return the configuration of an encoder in transformers; a UserError if none has an exact counterpart."""
    if isinstance(encoder, PublishedEncoder):
        theirs: PreTrainedConfig = copy.deepcopy(encoder.model.config)
        return theirs
    assert isinstance(encoder, RunEncoder)
    config, tokenizer = _without_head(encoder), encoder.tokenizer
    target = TARGETS[architecture_of(config)]
    return target.their_config(config, tokenizer.get_vocab_size(), encoder.longest, **special_ids(tokenizer))


def _their_trunk(encoder: TextEncoder) -> dict[str, Tensor]:
    """Return the tensors of an encoder by their names in the model of transformers without a head."""
    if isinstance(encoder, PublishedEncoder):
        return encoder.model.state_dict()
    assert isinstance(encoder, RunEncoder)
    config, ours = _without_head(encoder), encoder.encoder.state_dict()
    named = {f"encoder.{name}": tensor for name, tensor in ours.items()}
    named["output_bias"] = torch.zeros(encoder.tokenizer.get_vocab_size())
    target = TARGETS[architecture_of(config)]
    return trunk(target.their_tensors(named, config), target)


def _without_head(encoder: RunEncoder) -> ModelConfig:
    """Return the shape of an encoder whose masked-language-model head, which a classifier lacks, does not matter."""
    return encoder.recipe.model.model_copy(update={"transform": True})


def _head_tensors(model: SavedModel, theirs: ClassificationHead, epsilon: float) -> dict[str, Tensor]:
    """Return the tensors of their linear layers that give the scores of ours; `epsilon` is that of their norm."""
    network = model.classifier.head
    assert isinstance(network, PooledLinear)
    weight_CD, bias_C = network.output.weight.detach().double(), network.output.bias.detach().double()
    classes, width = weight_CD.shape
    dense_DD, dense_bias_D = weight_CD.new_zeros(width, width), bias_C.new_zeros(width)
    dense_DD[:classes], dense_DD[classes : 2 * classes] = SCALE * weight_CD, -SCALE * weight_CD
    dense_bias_D[:classes], dense_bias_D[classes : 2 * classes] = SCALE * bias_C, -SCALE * bias_C
    gain = theirs.gain
    if theirs.norm is not None:
        pairs = (width - 2 * classes) // 2
        dense_bias_D[2 * classes :][: 2 * pairs] = torch.tensor([1.0, -1.0]).repeat(pairs)
        gain /= (2 * pairs / width + epsilon) ** 0.5
    difference_CD = torch.zeros_like(weight_CD)
    difference_CD[:, :classes], difference_CD[:, classes : 2 * classes] = torch.eye(classes), -torch.eye(classes)
    made = {
        f"{theirs.dense}.weight": dense_DD,
        f"{theirs.dense}.bias": dense_bias_D,
        f"{theirs.output}.weight": difference_CD / (SCALE * gain),
        f"{theirs.output}.bias": torch.zeros_like(bias_C),
    }
    return {name: tensor.float() for name, tensor in made.items()}
