"""Weights of the corpora of a mixture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import Field, model_validator

from configs import Config, Texts, UserError

PERIOD = 100_000
"""Turns after which the pattern of a mixture repeats: weights are rounded to that share of the rows."""


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


class ShardsConfig(Weighted):
    """Folders of shards that are one corpus, and its weight in a mixture of several."""

    folders: Annotated[Texts, Field(min_length=1)]
    """One or several folders made by tokenizer.encode."""
    name: str | None = None
    """Name of the corpus in logs and results; null takes that of its first folder."""

    @property
    def label(self) -> str:
        """The name in logs and results."""
        return self.name or Path(self.folders[0]).name


def as_corpora(value: Any) -> Any:
    """Return folders without a weight as one corpus."""
    listed = [value] if isinstance(value, str | dict) else value
    if isinstance(listed, list | tuple) and listed and all(isinstance(one, str) for one in listed):
        return ({"folders": tuple(listed)},)
    return listed


def shares_of(corpora: Sequence[ShardsConfig], sizes: Sequence[int]) -> tuple[float, ...]:
    """Return the share of each corpus in the rows of training, from their weights and numbers of rows."""
    if len(corpora) == 1:
        return (1.0,)
    weights = [
        (corpus.share or 0.0) if corpus.epochs is None else corpus.epochs * size
        for corpus, size in zip(corpora, sizes, strict=True)
    ]
    shares = tuple(weight / sum(weights) for weight in weights)
    if min(shares) * PERIOD < 1:
        least = corpora[shares.index(min(shares))]
        raise UserError(
            f"data.shards: {least.label} would be {min(shares):.2g} of the rows, and less than 1 / {PERIOD:,} is never"
            " read: raise its weight, or remove it"
        )
    return shares
