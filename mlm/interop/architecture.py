"""The description of a published architecture: how its configuration and tensors become ours, or why they cannot."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from configs import UserError
from mlm.interop.renaming import Names
from mlm.model.encoder import EncoderConfig
from mlm.model.feedforward import Activation
from mlm.model.heads import ModelConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

OUR_ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "silu": "swish",
    "swish": "swish",
    "relu": "relu",
}
"""Names of activations in transformers, and ours."""
ABSENT = object()
"""Stands for a key that a configuration does not have."""


@dataclass(frozen=True)
class Architecture:
    """The functions that read checkpoints of one architecture; its configuration is `theirs` in all of them."""

    trunk: str
    """Beginning of the names of the encoder's tensors in a checkpoint with a head; one without a head lacks it."""
    names: Names
    """Our names of modules, and theirs."""
    our_config: Callable[[Any], ModelConfig]
    """Return the shape of a model; raise a UserError that names what our layers cannot do, or a ValidationError."""
    dropouts: tuple[str, ...]
    """Keys of the dropout of embeddings and sublayers, which ours takes, and of other parts."""
    prepared: Callable[[Mapping[str, Tensor], Any], dict[str, Tensor]]
    """Return the tensors as `names` expects them: those that ours lacks are folded into others."""
    tied: Mapping[str, str]
    """Names of tensors that must be equal to another one, or missing."""
    unused: tuple[str, ...] = ()
    """Parts of names in the trunk of tensors that make no difference to hidden states."""
    head_activation: Callable[[Any], str] | None = None
    """Return the activation of the masked-LM head where that is not the layers' own."""


def check(theirs: "PreTrainedConfig", allowed: Mapping[str, Collection[object]]) -> None:
    """Raise a UserError if a key of a configuration has another value than those allowed, or than being absent."""
    for key, values in allowed.items():
        value = getattr(theirs, key, ABSENT)
        if value is not ABSENT and value not in values:
            known = f"{values[0]} to {values[-1]}" if isinstance(values, range) else " or ".join(map(repr, values))
            raise UserError(
                f"its config.json says {key} = {value!r}, and our layers can do {known} alone: take another checkpoint"
            )


def our_activation(theirs: "PreTrainedConfig", key: str) -> Activation:
    """Return our name of the activation under a key of the configuration, or raise a UserError."""
    check(theirs, {key: OUR_ACTIVATIONS})
    return OUR_ACTIVATIONS[getattr(theirs, key)]


def model_config(**encoder: Any) -> ModelConfig:
    """Return the shape of a model with a transform in its head."""
    return ModelConfig(encoder=EncoderConfig(**encoder), transform=True)
