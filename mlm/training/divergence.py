"""Stop a training that cannot recover: too many updates in a row were skipped."""

from mlm.training.budget import TrainingProgress
from mlm.training.loop import Observer, StepMetrics


class DivergenceStop(Observer):
    """Counts the updates that were skipped in a row, because loss or gradient was not finite; on every rank alike."""

    def __init__(self, max_skips: int) -> None:
        """Take `max_skips` skipped updates in a row for a divergence."""
        self.max_skips = max_skips
        self.consecutive_skips = 0

    def log(self, progress: TrainingProgress, metrics: StepMetrics) -> None:
        """Count the skipped updates since the last record."""
        for place in range(metrics.steps):
            self.consecutive_skips = self.consecutive_skips + 1 if place in metrics.skipped else 0

    @property
    def has_diverged(self) -> bool:
        """True if training cannot recover."""
        return self.consecutive_skips >= self.max_skips
