"""What every head is, and how the one of a saved model is found: a head is one file, `finetune/<kind>_head.py`."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from configs import Config, UserError
from finetune.encoders.encoder import TextEncoder

if TYPE_CHECKING:
    from finetune.config import FinetuneConfig

_SUFFIX = "_head"


class HeadConfig(Config):
    """The settings of a head; its file holds beside them the network, and `Recipe`, a recipe with this head."""

    kind: str

    def build(self, encoder: TextEncoder, classes: int) -> nn.Module:
        """Return a network that turns (hidden_BLD, real_BL, ids_BL) into scores_BC, with freshly drawn weights."""
        raise NotImplementedError


def recipe_of(kind: str) -> "type[FinetuneConfig]":
    """Return the recipe class of the heads of this kind.

    Raises:
        UserError: there is no such head.

    """
    known = sorted(path.stem.removesuffix(_SUFFIX) for path in Path(__file__).parents[1].glob(f"*{_SUFFIX}.py"))
    if kind not in known:  # so that no name from a file ever decides what else is imported
        raise UserError(
            f"there is no head {kind!r} (known: {', '.join(known)}): was the model made by a newer version?"
        )
    recipe: type[FinetuneConfig] = importlib.import_module(f"finetune.{kind}{_SUFFIX}").Recipe
    return recipe
