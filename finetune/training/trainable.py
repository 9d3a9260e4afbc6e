"""The trained parameters of a classifier, and their learning rates: whole layers, or low-rank adapters."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from configs import Config, Texts, UserError
from configs.extras import require
from finetune.encoders.published import PublishedEncoder
from finetune.training.classifier import Classifier
from mlm.training.optim import RateFactor


class Layers(Config):
    """Train all layers, the last ones, or the head alone."""

    kind: Literal["layers"] = "layers"
    layers: int | None = Field(None, ge=0)
    """Number of trained layers, from the last one; 0: the head alone; null: all, with the embeddings."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Ratio of each layer's learning rate to that of the layer above it (Howard & Ruder 2018, section 3.2)."""
    head_factor: float = Field(1.0, gt=0)
    """Ratio of the head's learning rate to that of the encoder's last layer."""

    def prepare(self, classifier: Classifier) -> RateFactor:
        """Freeze the other layers; return a function from a parameter's name to its factor of the learning rate."""
        if self.layers is not None:
            classifier.freeze(self.layers)
        factors: dict[int, float] = {}
        for depth, level in enumerate(reversed(classifier.encoder.layers())):
            factors |= {id(parameter): self.layer_decay**depth for parameter in level}
        named = classifier.named_parameters()
        return {name: factors.get(id(parameter), self.head_factor) for name, parameter in named}.__getitem__

    def finish(self, classifier: Classifier) -> None:
        """Do nothing."""


class LowRank(Config):
    """Train low-rank adapters: the product of two thin matrices, added to each chosen one (LoRA, Hu et al. 2021)."""

    kind: Literal["low_rank"] = "low_rank"
    rank: int = Field(8, gt=0)
    """Inner width of the product."""
    alpha: float = Field(16.0, gt=0)
    """The product is scaled by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the product."""
    targets: Texts = Field(("all-linear",), min_length=1)
    """Linear layers with adapters: endings of module names, such as [query, value], or all-linear."""
    head_factor: float = Field(1.0, gt=0)
    """Ratio of the head's learning rate to that of the adapters."""

    def prepare(self, classifier: Classifier) -> RateFactor:
        """Add adapters to the encoder; return a function from a parameter's name to its factor of the learning rate.

        Products start at zero, so that the hidden states are unchanged at first. The encoder's own weights are frozen.
        A UserError if peft is not installed, or the encoder is not a published one or lacks a target.
        """
        require("peft", extra="hub", purpose="adapters")
        import peft

        encoder = classifier.encoder
        if not isinstance(encoder, PublishedEncoder):
            raise UserError("low-rank adapters need a published encoder (encoder.hub): set another trainable.kind")
        config = peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            target_modules=_targets(encoder.model, self.targets),
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch.initial_seed())
            peft.inject_adapter_in_model(config, encoder.model)
        encoder.train(encoder.training)  # the mode of the adapters too
        classifier.keep_frozen_in_eval()
        return lambda name: self.head_factor if name.startswith("head.") else 1.0

    def finish(self, classifier: Classifier) -> None:
        """Merge the trained adapters into the weights: the result is a plain encoder, all of it trainable."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        assert isinstance(classifier.encoder, PublishedEncoder)
        model = classifier.encoder.model
        adapted = [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
        for name, module in adapted:
            module.merge(safe_merge=True)
            model.set_submodule(name, module.get_base_layer())
        model.requires_grad_(True)


Trainable = Annotated[Layers | LowRank, Field(discriminator="kind")]


def _targets(model: nn.Module, wanted: tuple[str, ...]) -> str | list[str]:
    if wanted == ("all-linear",):
        return wanted[0]
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for ending in wanted:
        if not any(name == ending or name.endswith(f".{ending}") for name in linear):
            known = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise UserError(f"trainable.targets: the encoder has no linear layer {ending!r}; there are: {known}")
    return list(wanted)
