"""Weights of the corpora of a mixture."""

from collections.abc import Sequence
from typing import Self, TypeVar

from pydantic import Field, model_validator

from configs import Config


class Weighted(Config):
    """One corpus of a mixture, with its weight."""

    share: float | None = Field(None, ge=0)
    """Its share of the rows of training, beside the shares of the others, which need not add up to 1."""
    epochs: float | None = Field(None, ge=0)
    """Number of times that it is read while the others are read as often as theirs say; in place of `share`."""

    @model_validator(mode="after")
    def _has_one_weight(self) -> Self:
        if self.share is not None and self.epochs is not None:
            raise ValueError("a corpus has either a share or epochs, not both")
        return self

    @property
    def weight(self) -> float | None:
        """The share or the epochs."""
        return self.epochs if self.share is None else self.share

    @property
    def label(self) -> str:
        """The name in logs and results."""
        raise NotImplementedError


AnyWeighted = TypeVar("AnyWeighted", bound=Weighted)


def check_weights(corpora: Sequence[AnyWeighted]) -> Sequence[AnyWeighted]:
    """Return the corpora; raise ValueError if their weights or names do not fit together."""
    kinds = {(corpus.share is not None, corpus.epochs is not None) for corpus in corpora}
    if len(corpora) > 1 and (len(kinds) > 1 or (False, False) in kinds):
        raise ValueError("give every corpus of a mixture a share, or every one its epochs")
    if corpora and all(corpus.weight == 0 for corpus in corpora):
        raise ValueError("the weights are all zero, so that nothing would be read: raise one")
    names = [corpus.label for corpus in corpora]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two corpora are called {twice[0]}: give one another name")
    return corpora
