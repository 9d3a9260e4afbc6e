"""A progress bar on a terminal; elsewhere, a plain line every ten seconds."""

import time
from collections.abc import Mapping

from torch import nn
from tqdm import tqdm

from configs import streams
from mlm.distributed.world import World
from mlm.evaluation.results import shown
from mlm.training.budget import TrainingLength, TrainingProgress
from mlm.training.loop import Observer, StepMetrics, ratio

LINE_SECONDS = 10.0


class ProgressBar(Observer):
    """Shows progress, loss, speed and time left on rank 0."""

    def __init__(self) -> None:
        self.length = TrainingLength()
        self.heldout_loss: float | None = None
        self.silent = True
        self.printed = 0.0
        self.file = streams.messages()
        self.bar = tqdm(disable=True)

    def started(self, world: World, length: TrainingLength, progress: TrainingProgress) -> None:
        """Begin a bar at `progress`."""
        self.length, self.heldout_loss, self.printed = length, None, 0.0
        self.silent = not world.is_main
        unit, total, initial = "step", length.steps, progress.step
        if length.seconds is not None:
            unit, total, initial = "s", round(length.seconds), int(progress.seconds)
        disabled = self.silent or not self.file.isatty()
        self.bar = tqdm(total=total, initial=initial, unit=unit, disable=disabled, dynamic_ncols=True, file=self.file)

    def evaluated(self, progress: TrainingProgress, metrics: Mapping[str, float], model: nn.Module) -> None:
        """Keep the held-out loss, to be shown with each log."""
        self.heldout_loss = metrics.get("loss")

    def log(self, progress: TrainingProgress, metrics: StepMetrics) -> None:
        """Show the training loss in nats, tokens a second and the last held-out loss."""
        heldout = "" if self.heldout_loss is None else f", held-out {self.heldout_loss:.3f}"
        speed = shown(ratio(metrics.tokens, metrics.seconds), ",.0f")
        text = f"loss {shown(metrics.mean('loss'), '.3f')}{heldout}, {speed} tokens/s"
        done = progress.step if self.length.steps is not None else int(progress.seconds)
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update(done - self.bar.n)
        now = time.monotonic()
        is_due = now - self.printed > LINE_SECONDS or self.length.finished(progress)
        if is_due and self.bar.disable and not self.silent:
            self.printed = now
            fraction = self.length.fraction(progress)
            left = progress.seconds * (1 - fraction) / fraction if fraction else 0.0
            print(f"step {progress.step} ({fraction:.0%}): {text}, {left:,.0f} s left", file=self.file, flush=True)

    def ended(self, progress: TrainingProgress) -> None:
        """End the bar."""
        self.bar.close()
