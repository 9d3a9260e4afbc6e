"""Change training texts by their words: drop, swap and mask them (EDA: Wei & Zou 2019).

What becomes of an example is a hash of (seed, epoch, index of the example): the same whatever the batch size and
the order of the examples, and new in each epoch.
"""

from collections.abc import Sequence

import numpy as np
from pydantic import Field, model_validator

from configs import Config, UserError

_STREAM = 1
"""Part of the hash, so that no other random choices of the same seed are drawn from the same numbers."""

Variants = Sequence[tuple[tuple[str, ...], ...]]
"""Of each training example, its texts with words replaced, several times over; empty where none are."""


class Augmentation(Config):
    """How training texts are changed, by white-space-separated words; all shares 0: not at all."""

    drop: float = Field(0.0, ge=0, lt=1)
    """Share of the words that are dropped; one is always left."""
    swap: float = Field(0.0, ge=0, le=1)
    """Share of the words that change places with another one (EDA's random swap; a swap moves two words)."""
    mask: float = Field(0.0, ge=0, lt=1)
    """Share of the words that the encoder's mask token takes the place of."""
    replace: float = Field(0.0, ge=0, lt=1)
    """Share of the replaceable words that are replaced by what the encoder itself predicts in their place (Kobayashi
    2018). Numbers, URLs, mentions, hashtags and a text's first word are not replaceable."""
    probability: float = Field(0.5, ge=0, le=1)
    """Share of the examples that are changed at all in an epoch; the others stay as they are."""
    variants: int = Field(4, ge=1)
    """How many texts with replaced words are drawn for each example before training; epoch e reads the one numbered
    e % variants."""

    @model_validator(mode="after")
    def _shares_fit(self) -> "Augmentation":
        if self.drop + self.mask > 1:
            raise ValueError(f"drop + mask is {self.drop + self.mask:g}, over 1")
        return self

    @property
    def changes(self) -> bool:
        """Whether any text is changed at all."""
        return self.probability > 0 and max(self.drop, self.swap, self.mask, self.replace) > 0


def require_mask(augmentation: Augmentation, mask_text: str | None) -> None:
    """Check that the encoder has a mask token if one is needed.

    Raises:
        UserError: it has none.

    """
    for name, share in (("mask", augmentation.mask), ("replace", augmentation.replace)):
        if share > 0 and mask_text is None:
            raise UserError(
                f"augment.{name} is {share:g}, but this encoder has no mask token: set it to 0, or take one "
                "that was pretrained by masked language modelling"
            )


def augmented(
    texts: tuple[str, ...],
    augmentation: Augmentation,
    key: tuple[int, int, int],
    mask_text: str | None,
    replaced: Sequence[tuple[str, ...]] = (),
) -> tuple[str, ...]:
    """Return the texts of an example as an epoch reads them.

    In a changed text of n words, floor(share * n + u) are changed, u uniform in [0, 1): share * n on average. Its words
    are then separated by single spaces.

    Args:
        texts: one text, or the two of a pair; each is changed by itself.
        augmentation: the shares.
        key: seed, epoch, and index of the example.
        mask_text: the mask token as it is written in a text; None for an encoder without one.
        replaced: the example's variants as `augment_contextual.variants` draws them; one of them is changed further.

    Raises:
        UserError: words are to be masked, and there is no mask token.

    """
    moves = augmentation.drop > 0 or augmentation.swap > 0 or augmentation.mask > 0
    if not moves and not replaced:
        return texts
    require_mask(augmentation, mask_text)
    rng = generator(_STREAM, key)
    if rng.random() >= augmentation.probability:
        return texts
    if replaced:
        _, epoch, _ = key
        texts = replaced[epoch % len(replaced)]
    return tuple(_changed(text, augmentation, mask_text or "", rng) for text in texts) if moves else texts


def generator(stream: int, key: tuple[int, int, int]) -> np.random.Generator:
    """Return the random numbers of an example; `key` is the seed, the epoch or variant, and the example's index."""
    seed, *rest = key
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(stream, *rest))))


def draw_count(share: float, number: int, rng: np.random.Generator) -> int:
    """Draw how many of `number` are changed: one of the two integers around share * number, on average just that."""
    return min(int(share * number + rng.random()), number)  # the sum may round up to the next integer


def _changed(text: str, augmentation: Augmentation, mask_text: str, rng: np.random.Generator) -> str:
    words = text.split()
    # Every count is drawn whatever the others are, so that one share's words do not depend on another share.
    pairs = min(draw_count(augmentation.swap / 2, len(words), rng), len(words) // 2)
    drops = min(draw_count(augmentation.drop, len(words), rng), max(len(words) - 1, 0))
    masks = draw_count(augmentation.mask, len(words), rng)
    swapped = rng.permutation(len(words))[: 2 * pairs]
    order = rng.permutation(len(words))
    if pairs + drops + masks == 0:
        return text
    for first, second in swapped.reshape(-1, 2).tolist():
        words[first], words[second] = words[second], words[first]
    # What is dropped is not masked as well: both shares are those of the words that were there.
    for place in order[drops : drops + masks].tolist():
        words[place] = mask_text
    dropped = set(order[:drops].tolist())
    return " ".join(word for place, word in enumerate(words) if place not in dropped)
