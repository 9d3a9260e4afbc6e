"""A classifier: an encoder with a head, parts of which may be frozen."""

from collections.abc import Iterable

from torch import Tensor, nn

from configs import UserError
from finetune.encoders.encoder import TextEncoder


class Classifier(nn.Module):
    """An encoder with a head that scores classes."""

    def __init__(self, encoder: TextEncoder, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.frozen: tuple[nn.Module, ...] = ()

    def forward(self, ids_BL: Tensor, real_BL: Tensor, types_BL: Tensor) -> Tensor:
        """Return the scores of the classes, (B, C)."""
        logits_BC: Tensor = self.head(self.encoder(ids_BL, real_BL, types_BL), real_BL, ids_BL)
        return logits_BC

    def freeze(self, layers: int) -> None:
        """Train only the encoder's last `layers` layers and the head; a UserError if it has fewer."""
        levels = self.encoder.layers()
        if layers >= len(levels):
            raise UserError(
                f"trainable.layers={layers}: the encoder has {len(levels) - 1} layers with weights of their own;"
                " to train all of it set trainable.layers=null"
            )
        for level in levels[: len(levels) - layers]:
            for parameter in level:
                parameter.requires_grad_(False)
        self.keep_frozen_in_eval()

    def keep_frozen_in_eval(self) -> None:
        """Keep every frozen part of the encoder in evaluation mode, without dropout."""
        self.frozen = tuple(
            inner
            for module in self.encoder.modules()
            if (parameters := list(module.parameters())) and not any(p.requires_grad for p in parameters)
            for inner in module.modules()
        )
        self.train(self.training)

    def train(self, mode: bool = True) -> "Classifier":
        """Set the mode of all parts except the frozen ones."""
        super().train(mode)
        if mode:
            for module in self.frozen:
                module.training = False
        return self


def count(parameters: Iterable[nn.Parameter]) -> int:
    """Return the number of elements of the parameters."""
    return sum(parameter.numel() for parameter in parameters)
