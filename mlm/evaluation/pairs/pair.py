"""A minimal pair."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Pair:
    """A sentence that is right, and one that is wrong by as little as possible."""

    good: str
    bad: str
    paradigm: str
    """The rule that the bad one breaks."""
    field: str = ""
    """The part of grammar that the rule is of; empty if none is told."""
