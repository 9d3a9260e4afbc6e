"""What of a classifier is trained, and at which share of the learning rate."""

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field

from configs import Config
from finetune.training.adapters import LowRank
from finetune.training.classifier import Classifier


class Layers(Config):
    """Everything, the last layers, or the head alone."""

    kind: Literal["layers"] = "layers"
    layers: int | None = Field(None, ge=0)
    """Number of the encoder's last layers that are trained; 0: the head alone; null: everything, the embeddings too."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Share of the learning rate that each layer has of the one above it (Howard & Ruder 2018, section 3.2)."""
    head_factor: float = Field(1.0, gt=0)
    """The head's learning rate, as a multiple of that of the encoder's last layer."""

    def prepare(self, classifier: Classifier) -> Callable[[str], float]:
        """Freeze what is not trained; return a function from a parameter's name to its share of the rate.

        Raises:
            UserError: the encoder has fewer layers.

        """
        if self.layers is not None:
            classifier.freeze(self.layers)
        factors: dict[int, float] = {}
        for depth, level in enumerate(reversed(classifier.encoder.layers())):
            factors |= {id(parameter): self.layer_decay**depth for parameter in level}
        named = classifier.named_parameters()
        return {name: factors.get(id(parameter), self.head_factor) for name, parameter in named}.__getitem__

    def finish(self, classifier: Classifier) -> None:
        """Leave the trained classifier as it is."""


Trainable = Annotated[Layers | LowRank, Field(discriminator="kind")]
