"""Learning-rate schedules: pure functions from progress through the budget to a share of the peak rate."""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from configs import Config


class Schedule(Config):
    """The base of all schedules: a linear warm-up from 0, then `after_warmup`."""

    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of the budget over which the rate rises linearly to its peak."""

    def factor(self, fraction: float) -> float:
        """Return the share of the peak rate in force at `fraction`, from 0 to 1, of the budget."""
        if fraction < self.warmup:
            return fraction / self.warmup
        return self.after_warmup(min((fraction - self.warmup) / (1 - self.warmup), 1.0))

    def after_warmup(self, fraction: float) -> float:
        """Return the share of the peak rate at `fraction`, from 0 to 1, of the budget after the warm-up."""
        raise NotImplementedError


class Constant(Schedule):
    """The peak rate after the warm-up, for Schedule-Free AdamW."""

    kind: Literal["constant"] = "constant"

    def after_warmup(self, fraction: float) -> float:
        """Return 1."""
        return 1.0


class Linear(Schedule):
    """A straight line from the peak to `final`."""

    kind: Literal["linear"] = "linear"
    final: float = Field(0.0, ge=0, le=1)
    """Share of the peak rate at the end."""

    def after_warmup(self, fraction: float) -> float:
        """Return the line's value."""
        return 1 + (self.final - 1) * fraction


class Cosine(Schedule):
    """Half a cosine from the peak to `final` (Loshchilov & Hutter 2017)."""

    kind: Literal["cosine"] = "cosine"
    final: float = Field(0.0, ge=0, le=1)
    """Share of the peak rate at the end."""

    def after_warmup(self, fraction: float) -> float:
        """Return the cosine's value."""
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * fraction)) / 2


class Power(Schedule):
    """A power of the progress, 1 at the end of the warm-up; with exponent -0.5 Vaswani et al. 2017, section 5.3."""

    kind: Literal["power"] = "power"
    exponent: float = Field(-0.5, lt=0)
    """Exponent of progress / warmup."""

    @model_validator(mode="after")
    def _has_warmup(self) -> "Power":
        if self.warmup == 0:
            raise ValueError("a power schedule is infinite at the start without a warm-up: set warmup above 0")
        return self

    def after_warmup(self, fraction: float) -> float:
        """Return the power's value."""
        return float(((self.warmup + (1 - self.warmup) * fraction) / self.warmup) ** self.exponent)


class Exponential(Schedule):
    """An exponential decay from the peak to `final`."""

    kind: Literal["exponential"] = "exponential"
    final: float = Field(0.01, gt=0, le=1)
    """Share of the peak rate at the end."""

    def after_warmup(self, fraction: float) -> float:
        """Return the exponential's value."""
        return float(self.final**fraction)


class PiecewiseConstant(Schedule):
    """A constant rate that changes at each of several boundaries."""

    kind: Literal["piecewise"] = "piecewise"
    boundaries: tuple[float, ...] = (0.5, 0.8)
    """Boundaries at which the rate changes, as rising shares of the budget after the warm-up."""
    factors: tuple[float, ...] = (1.0, 0.3, 0.1)
    """Shares of the peak rate: before the first boundary, after it, and so on; one more than boundaries."""

    @model_validator(mode="after")
    def _factors_fit(self) -> "PiecewiseConstant":
        if len(self.factors) != len(self.boundaries) + 1 or min(self.factors) < 0:
            raise ValueError("factors must be one more than boundaries, and none negative")
        if list(self.boundaries) != sorted(self.boundaries) or not all(0 <= x <= 1 for x in self.boundaries):
            raise ValueError("boundaries must rise from 0 to 1")
        return self

    def after_warmup(self, fraction: float) -> float:
        """Return the factor in force."""
        return self.factors[sum(boundary <= fraction for boundary in self.boundaries)]


class OneCycle(Schedule):
    """Half a cosine up from `initial` instead of a warm-up, then half a cosine down to `final` (Smith & Topin 2018)."""

    kind: Literal["one_cycle"] = "one_cycle"
    warmup: float = Field(0.3, gt=0, lt=1)
    """Share of the budget over which the rate rises to its peak."""
    initial: float = Field(0.04, ge=0, le=1)
    """Share of the peak rate at the start."""
    final: float = Field(4e-6, ge=0, le=1)
    """Share of the peak rate at the end."""

    def factor(self, fraction: float) -> float:
        """Return the share of the peak rate in force at `fraction`, from 0 to 1, of the budget."""
        if fraction < self.warmup:
            return 1 - (1 - self.initial) * (1 + math.cos(math.pi * fraction / self.warmup)) / 2
        return super().factor(fraction)

    def after_warmup(self, fraction: float) -> float:
        """Return the falling half's value."""
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * fraction)) / 2


class Trapezoid(Schedule):
    """Warm up, stay at the peak, then fall to `final` (warm-up, stable, decay: Hu et al. 2024, section 4)."""

    kind: Literal["trapezoid"] = "trapezoid"
    decay: float = Field(0.3, ge=0, le=1)
    """Share of the budget over which the rate falls at the end."""
    final: float = Field(0.0, ge=0, le=1)
    """Share of the peak rate at the end."""

    @model_validator(mode="after")
    def _sides_fit(self) -> "Trapezoid":
        if self.warmup + self.decay > 1:
            raise ValueError(f"warmup + decay is {self.warmup + self.decay:g}, longer than the whole budget")
        return self

    def after_warmup(self, fraction: float) -> float:
        """Return 1, then the falling line's value."""
        fall = self.decay / (1 - self.warmup)
        left = 1 - fraction
        return 1.0 if left >= fall else self.final + (1 - self.final) * left / fall


AnySchedule = Annotated[
    Constant | Linear | Cosine | Power | Exponential | PiecewiseConstant | OneCycle | Trapezoid,
    Field(discriminator="kind"),
]
