"""Augment training texts by words: drop, swap and mask them (EDA, Wei & Zou 2019).

The changes of an example are a hash of (seed, epoch, index of the example): they do not depend on the batch size or
the order of the examples, and differ in each epoch.
"""

from collections.abc import Sequence

import numpy as np
from pydantic import Field, model_validator

from configs import Config, UserError

MASKED = "\ufdd0\ufdd1"
"""Stands for a masked token. No text holds it: these are Unicode noncharacters. '[MASK]' in a text is plain text."""
_STREAM = 1
"""Part of the hash that keeps these random numbers apart from other ones of the same seed."""

Variants = Sequence[tuple[tuple[str, ...], ...]]
"""Several variants of each training example, in which words are replaced; empty without contextual augmentation."""


class Augmentation(Config):
    """The changes of training texts, as shares of white-space-separated words; no change if all shares are 0."""

    drop: float = Field(0.0, ge=0, lt=1)
    """Share of the words that are dropped; at least one word stays."""
    swap: float = Field(0.0, ge=0, le=1)
    """Share of the words that change places with another word (EDA's random swap; a swap moves two words)."""
    mask: float = Field(0.0, ge=0, lt=1)
    """Share of the words that are replaced by the encoder's mask token."""
    replace: float = Field(0.0, ge=0, lt=1)
    """Share of the replaceable words that are replaced by a prediction of the encoder itself (Kobayashi 2018). Numbers,
    URLs, mentions, hashtags and a text's first word are not replaceable."""
    probability: float = Field(0.5, ge=0, le=1)
    """Share of the examples that are changed in an epoch."""
    variants: int = Field(4, ge=1)
    """Number of variants with replaced words that are drawn for each example before training; epoch e reads variant
    e % variants."""

    @model_validator(mode="after")
    def _shares_fit(self) -> "Augmentation":
        if self.drop + self.mask > 1:
            raise ValueError(f"drop + mask is {self.drop + self.mask:g}, over 1")
        return self

    @property
    def changes(self) -> bool:
        """True if any text is changed."""
        return self.probability > 0 and max(self.drop, self.swap, self.mask, self.replace) > 0


def require_mask(augmentation: Augmentation, *, has_mask: bool) -> None:
    """Raise a UserError if the augmentation needs a mask token and the encoder has none."""
    for name, share in (("mask", augmentation.mask), ("replace", augmentation.replace)):
        if share > 0 and not has_mask:
            raise UserError(
                f"augment.{name} is {share:g}, but this encoder has no mask token: set it to 0, or take an encoder "
                "that was pretrained by masked language modelling"
            )


def augmented(
    texts: tuple[str, ...],
    augmentation: Augmentation,
    key: tuple[int, int, int],
    replaced: Sequence[tuple[str, ...]] = (),
) -> tuple[str, ...]:
    """Return the augmented texts of an example in an epoch; `key` is seed, epoch, and index of the example.

    In a changed text of n words, floor(share * n + u) words are dropped or masked, u uniform in [0, 1): share * n on
    average. Words are swapped in pairs, floor(share * n / 2 + u) of them. Single spaces separate the words of a changed
    text. The two texts of a pair are changed independently. `replaced` are the example's variants from
    `augment_contextual.variants`; one of them is changed further.
    """
    moves = augmentation.drop > 0 or augmentation.swap > 0 or augmentation.mask > 0
    if not moves and not replaced:
        return texts
    rng = generator(_STREAM, key)
    if rng.random() >= augmentation.probability:
        return texts
    if replaced:
        _, epoch, _ = key
        texts = replaced[epoch % len(replaced)]
    return tuple(_changed(text, augmentation, rng) for text in texts) if moves else texts


def generator(stream: int, key: tuple[int, int, int]) -> np.random.Generator:
    """Return the random number generator of an example; `key` is seed, epoch or variant, and the example's index."""
    seed, *rest = key
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(stream, *rest))))


def draw_count(share: float, number: int, rng: np.random.Generator) -> int:
    """Draw one of the two integers around share * number, whose mean is share * number."""
    return min(int(share * number + rng.random()), number)  # the sum may round up


def _changed(text: str, augmentation: Augmentation, rng: np.random.Generator) -> str:
    words = text.split()
    # Every count is drawn, even if another one is 0, so that the words of one share do not depend on another share.
    pairs = min(draw_count(augmentation.swap / 2, len(words), rng), len(words) // 2)
    drops = min(draw_count(augmentation.drop, len(words), rng), max(len(words) - 1, 0))
    masks = draw_count(augmentation.mask, len(words), rng)
    swapped = rng.permutation(len(words))[: 2 * pairs]
    order = rng.permutation(len(words))
    if pairs + drops + masks == 0:
        return text
    for first, second in swapped.reshape(-1, 2).tolist():
        words[first], words[second] = words[second], words[first]
    # Dropped words are not masked as well, because both shares refer to the words of the original text.
    for place in order[drops : drops + masks].tolist():
        words[place] = MASKED
    dropped = set(order[:drops].tolist())
    return " ".join(word for place, word in enumerate(words) if place not in dropped)
