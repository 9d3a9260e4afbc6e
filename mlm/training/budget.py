"""The length of training: a budget in steps, tokens, words, epochs or minutes, and the used share of it."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from configs import Config, UserError


@dataclass(frozen=True)
class TrainingProgress:
    """The progress of training: with weights and optimizer state, all that a resumed run needs."""

    step: int = 0
    """Optimizer updates made or skipped."""
    tokens: int = 0
    """Tokens read that were not padding."""
    seconds: float = 0.0
    """Time spent in steps."""


@dataclass(frozen=True)
class TrainingLength:
    """The end of training: after a number of steps or of seconds; one of them is set."""

    steps: int | None = None
    seconds: float | None = None

    def fraction(self, progress: TrainingProgress) -> float:
        """Return the used share of the budget, at most 1."""
        used = progress.seconds / (self.seconds or math.inf) if self.steps is None else progress.step / self.steps
        return min(used, 1.0)

    def next_fraction(self, progress: TrainingProgress) -> float:
        """Return the share by which the next step is scheduled: of steps at its middle, of seconds at its start."""
        return self.fraction(progress) if self.steps is None else (progress.step + 0.5) / self.steps

    def finished(self, progress: TrainingProgress) -> bool:
        """Return whether the budget is used up."""
        return self.fraction(progress) >= 1


@dataclass(frozen=True)
class StepSize:
    """The mean amount of data that a step reads."""

    steps_per_epoch: float
    """Number of steps in an epoch, which may be a fraction."""
    tokens: float = 0.0
    """Tokens, padding not counted."""
    words: float = 0.0
    """White-space-separated words; 0 if the shards do not record their number."""

    def steps_of(self, words: int) -> int:
        """Return the number of steps that show so many words; a UserError if the shards do not record it."""
        if not self.words:
            raise UserError(
                "some shards do not record their number of words: encode their text again, or remove"
                " train.keep.at_words and choose another train.budget.kind than words"
            )
        return math.ceil(words / self.words)


class Steps(Config):
    """A number of optimizer updates."""

    kind: Literal["steps"] = "steps"
    steps: int = Field(1000, gt=0, le=10**12)
    """Optimizer updates."""

    def training_length(self, step: StepSize) -> TrainingLength:
        """Return the length, given the size of a step."""
        return TrainingLength(steps=self.steps)


class Tokens(Config):
    """A number of tokens, padding not counted."""

    kind: Literal["tokens"] = "tokens"
    tokens: int = Field(100_000_000, gt=0, le=10**18)
    """Tokens, padding not counted. A run reads so many, up to rounding: steps are counted by their mean size."""

    def training_length(self, step: StepSize) -> TrainingLength:
        """Return the length, given the size of a step."""
        return TrainingLength(steps=math.ceil(self.tokens / step.tokens))


class Words(Config):
    """A number of white-space-separated words shown, each as often as it is read."""

    kind: Literal["words"] = "words"
    words: int = Field(100_000_000, gt=0, le=10**18)
    """Words shown; the last step may go beyond by less than a batch."""

    def training_length(self, step: StepSize) -> TrainingLength:
        """Return the length, given the size of a step."""
        return TrainingLength(steps=step.steps_of(self.words))


class Epochs(Config):
    """A number of passes over the training rows."""

    kind: Literal["epochs"] = "epochs"
    epochs: float = Field(1.0, gt=0, le=1e9)
    """Passes over the training rows; the last step may go beyond by less than a batch."""

    def training_length(self, step: StepSize) -> TrainingLength:
        """Return the length, given the size of a step."""
        return TrainingLength(steps=math.ceil(self.epochs * step.steps_per_epoch))


class Minutes(Config):
    """A duration; the results of such a run depend on the machine."""

    kind: Literal["minutes"] = "minutes"
    minutes: float = Field(10.0, gt=0, le=1e9)
    """Minutes spent in training steps; start-up and evaluation are not counted."""

    def training_length(self, step: StepSize) -> TrainingLength:
        """Return the length, given the size of a step."""
        return TrainingLength(seconds=60 * self.minutes)


Budget = Annotated[Steps | Tokens | Words | Epochs | Minutes, Field(discriminator="kind")]
