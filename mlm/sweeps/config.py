"""The settings of a sweep."""

import itertools
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from configs import Config, Texts

CommandName = Literal["mlm.pretrain", "finetune.cnn_head", "finetune.linear_head"]
Mode = Literal["min", "max"]
_LOWER = ("loss", "bits_per_byte", "complete_bits_per_byte", "bits_per_sentence", "seconds")
_HIGHER = (
    "pearson",
    "spearman",
    "accuracy",
    "accuracy_within_words",
    "f1",
    "f1_macro",
    "f1_weighted",
    "mcc",
    "precision",
    "recall",
    "roc_auc",
    "tokens_per_second",
)
"""Ends of the names of numbers that are better the lower, and the higher; others are neither better nor worse."""


_WITHOUT_PART = ("seconds", "tokens_per_second")
"""Those that are of a whole run."""


def _check_direction(metric: str, mode: Mode) -> None:
    if "." not in metric and metric not in _WITHOUT_PART:  # it is no metric, which is told with those that are
        return
    name = metric.rpartition(".")[2].partition("/")[0]
    if name in _LOWER and mode == "max":
        raise ValueError(f"{metric} is better the lower: set mode=min")
    if name in _HIGHER and mode == "min":
        raise ValueError(f"{metric} is better the higher: set mode=max")


class Range(Config):
    """All numbers between two, for `sampler.kind` random and optuna."""

    low: float
    """The least value."""
    high: float
    """The largest value."""
    log: bool = False
    """Draw the logarithm uniformly instead of the value."""
    integer: bool = False
    """Draw whole numbers."""

    @model_validator(mode="after")
    def _holds_values(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"the range from {self.low:g} to {self.high:g} is empty: set low below high")
        if self.log and self.low <= 0:
            raise ValueError(f"low = {self.low:g} has no logarithm: set low above 0, or remove log")
        return self


def _with_names(values: Any) -> Any:
    """Return {wide: [a=1, b=2]} as a list of names with overrides."""
    if not isinstance(values, Mapping) or not values or not all(isinstance(v, list | tuple) for v in values.values()):
        return values
    for name, overrides in values.items():
        if not re.fullmatch(r"[^\s|]+( [^\s|]+)*", str(name)):
            raise ValueError(f"{name!r} is no name of a list: it is one line of words with single spaces, without |")
        if not overrides or not all(isinstance(word, str) and re.match(r"[\w.-]+=", word) for word in overrides):
            raise ValueError(f"{name} is no list of section.key=value texts")
        if (first := next(other for other in values if values[other] == overrides)) != name:
            raise ValueError(f"{first} and {name} are the same overrides: remove one")
    return [{"name": str(name), "overrides": list(overrides)} for name, overrides in values.items()]


_COLUMNS = ("trial", "stage", "state", "steps", "tokens", "words", "epochs", "seconds", "tokens_per_second")
"""Columns that the table of every sweep may have."""


def _names_settings(search: dict[str, Any]) -> dict[str, Any]:
    for key, values in search.items():
        if key in _COLUMNS:
            raise ValueError(f"{key} is a column of its own in the report: call the lists by another word")
        if not re.fullmatch(r"[\w.-]+", key):
            raise ValueError(f"{key!r} is no name of a setting: use letters, digits, points, - and _")
        listed = [] if isinstance(values, Range) else values
        lists = [value.get("overrides") if isinstance(value, dict) else value for value in listed]
        words = [str(word) for one in lists if isinstance(one, list | tuple) for word in one]
        for name in (key, *(word.partition("=")[0] for word in words)):
            if name.rpartition(".")[2] in ("seed", "seeds"):
                raise ValueError(f"{name} is no setting to search: name the seeds of every arm's trials in seeds")
            if name in ("name", "runs"):
                raise ValueError(f"{name} is no setting to search: the sweep names its runs")
    return search


_Listed = Annotated[tuple[Any, ...], Field(min_length=1)]
_Values = Annotated[
    Annotated[Range, Tag("<range>")] | Annotated[_Listed, Tag("<list>")],
    Discriminator(lambda values: "<range>" if isinstance(values, Range | Mapping) else "<list>"),
    BeforeValidator(_with_names, json_schema_input_type=Range | _Listed | dict[str, Texts]),
]
Search = Annotated[dict[str, _Values], AfterValidator(_names_settings)]
"""Values by setting. A value that is a list of `section.key=value` texts sets all of these; its key is only a name.
Such lists may have names, as {wide: [...], deep: [...]}, by which tables call them."""


class Grid(Config):
    """Every combination of the values."""

    kind: Literal["grid"] = "grid"


class Random(Config):
    """Combinations drawn at random."""

    kind: Literal["random"] = "random"
    arms: int = Field(10, gt=0)
    """Number of combinations; of lists alone, no combination is drawn twice."""
    seed: int = Field(0, ge=0)
    """Seed of the choice."""


class Optuna(Config):
    """Combinations that Optuna proposes from the results so far (tree-structured Parzen estimator)."""

    kind: Literal["optuna"] = "optuna"
    arms: int = Field(20, gt=0)
    """Number of combinations."""
    at_once: int = Field(1, gt=0)
    """Number of combinations proposed before the next results."""
    seed: int = Field(0, ge=0)
    """Seed of the proposals."""


class Take(Config):
    """The best arms of a stage by one metric."""

    metric: str
    """A number in results.json."""
    mode: Mode
    """The better direction."""
    count: int = Field(gt=0)
    """Number of arms."""

    @model_validator(mode="after")
    def _has_the_better_direction(self) -> Self:
        _check_direction(self.metric, self.mode)
        return self


class Stage(Config):
    """A search that goes on from the best arms of the stage before, with their values."""

    take: Annotated[tuple[Take, ...], Field(min_length=1)]
    """The arms to go on from, as [{metric: validation.accuracy, mode: max, count: 4}, ...]; each only once."""
    search: Search = Field(min_length=1)
    """Further values, in every combination."""


class Halving(Config):
    """Synchronous successive halving (Jamieson & Talwalkar 2016): few arms get the whole budget."""

    steps: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)]
    """Steps after which the arms are compared, ascending; the best ones go on."""
    keep: float = Field(1 / 3, gt=0, lt=1)
    """Share of the arms that go on; one at least."""
    metric: Literal["heldout.loss", "heldout.accuracy"] = "heldout.loss"
    """The metric by which they are compared, which must be evaluated at these steps."""

    @property
    def mode(self) -> Mode:
        """The better direction."""
        return "min" if self.metric == "heldout.loss" else "max"

    @field_validator("steps")
    @classmethod
    def _ascend(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if any(before >= after for before, after in itertools.pairwise(steps)):
            raise ValueError("halving.steps must ascend")
        return steps


class Hypothesis(Config):
    """The one comparison that the sweep is made for."""

    better: dict[str, Any]
    """The arm that is expected to be better."""
    than: dict[str, Any]
    """The arm that it is compared with."""


class SweepConfig(Config):
    """Every setting of a sweep."""

    name: str = Field("sweep", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    """Name of the sweep and of its folder."""
    runs: str = "runs/sweeps"
    """Directory of the sweep's folder."""
    command: CommandName = "mlm.pretrain"
    """The command that is swept."""
    base: Texts = ()
    """Its recipe and overrides, the same for all trials; the budget of a trial is among them."""
    search: Search = Field(default={})
    """Values by setting: a list, or {low, high, log, integer}. A value that is a list of overrides sets all of them."""
    sampler: Annotated[Grid | Random | Optuna, Field(discriminator="kind")] = Grid()
    """The choice of combinations; an arm is one of them."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    """Seeds of each arm's trials, the same for all arms."""
    metric: str = "heldout.loss"
    """The number in results.json that is compared."""
    mode: Mode = "min"
    """The better direction of the metric."""
    baseline: dict[str, Any] | None = None
    """The arm that the others are compared with, as {model.encoder.activation: swish}."""
    hypothesis: Hypothesis | None = None
    """The one comparison that gets a verdict; all others are corrected for their number."""
    stages: tuple[Stage, ...] = ()
    """Searches that go on from the best arms, one after the other."""
    halving: Halving | None = None
    """Stop the worse arms early; for mlm.pretrain."""
    launcher: Literal["local", "ray"] = "local"
    """Processes of this machine, or Ray Tune, which needs the extra `sweep`."""
    address: str | None = None
    """HOST:PORT of a running Ray cluster whose machines share the sweep's folder; null: Ray is started here."""
    trials_at_once: int = Field(1, gt=0)
    """Number of trials that run at the same time."""
    cores: int | None = Field(None, gt=0)
    """Cores of a trial; null: those of this machine divided by `trials_at_once` when the sweep began."""
    most_failures: int = Field(3, ge=0)
    """Number of failed trials beyond which the sweep ends."""

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed is there twice")
        return seeds

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _check_direction(self.metric, self.mode)
        searched = {**self.search, **{key: values for stage in self.stages for key, values in stage.search.items()}}
        ranges = [key for key, values in searched.items() if isinstance(values, Range)]
        in_stages = [key for stage in self.stages for key, values in stage.search.items() if isinstance(values, Range)]
        if ranges and (self.sampler.kind == "grid" or in_stages):
            raise ValueError(f"{ranges[0]} is a range: list its values, or set sampler.kind to random or optuna")
        if self.halving and self.command != "mlm.pretrain":
            raise ValueError(f"halving stops and resumes runs of mlm.pretrain, and {self.command} does not resume")
        if self.halving and self.sampler.kind == "optuna":
            raise ValueError("halving needs all arms at once: set sampler.kind to grid or random")
        if self.sampler.kind == "optuna" and (self.baseline or self.hypothesis):
            raise ValueError("baseline and hypothesis name listed arms, and Optuna proposes its own: remove them")
        if self.address and self.launcher != "ray":
            raise ValueError("address is of Ray: set launcher=ray")
        return self

    def lasting(self) -> Mapping[str, Any]:
        """Return the settings that the results depend on; the others may change when a sweep is started again."""
        changing = {"runs", "launcher", "address", "trials_at_once", "most_failures"}
        return self.model_dump(mode="json", exclude=changing)
