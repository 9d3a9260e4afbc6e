"""Scores as results.json holds them."""

from typing import Generic, TypeVar

from pydantic import Field

from configs import Config
from finetune.evaluation.metrics import Metric


class MeanStd(Config):
    """A score over trials."""

    mean: float
    """Mean over folds x seeds."""
    std: float = Field(ge=0)
    """Standard deviation (ddof = 1); 0 for one trial."""

    def __str__(self) -> str:
        """Return `0.815 ± 0.004`."""
        return f"{self.mean:.3f} ± {self.std:.3f}"


Value = TypeVar("Value", float, MeanStd)


class Scores(Config, Generic[Value]):
    """Every metric of one part of the data."""

    accuracy: Value
    """Share of right predictions."""
    f1: Value
    """F1 of the second of two classes, else the mean over classes."""
    f1_macro: Value
    """Mean F1 over classes."""
    f1_weighted: Value
    """Mean F1 over examples."""
    mcc: Value
    """Matthews correlation."""
    precision: Value
    """Precision of the second of two classes, else the mean over classes."""
    recall: Value
    """Recall of the second of two classes, else the mean over classes."""
    roc_auc: Value | None
    """Area under the ROC curve, one against the rest; null where a class is missing."""
    loss: Value | None = None
    """Cross-entropy in nats; baselines have none."""

    def get(self, metric: Metric) -> Value | None:
        """Return the value of the metric of that name."""
        value: Value | None = getattr(self, metric)
        return value


class Difference(Config):
    """Ours minus theirs over paired trials; see `metrics.paired_difference`."""

    mean: float
    """Mean difference."""
    low: float | None
    """Lower bound of the 95 % interval; null where one fold and one seed leave none."""
    high: float | None
    """Upper bound."""
    pairs: int = Field(gt=0)
    """Number of paired trials."""

    def __str__(self) -> str:
        """Return `+0.021 (+0.010 to +0.032)`."""
        if self.low is None or self.high is None:
            return f"{self.mean:+.3f}"
        return f"{self.mean:+.3f} ({self.low:+.3f} to {self.high:+.3f})"
