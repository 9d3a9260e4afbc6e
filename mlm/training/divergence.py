"""Stop a training that cannot recover: too many updates in a row were skipped."""

from mlm.training.budget import TrainingProgress
from mlm.training.loop import Observer, StepMetrics


class DivergenceStop(Observer):
    """Counts the updates that were skipped in a row, because loss or gradient was not finite; on every rank alike."""

    def __init__(self, most_skipped: int) -> None:
        """Take `most_skipped` skipped updates in a row for a divergence."""
        self.most_skipped = most_skipped
        self.consecutive_skips = 0

    def log(self, progress: TrainingProgress, metrics: StepMetrics) -> None:
        """Count the skipped updates since the last record."""
        for finite in metrics.finite_S.tolist():
            self.consecutive_skips = 0 if finite else self.consecutive_skips + 1

    @property
    def has_diverged(self) -> bool:
        """True if training cannot recover."""
        return self.consecutive_skips >= self.most_skipped
